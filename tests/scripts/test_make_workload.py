"""Files of operations that scripts/make_workload.py makes, and those that it repeats."""

import itertools
import statistics
from collections import Counter
from itertools import pairwise
from pathlib import Path

import pytest

from paxoskv.client.rows import Row, parse
from scripts import make_workload
from tests.harness.processes import PROJECT


@pytest.mark.parametrize(("count", "puts", "deletes"), [(150, 80, 10), (450, 240, 30), (15000, 8000, 1000)])
def test_workloads_have_the_proportions_of_the_original(count: int, puts: int, deletes: int) -> None:
    verbs = [verb for verb, _, _ in make_workload.workload(count, seed=3)]
    assert (verbs.count("PUT"), verbs.count("DELETE"), len(verbs)) == (puts, deletes, count)


@pytest.mark.parametrize("count", [1, 2, 3, 150, 1500])
def test_rows_name_keys_that_were_put_before_with_the_value_put_last(count: int) -> None:
    values: dict[str, str] = {}
    for verb, key, value in make_workload.workload(count, seed=count):
        if verb == "PUT":
            values[key] = value
        assert values[key] == value


def test_the_default_workload_reuses_about_eighty_keys_whatever_its_size() -> None:
    for count in (150, 1500, 15000):
        assert 75 <= len({key for _, key, _ in make_workload.workload(count, seed=1)}) <= 85


def test_a_file_is_repeated_until_it_has_so_many_rows(tmp_path: Path) -> None:
    (tmp_path / "given.csv").write_text("# ours\nPUT,a,1\n\nGET,a\nDELETE,a\n")
    made = tmp_path / "made.csv"
    assert make_workload.main(["--repeat", str(tmp_path / "given.csv"), "7", "-o", str(made)]) == 0
    assert made.read_text() == "PUT,a,1\nGET,a\nDELETE,a\n" * 2 + "PUT,a,1\n"


def ycsb(mix: str, rows: int, records: int = 1000) -> list[Row]:
    """So many rows of a mix, as `client.py run` reads them."""
    made = itertools.islice(make_workload.ycsb(mix, records, seed=1), rows)
    found, malformed = parse("".join(",".join(row) + "\n" for row in made).encode())
    assert not malformed
    return found


@pytest.mark.parametrize(
    ("mix", "gets"), [("A", 1 / 2), ("B", 0.95), ("C", 1), ("D", 0.95), ("E", 0.999), ("F", 2 / 3)]
)
def test_ycsbs_mixes_have_their_proportions(mix: str, gets: float) -> None:
    rows = ycsb(mix, 20_000)
    assert sum(row.verb == "GET" for row in rows) / len(rows) == pytest.approx(gets, rel=0.02)


@pytest.mark.parametrize("mix", ["A", "B", "C", "F"])
def test_ycsbs_keys_are_zipfian_from_the_head_on(mix: str) -> None:
    rows = ycsb(mix, 50_000)
    counts = [count for _, count in Counter(row.key for row in rows).most_common()]
    everything = sum(rank**-0.99 for rank in range(1, 1001))
    for rank in (1, 2, 3, 10):
        share = rank**-0.99 / everything
        assert counts[rank - 1] / len(rows) == pytest.approx(share, rel=0.1), rank
    assert sum(counts[:100]) / sum(counts) == pytest.approx(0.69, abs=0.02)
    assert [row.key for row in ycsb("C", 5)] != [f"user{i}" for i in range(5)]  # the ranks are dealt out


def test_ycsb_d_reads_what_is_new_and_puts_keys_that_were_not_there() -> None:
    count, newest = 100, 0
    for row in ycsb("D", 20_000, records=100):
        number = int(row.key.removeprefix("user"))
        if row.verb == "PUT":
            assert number == count
            count += 1
        else:
            assert number < count
            newest += number == count - 1
    assert newest / 20_000 > 0.1


def test_ycsb_e_reads_up_to_a_hundred_neighbors_and_f_writes_what_it_has_just_read() -> None:
    lengths, last = [], -2
    for row in ycsb("E", 20_000):
        number = int(row.key.removeprefix("user"))
        if row.verb == "GET" and number == last + 1:
            lengths[-1] += 1
        elif row.verb == "GET":
            lengths.append(1)
        last = number if row.verb == "GET" else -2
    assert max(lengths) <= 200 and statistics.mean(lengths) > 30  # two scans may happen to be neighbors
    rows = ycsb("F", 1000)
    assert all(a.verb == "GET" and a.key == b.key for a, b in pairwise(rows) if b.verb == "PUT")


def test_ycsbs_load_puts_every_key_once_and_the_same_seed_gives_the_same_operations(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert make_workload.main(["--ycsb", "A", "--records", "50", "--load"]) == 0
    rows, _ = parse(capsys.readouterr().out.encode())
    assert [(row.verb, row.key) for row in rows] == [("PUT", f"user{i}") for i in range(50)]
    assert ycsb("A", 200) == ycsb("A", 200)


def test_the_same_seed_gives_the_same_file_and_another_one_another(tmp_path: Path) -> None:
    def make(seed: int) -> str:
        assert make_workload.main(["--rows", "20", "--seed", str(seed), "-o", str(tmp_path / "w.csv")]) == 0
        return (tmp_path / "w.csv").read_text()

    assert make(1) == make(1) != make(2)


def test_the_projects_own_workload_is_what_the_script_makes_and_is_well_formed(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert make_workload.main([]) == 0
    data = (PROJECT / "workload.csv").read_bytes()
    assert capsys.readouterr().out.encode() == data
    found, malformed = parse(data)
    assert (len(found), malformed) == (150, [])


@pytest.mark.parametrize(
    ("rows", "told"), [("x", "not a number"), ("0", "not a number"), ("3", "no operations")]
)
def test_a_file_that_cannot_be_repeated_is_told_of_in_one_line(
    rows: str, told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "w.csv").write_text("# nothing\n")
    assert make_workload.main(["--repeat", str(tmp_path / "w.csv"), rows]) == 2
    assert told in (said := capsys.readouterr().err) and said.count("\n") == 1


def test_a_workload_that_cannot_be_written_or_has_no_rows_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):  # it ends the program with 74: see test_scripts.py
        make_workload.main(["-o", str(tmp_path / "no" / "w.csv")])
    with pytest.raises(SystemExit) as caught:
        make_workload.main(["--rows", "0"])
    assert caught.value.code == 2
