"""The command line as a process: where its output goes, what is typed, and Ctrl-C; against fake nodes."""

import contextlib
import json
import os
import pty
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from paxoskv.client.output import escaped
from paxoskv.client.watching import place_text
from paxoskv.state.changes import place
from tests.harness.fake_node import IGNORE, FakeCluster
from tests.harness.processes import DEADLINE_S, eventually

ROOT = Path(__file__).resolve().parents[2]
CLIENT = ROOT / "client.py"
FULL = "/dev/full"  # as a full disk: each write fails
EVIL = "a\x1b[2Jb\x07c\x9bd\u202ee\tf\r\n"


class Shell:
    """Runs client.py, as a shell would."""

    def __init__(self, fakes: FakeCluster, directory: Path) -> None:
        self.fakes, self.directory = fakes, directory
        self.cluster = directory / "cluster.json"
        nodes = [{"id": node.number, "host": "127.0.0.1", "port": node.port} for node in fakes.nodes]
        self.cluster.write_text(json.dumps({"name": "fake", "nodes": nodes}))
        self.environment = {**os.environ, "PAXOSKV_CLUSTER": str(self.cluster)}

    def start(self, *words: str | bytes, **settings: Any) -> subprocess.Popen[bytes]:
        environment = self.environment | settings.pop("env", {})
        settings = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | settings
        return subprocess.Popen([sys.executable, str(CLIENT), *words], env=environment, **settings)

    def run(self, *words: str | bytes, **settings: Any) -> tuple[int, bytes, str]:
        with self.start(*words, **settings) as process:
            out, err = process.communicate(timeout=DEADLINE_S)
        return process.returncode, out, (err or b"").decode()

    def in_terminal(self, *words: str, **settings: Any) -> tuple[int, bytes]:
        """Run it with a terminal as stdout; return what the terminal got."""
        ours, theirs = pty.openpty()
        with self.start(*words, stdout=theirs, **settings) as process:
            os.close(theirs)
            shown = b""
            with contextlib.suppress(OSError):  # the other side is closed
                while part := os.read(ours, 65536):
                    shown += part
            os.close(ours)
            return process.wait(DEADLINE_S), shown.replace(b"\r\n", b"\n")

    def to_nobody(self, *words: str, **settings: Any) -> tuple[int, str]:
        """Run it with a pipe as stdout whose reader has gone."""
        ours, theirs = os.pipe()
        os.close(ours)
        with self.start(*words, stdout=theirs, **settings) as process:
            os.close(theirs)
            _, err = process.communicate(timeout=DEADLINE_S)
        return process.returncode, err.decode()

    def to_full_disk(self, *words: str) -> tuple[int, str]:
        with open(FULL, "wb") as full:
            code, _, err = self.run(*words, stdout=full)
        return code, err


@pytest.fixture
def fakes(tmp_path: Path) -> Iterator[FakeCluster]:
    cluster = FakeCluster(tmp_path)
    yield cluster
    cluster.close()


@pytest.fixture
def shell(fakes: FakeCluster, tmp_path: Path) -> Shell:
    return Shell(fakes, tmp_path)


def workload(shell: Shell, count: int = 30) -> str:
    file = shell.directory / "w.csv"
    file.write_text("".join(f"PUT,k{i},v\n" for i in range(count)))
    return str(file)


# -------------------------------------------------------------------------- outputs that are full or closed


def test_a_reader_that_has_gone_does_not_make_a_failure_of_what_was_done(
    shell: Shell, fakes: FakeCluster
) -> None:
    assert shell.to_nobody("put", "k", "v") == (0, "")
    assert fakes.content == {"k": "v"}
    for words in (("get", "k"), ("scan",), ("dump", "--node", "1"), ("status",), ("health",), ("--help",)):
        assert shell.to_nobody(*words) == (0, ""), words
    assert shell.to_nobody("run", workload(shell)) == (0, "")
    assert shell.to_nobody("get", "absent", "-o", "json") == (1, "")


def test_a_scan_whose_reader_has_gone_reads_no_further(shell: Shell, fakes: FakeCluster) -> None:
    for i in range(20):
        shell.fakes.store.database.db[f"{i:02}"] = "x" * 100_000
    assert shell.to_nobody("scan") == (0, "")
    assert len(fakes.calls()) < 5, "a page has five of these"


def test_a_full_disk_is_told_in_one_line_with_exit_code_74(shell: Shell, fakes: FakeCluster) -> None:
    told = "client.py: stdout: No space left on device\n"
    assert shell.to_full_disk("put", "k", "v") == (74, told)
    assert fakes.content == {"k": "v"}
    for words in (("get", "k"), ("scan",), ("dump", "--node", "1"), ("status",), ("health",), ("--help",)):
        assert shell.to_full_disk(*words) == (74, told), words
    code, err = shell.to_full_disk("get", "absent", "-o", "json")
    assert (code, err) == (1, told), "that the answer is negative weighs more"


def test_a_measurement_is_shown_although_its_files_cannot_be_written(
    shell: Shell, fakes: FakeCluster
) -> None:
    out = shell.directory / "out"
    out.mkdir()
    for name in ("operations.csv", "summary.json"):
        (out / name).symlink_to(FULL)
    words = ("run", workload(shell), "--out", str(out), "--history", FULL)
    code, shown, err = shell.run(*words)
    assert code == 74
    assert b"30 operations, 0 failed" in shown
    full = "No space left on device"
    assert err.splitlines() == [
        f"client.py: {path}: {full}" for path in (out / "operations.csv", out / "summary.json", FULL)
    ]
    code, err = shell.to_full_disk(*words[:2])
    assert code == 74
    assert "30 operations, 0 failed" in err and err.endswith(f"client.py: stdout: {full}\n")


@pytest.mark.parametrize("closed", ["1", "2", "0"])
def test_outputs_that_were_closed_from_the_beginning_make_no_traceback(shell: Shell, closed: str) -> None:
    line = f'"{sys.executable}" "{CLIENT}" put k v {closed}>&- ; echo $?'
    done = subprocess.run(
        line, shell=True, env=shell.environment, capture_output=True, timeout=DEADLINE_S, text=True
    )
    assert done.stdout.splitlines()[-1] == ("74" if closed == "1" else "0")
    assert "Traceback" not in done.stderr


def test_a_full_stderr_changes_nothing(shell: Shell) -> None:
    with open(FULL, "wb") as full:
        assert shell.run("get", "absent", stderr=full)[0] == 1


# --------------------------------------------------------------------------------------------------- Ctrl-C


@pytest.mark.parametrize("words", [("get", "k"), ("status",), ("run", "-")])
def test_ctrl_c_while_it_waits_ends_a_command_quietly(
    shell: Shell, fakes: FakeCluster, words: tuple[str, ...]
) -> None:
    for node in fakes.nodes:
        node.always = IGNORE
    with shell.start(*words, "--timeout", "60", stdin=subprocess.PIPE) as process:
        ready = (lambda: fakes.calls()) if words[0] != "run" else (lambda: sleeping(process.pid))
        eventually(ready, "it waits")
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=DEADLINE_S)
    assert (process.returncode, out, err) == (130, b"", b"")


def sleeping(process: int) -> bool:
    """Whether it has read its imports and sleeps in a read of stdin."""
    return "pipe" in Path(f"/proc/{process}/wchan").read_text() or reading(process)


def reading(process: int) -> bool:
    syscall = Path(f"/proc/{process}/syscall")
    return syscall.read_text().startswith("0 0x0 ")  # read(0, ...)


def test_ctrl_c_at_any_moment_of_a_run_ends_it_without_a_traceback(shell: Shell, fakes: FakeCluster) -> None:
    """As from a terminal: all processes of the group get the signal, in the middle of their imports too."""
    file = workload(shell, 10_000)
    codes = set()
    for delay in (0, 0.05, 0.1, 0.2, 0.4, 0.8):
        with shell.start("run", file, "--processes", "4", start_new_session=True) as process:
            eventually(lambda: loads_the_client(process.pid), "it imports its modules")
            time.sleep(delay)  # not for a condition: any moment will do
            os.killpg(process.pid, signal.SIGINT)
            _, err = process.communicate(timeout=DEADLINE_S)
        codes.add(process.returncode)
        assert b"Traceback" not in err and b"Interrupt" not in err, (delay, err)
    assert codes <= {130, 0}, "the run may be over"


def loads_the_client(process: int) -> bool:
    return "fastbinary" in Path(f"/proc/{process}/maps").read_text()


# --------------------------------------------------------------------------------------- terminals, locales


def test_a_terminal_gets_control_characters_escaped_and_a_pipe_what_was_stored(
    shell: Shell, fakes: FakeCluster
) -> None:
    fakes.store.database.db[EVIL] = EVIL
    assert shell.run("get", EVIL)[:2] == (0, (EVIL + "\n").encode())
    assert shell.run("scan")[:2] == (0, f"{EVIL}\t{EVIL}\n".encode())
    shown = rb"a\x1b[2Jb\x07c\x9bd\u202ee"
    assert shell.in_terminal("get", EVIL) == (0, shown + b"\tf\\r\n\n")
    assert shell.in_terminal("scan") == (0, shown + rb"\tf\r\n" + b"\t" + shown + b"\\tf\\r\\n\n")
    assert shell.in_terminal("get", EVIL, "--raw") == (0, (EVIL + "\n").encode())
    assert json.loads(shell.in_terminal("get", EVIL, "-o", "json")[1])["value"] == EVIL


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp437"])
def test_what_an_encoding_lacks_is_escaped_on_a_terminal_and_utf8_in_a_pipe(
    shell: Shell, fakes: FakeCluster, encoding: str
) -> None:
    fakes.store.database.db["k"] = "\u20ac \U0001f600"
    for words in (("get", "k"), ("scan",)):
        code, shown = shell.in_terminal(*words, env={"PYTHONIOENCODING": encoding})
        assert (code, shown[-18:]) == (0, b"\\u20ac \\U0001f600\n"), words
        code, out, _ = shell.run(*words, env={"PYTHONIOENCODING": encoding})
        assert (code, out.decode()[-4:]) == (0, "\u20ac \U0001f600\n"), words
    code, shown = shell.in_terminal("get", "k", "--raw", env={"PYTHONIOENCODING": encoding})
    assert (code, shown.decode()) == (0, "\u20ac \U0001f600\n")


def test_only_control_characters_are_escaped() -> None:
    assert escaped("ok \u00e9 \u0627 \U0001f468\u200d\U0001f469 \\ 'x'") == (
        "ok \u00e9 \u0627 \U0001f468\u200d\U0001f469 \\ 'x'"
    )
    assert escaped("\x00\x7f\x85\u2067") == "\\x00\\x7f\\x85\\u2067"


@pytest.mark.parametrize(
    "words",
    [
        (b"put", b"\xff", b"v"),
        (b"put", b"k", b"\xff"),
        (b"get", b"\xc3"),
        (b"delete", b"\xff"),
        (b"cas", b"k", b"a", b"\xff"),
        (b"cas", b"k", b"\xed\xa0\x80", b"a"),
        (b"incr", b"\xff"),
        (b"scan", b"\xff"),
    ],
)
def test_an_argument_that_is_not_utf8_is_refused_before_any_node_is_asked(
    shell: Shell, fakes: FakeCluster, words: tuple[bytes, ...]
) -> None:
    for node in fakes.nodes:
        node.stop()  # it would wait for one
    code, out, err = shell.run(*words)
    assert (code, out) == (2, b"")
    assert re.search(r"error: argument .*: b'.*' is not UTF-8\n$", err)


def test_utf8_is_understood_where_the_locale_knows_ascii_only(shell: Shell, fakes: FakeCluster) -> None:
    plain = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    assert shell.run("put", "gr\u00fc\u00dfe", "\u20ac", env=plain)[0] == 0
    assert fakes.content == {"gr\u00fc\u00dfe": "\u20ac"}
    assert shell.run("get", "gr\u00fc\u00dfe", env=plain)[:2] == (0, "\u20ac\n".encode())


# ----------------------------------------------------------------------------------------- the command line


@pytest.mark.parametrize(
    "words",
    [
        ("--cluster", "FILE", "put", "k", "v"),
        ("--cluster=FILE", "put", "k", "v"),
        ("-o", "json", "--timeout", "5", "--cluster", "FILE", "put", "k", "v"),
        ("-ojson", "put", "--cluster", "FILE", "k", "v"),
        ("put", "k", "--cluster", "FILE", "v"),
        ("put", "k", "v", "--cluster", "FILE"),
        ("--cluster", "FILE", "put", "--", "k", "v"),
        ("--absent", "--cluster", "FILE", "cas", "k", "v"),
    ],
)
def test_options_stand_before_the_command_or_behind_it(
    shell: Shell, fakes: FakeCluster, words: tuple[str, ...]
) -> None:
    words = tuple(word.replace("FILE", str(shell.cluster)) for word in words)
    assert shell.run(*words, env={"PAXOSKV_CLUSTER": "/nowhere.json"})[0] == 0
    assert fakes.content == {"k": "v"}


def test_options_of_one_command_may_stand_before_it_too(shell: Shell, fakes: FakeCluster) -> None:
    fakes.store.database.db["k"] = "v"
    assert shell.run("--read", "local", "--node", "2", "get", "k")[:2] == (0, b"v\n")
    assert fakes.nodes[1].calls == fakes.calls() == ["get"]
    assert shell.run("--node", "2", "put", "k", "v")[0] == 2, "put has no such option"


def test_the_environment_names_the_cluster_and_an_option_overrides_it(shell: Shell, tmp_path: Path) -> None:
    assert shell.run("put", "k", "v", cwd="/")[0] == 0
    code, _, err = shell.run("put", "k", "v", env={"PAXOSKV_CLUSTER": str(tmp_path / "none.json")})
    assert (code, err) == (2, f"client.py: {tmp_path}/none.json: No such file or directory\n")
    told = {"PAXOSKV_CLUSTER": str(tmp_path / "none.json")}
    assert shell.run("get", "k", "--cluster", str(shell.cluster), env=told)[:2] == (0, b"v\n")
    address = f"127.0.0.1:{shell.fakes.nodes[0].port}"
    assert shell.run("get", "k", "--single", address, env=told)[:2] == (0, b"v\n")


def test_help_and_errors_name_the_program_as_it_was_called(shell: Shell, tmp_path: Path) -> None:
    link = tmp_path / "kv"
    link.symlink_to(CLIENT)
    for words in (["--help"], ["put", "--help"], ["cas", "--help"]):
        done = subprocess.run([sys.executable, link, *words], capture_output=True, text=True, timeout=60)
        assert done.stdout.startswith("usage: kv ") and "client.py" not in done.stdout
    done = subprocess.run(
        [sys.executable, link, "get", "k", "--cluster", "/no"], capture_output=True, text=True, timeout=60
    )
    assert done.stderr == "kv: /no: No such file or directory\n"


@pytest.mark.parametrize(
    "words",
    [("put", "k", "-v"), ("put", "-k", "v"), ("get", "-k"), ("delete", "--k"), ("cas", "k", "-a", "b"),
     ("incr", "-k", "1"), ("scan", "-p"), ("put", "k", "v", "-x")],
)  # fmt: skip
def test_what_looks_like_an_option_and_is_none_hints_at_two_dashes(
    shell: Shell, fakes: FakeCluster, words: tuple[str, ...]
) -> None:
    dashed = next(word for word in words if word.startswith("-"))
    code, _, err = shell.run(*words)
    assert code == 2
    assert f"begins with '-' behind '--': client.py {words[0]} -- {dashed})" in err
    assert fakes.calls() == []


def test_behind_two_dashes_anything_is_a_key_or_a_value(shell: Shell, fakes: FakeCluster) -> None:
    assert shell.run("put", "--", "-k", "--v")[0] == 0
    assert shell.run("incr", "n", "-5")[:2] == (0, b"-5\n")
    assert fakes.content == {"-k": "--v", "n": "-5"}


def test_an_error_without_a_dashed_word_has_no_hint(shell: Shell) -> None:
    assert "--'" not in shell.run("put", "k", "--timeout", "3")[2]
    assert "--'" not in shell.run("status", "-x")[2]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("put", "k", "v", "--ttl", "-3"),
         "argument --ttl: '-3' is not a number of seconds, above 0 and up to ten years"),
        (("scan", "--limit", "-1"), "argument --limit: '-1' is not a number from 1 to 2147483648"),
        (("run", "-", "--rate", "-1"),
         "argument --rate: '-1' is not a number of operations per second, up to 1,000,000"),
        (("scan", "--start", "-k"),
         "argument --start: expected one argument (put one that begins with '-' behind '=': --start=-k)"),
        (("scan", "p", "--prefix", "p"), "argument --prefix: not allowed with argument PREFIX"),
        (("explain", "k", "--log", "-1"), "argument --log: '-1' is not a number from 1 to 255"),
    ],
)  # fmt: skip
def test_an_option_with_a_wrong_value_says_what_would_be_right(
    shell: Shell, words: tuple[str, ...], told: str
) -> None:
    code, out, err = shell.run(*words)
    assert (code, out, err.splitlines()[-1]) == (2, b"", f"client.py {words[0]}: error: {told}")


def test_a_prefix_is_a_word_or_an_option(shell: Shell, fakes: FakeCluster) -> None:
    fakes.store.database.db.update({"a": "1", "b/1": "2", "-b": "3"})
    for words in (["b/"], ["--prefix", "b/"], ["--prefix=b/"]):
        assert shell.run("scan", *words)[:2] == (0, b"b/1\t2\n")
    assert shell.run("scan", "--prefix=-")[:2] == (0, b"-b\t3\n")
    assert shell.run("scan", "--start=-b", "--end", "b")[:2] == (0, b"-b\t3\na\t1\n")
    assert len(shell.run("scan")[1].splitlines()) == 3
    begin = place_text(place(fakes.store.changes.end))
    shell.run("put", "a", "4")
    shell.run("put", "b/2", "5")
    for words in (["b/"], ["--prefix", "b/"]):
        code, out, _ = shell.run("watch", *words, "--count", "1", "--from", begin)
        assert (code, out.partition(b"\t")[2]) == (0, b"put\tb/2\t5\n")


@pytest.mark.parametrize(
    "words",
    [("k", "--log", "1"), ("k", "--slot", "1"), ("k", "--log", "1", "--slot", "1"), ("--log", "1"), ()],
)
def test_explain_ignores_nothing_of_what_it_is_asked(shell: Shell, words: tuple[str, ...]) -> None:
    assert shell.run("explain", *words)[2] == "client.py: explain: give KEY, or --log and --slot\n"


def test_the_shell_is_told_what_may_come_next(shell: Shell) -> None:
    pytest.importorskip("argcomplete")

    def completions(line: str) -> set[str]:
        read, write = os.pipe()
        asked = {
            "_ARGCOMPLETE": "1", "_ARGCOMPLETE_STDOUT_FILENAME": f"/dev/fd/{write}", "COMP_LINE": line,
            "COMP_POINT": str(len(line)), "_ARGCOMPLETE_SUPPRESS_SPACE": "1", "_ARGCOMPLETE_IFS": "\n",
        }  # fmt: skip
        with shell.start(env=asked, pass_fds=[write]) as process:
            os.close(write)
            process.wait(DEADLINE_S)
        with os.fdopen(read) as file:
            return set(file.read().split())

    assert completions("client.py p") == {"put"}
    assert {"--limit", "--raw", "--cluster"} <= completions("client.py scan --")
    assert completions("client.py get k --read l") == {"linearizable", "log", "local"}


# --------------------------------------------------------------------------------------- waiting for a node


def test_a_client_waits_some_seconds_for_the_first_node(shell: Shell, fakes: FakeCluster) -> None:
    for node in fakes.nodes:
        node.stop()
    with shell.start("put", "k", "v", "--timeout", "60") as process:
        eventually(lambda: tries(fakes.nodes[2].port, process.pid), "it has begun")
        fakes.nodes[2].start()
        out, err = process.communicate(timeout=DEADLINE_S)
    assert (process.returncode, out, err) == (0, b"ok\n", b"")


def tries(port: int, process: int) -> bool:
    """Whether the process has come as far as to wait."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{process}/syscall").read_text().split()[0] in ("35", "230")  # (clock_)nanosleep
    return False


def test_on_a_terminal_it_says_what_it_waits_for(shell: Shell, fakes: FakeCluster) -> None:
    for node in fakes.nodes:
        node.stop()
    ours, theirs = pty.openpty()
    with shell.start("get", "k", "--timeout", "0.3", stderr=theirs) as process:
        os.close(theirs)
        shown = b""
        with contextlib.suppress(OSError):
            while part := os.read(ours, 65536):
                shown += part
        os.close(ours)
        assert process.wait(DEADLINE_S) == 3
    assert shown.startswith(b"waiting up to 0.3 s for a node to answer: node 1 (127.0.0.1:")
    assert shell.run("get", "k", "--timeout", "0.3")[2].startswith("client.py: no node can be reached: ")


def test_where_another_cluster_answers_nobody_waits(shell: Shell, fakes: FakeCluster) -> None:
    content = json.loads(shell.cluster.read_text())
    shell.cluster.write_text(json.dumps(content | {"name": "other"}))
    for words in (("put", "k", "v", "--timeout", "60"), ("run", workload(shell), "--timeout", "60")):
        code, out, err = shell.run(*words)
        assert (code, out, err.count("\n")) == (2, b"", 1), err
        assert err.startswith(f"client.py: {shell.cluster}: ")
        assert "it is a node of cluster 'fake', not of 'other'" in err
    assert [node.accepted for node in fakes.nodes] == [2, 2, 2], "each command has tried once"
    code, out, _ = shell.run("put", "k", "v", "-o", "json")
    assert (code, json.loads(out)["error"]) == (2, "wrong_cluster")
    code, out, _ = shell.run("status")
    assert code == 2 and out.decode().count("another's") == 3
    assert shell.run("health")[0] == 2
    assert fakes.calls() == []
