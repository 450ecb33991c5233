"""The page in a browser: it steps, jumps, lights causes, and shows what the nodes really hold."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import WebDriverWait

from paxoskv.page.draw import TEMPLATE, Drawing
from paxoskv.page.instance import about, standing
from paxoskv.trace.events import commands, dotted
from scripts import trace
from tests.harness.browser import chromium
from tests.harness.recorded import RecordedCluster, RecordedSimulation
from tests.harness.simulator import PROFILES
from tests.harness.stories import STORIES

DEADLINE_S = 60


class Page:
    """One page in the browser."""

    def __init__(self, driver: Any, path: Path) -> None:
        self.driver = driver
        self.path = path
        self.open()

    def open(self, fragment: str = "") -> None:
        self.driver.get("about:blank")
        self.driver.get(self.path.as_uri() + fragment)

    def run(self, script: str) -> Any:
        return self.driver.execute_script(script)

    def press(self, *keys: str) -> None:
        for key in keys:
            self.driver.find_element(By.TAG_NAME, "body").send_keys(key)

    def said(self) -> str:
        return str(self.driver.find_element(By.ID, "said").text)

    def text(self, id_: str) -> str:
        return str(self.driver.find_element(By.ID, id_).text)

    def step(self) -> int:
        return int(self.run("return now"))

    def click(self, id_: str) -> None:
        self.driver.find_element(By.ID, id_).click()


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    with chromium(tmp_path_factory.mktemp("chromium")) as driver:
        yield driver


def drawn(name: str) -> tuple[RecordedCluster, Drawing]:
    cluster = STORIES[name].play()
    lines = cluster.trace.lines(title=STORIES[name].title, text=STORIES[name].text, nodes=cluster.ids)
    return cluster, Drawing(list(lines))


def shown(driver: Any, tmp_path: Path, drawing: Drawing) -> Page:
    path = tmp_path / "page.html"
    path.write_text(drawing.html(), encoding="utf-8")
    return Page(driver, path)


def test_one_steps_through_a_put_from_the_request_to_the_answer(driver: Any, tmp_path: Path) -> None:
    page = shown(driver, tmp_path, drawn("put")[1])
    assert page.said().startswith("A client asks node 2: put color=green.")
    first = page.step()
    page.press(Keys.ARROW_RIGHT)
    assert page.step() > first and "Node 3 gets from node 2: Accept put color=green" in page.said()
    page.click("back")
    assert page.step() == first
    page.press("c")
    assert "CHOSEN: put color=green." in page.said() and "answers its client: OK" in page.said()
    assert "3 of 5: chosen" in driver.find_element(By.ID, "logs").text
    page.press(Keys.END)
    last = page.step()
    page.press(Keys.HOME)
    assert page.step() == first < last
    for _ in range(200):
        page.click("next")
        if page.step() == last:
            return
    raise AssertionError("the end is never reached")


def test_the_address_of_a_page_is_a_link_to_a_step(driver: Any, tmp_path: Path) -> None:
    page = shown(driver, tmp_path, drawn("put")[1])
    page.press("c")
    step, row = page.step(), page.run("return rowOf[now]")
    WebDriverWait(driver, DEADLINE_S).until(lambda _: f"#step={row + 1}" in driver.current_url)
    said = page.said()
    assert f"Step {row + 1} of {page.run('return rows.length')} " in page.text("when")
    page.open(f"#step={row + 1}")
    assert page.step() == step and page.said() == said
    page.open("#step=99999")
    assert page.step() == page.run("return rows.at(-1)")
    assert not page.run("return byId('all').checked")  # whatever the number, gossip remains hidden
    page.open("#step=2&all")
    assert page.step() == 1 and page.run("return byId('all').checked")


def test_pressing_a_value_lights_what_made_it_and_nothing_else(driver: Any, tmp_path: Path) -> None:
    page = shown(driver, tmp_path, drawn("leader-dies")[1])
    page.press("c", "c")
    page.run("document.querySelector('.chip.chosen').click()")
    assert "what made put x=1" in driver.find_element(By.ID, "lit").text
    kinds = page.run("return events.filter(event => lit.ids.has(event[ID])).map(event => event[KIND])")
    assert {"asked", "accepted", "promised", "leads", "sent", "delivered", "durable"} <= set(kinds)
    others = page.run("return events.filter(e => lit.ids.has(e[ID]) && e[VALUES].includes('put y=2')).length")
    assert others == 0
    page.press(Keys.ESCAPE)
    assert page.run("return lit") is None


@pytest.mark.parametrize("name", STORIES)
def test_at_the_end_of_a_scenario_the_page_shows_what_the_nodes_hold(
    driver: Any, tmp_path: Path, name: str
) -> None:
    cluster, drawing = drawn(name)
    page = shown(driver, tmp_path, drawing)
    page.run("go(steps.length - 1); go(0); go(steps.length - 1)")
    held = page.run(
        "return [...state.nodes].map(([node, held]) => [node, held.up,"
        " Object.entries(held.promised).map(([log, one]) => [Number(log), one.ballot]), "
        " Object.entries(held.slots).flatMap(([log, slots]) =>"
        "   [...slots].map(([slot, one]) => [Number(log), slot, one.value, one.ballot])),"
        " Object.entries(held.chosen).map(([log, length]) => [Number(log), length])])"
    )
    for node, up, promised, slots, chosen in held:
        assert up == cluster[node].running
        if not up:
            continue
        acceptors = cluster.core(node).acceptors
        assert dict(promised) == {log: dotted(acceptor.promised) for log, acceptor in acceptors.items()}
        for log, length in chosen:
            assert length == acceptors[log].chosen
        for log, slot, value, _ in slots:
            if slot >= acceptors[log].base:  # else it was given up
                assert value == commands(acceptors[log].from_slot(slot)[0].payload)


def test_gossip_is_shown_only_when_it_is_asked_for(driver: Any, tmp_path: Path) -> None:
    page = shown(driver, tmp_path, drawn("put")[1])
    few = page.run("return rows.length")
    page.press("g")
    assert page.run("return rows.length") == page.run("return steps.length") > few
    page.press("g")
    assert page.run("return rows.length") == few


def test_a_page_of_ten_thousand_events_is_small_enough_and_draws_only_what_is_seen(
    driver: Any, tmp_path: Path
) -> None:
    simulation = RecordedSimulation(5, PROFILES["busy"], 10_000)
    simulation.run()
    page = shown(driver, tmp_path, Drawing(list(simulation.recording.lines(nodes=simulation.nodes))))
    assert page.path.stat().st_size < 2_000_000
    assert page.run("return events.length") == 10_000
    page.run("go(Math.floor(steps.length / 2))")
    assert page.run("return document.querySelectorAll('.row').length") < 100
    took = page.run(
        "return Array.from({length: 60}, (_, i) => { const began = performance.now(); move(i < 40 ? 1 : -1);"
        " document.body.offsetHeight; return performance.now() - began; })"
    )
    assert sorted(took)[30] < 50  # milliseconds: the median, for others may have the processor meanwhile
    assert page.run("return document.querySelectorAll('.row').length") < 100
    forward, backward = page.run(
        "const shown = i => { go(rows[i]); return byId('logs').textContent + byId('flight').textContent; };"
        "const some = rows.map((_, i) => i).filter(i => i % 97 === 0);"
        "go(0); return [some.map(shown), some.reverse().map(shown).reverse()]"
    )
    assert forward == backward and len(set(forward)) > 10
    assert page.run("return copies.length") > 3


def test_what_stays_in_sight_is_not_drawn_again_and_what_leaves_it_is_gone(
    driver: Any, tmp_path: Path
) -> None:
    page = shown(driver, tmp_path, drawn("classic-duel")[1])
    page.run("window.kept = [...document.querySelectorAll('.row, .message')]; move(1)")
    assert page.run("return kept.length && kept.every(one => one.isConnected)")
    assert page.run("return document.querySelectorAll('.row.now').length") == 1
    page.press(Keys.END)
    WebDriverWait(driver, DEADLINE_S).until(lambda _: page.run("return !kept[0].isConnected"))
    rows = "[...document.querySelectorAll('.row')].map(row => row.offsetTop)"
    assert page.run(f"const at = {rows}; return at.length === new Set(at).size && at.length < 100")


def test_a_part_of_a_run_says_what_is_cut_off_and_shows_how_all_stood(driver: Any, tmp_path: Path) -> None:
    cluster = STORIES["catch-up"].play()
    lines = trace.lines_of(cluster.trace, 100, "A text.", nodes=cluster.ids)
    page, whole = shown(driver, tmp_path, Drawing(lines)), Drawing(lines)
    cut = f"the {cluster.trace.last - 100:,} events before"
    assert cut in page.text("text") and page.run("return before.length") and len(whole.events) == 100
    assert page.run("return [...state.nodes].every(([, node]) => !node.up || 1 in node.promised)")
    assert "unknown" not in page.text("logs") and "increment n" in page.text("logs")
    assert "an earlier entry" not in whole.text()


def test_a_page_about_one_slot_shows_no_other_and_what_is_unknown_as_unknown(
    driver: Any, tmp_path: Path
) -> None:
    cluster = STORIES["failing-acceptors"].play()
    events = [json.loads(event.as_json()) for event in cluster.trace.events]
    for event in events:
        event.setdefault("cause", 0)
    last = max(slot for log, slot in cluster.slots if log == 1)
    told = about(events, 1, last)
    before = [state | {"time": 0} for state in standing(events, 1, told[0]["id"]) if state["node"] != 5]
    header = {"nodes": cluster.ids, "only": [1, last], "before": len(before)}
    page = shown(driver, tmp_path, Drawing([json.dumps(line) for line in [header, *before, *told]]))
    head, *rows, disks = page.text("logs").partition("node has promised")[2].splitlines()
    assert head.strip() == f"slot {last}" and page.text("logs").startswith("Log 1")
    assert "memory" not in rows[0] and "1.1" in page.text("logs")
    assert page.text("logs").count("unknown") >= 2 and disks.startswith("disks")  # of node 5


def test_a_phone_has_the_same_story_and_no_scrolling_to_the_side(driver: Any, tmp_path: Path) -> None:
    driver.set_window_size(500, 900)
    try:
        page = shown(driver, tmp_path, drawn("put")[1])
        page.press("c")
        assert "CHOSEN" in page.said()
        assert page.run("return document.documentElement.scrollWidth <= innerWidth")
    finally:
        driver.set_window_size(1280, 900)


def test_a_page_asks_for_nothing_from_anywhere() -> None:
    text = TEMPLATE.read_text()
    assert not re.search(r"""(?:src|href)=|@import|url\(|fetch\(|XMLHttp|import\(""", text)
    assert set(re.findall(r"https?://[^\"]+", text)) == {"http://www.w3.org/2000/svg"}  # a name


@pytest.mark.parametrize("name", STORIES)
def test_pictures_of_a_scenario_have_an_arrow_for_each_message_that_arrives(name: str) -> None:
    _, drawing = drawn(name)
    arrived = [e for step in drawing.shown for e in step.events if e["kind"] == "delivered"]
    assert sum("->>N" in line and "C" not in line[:6] for line in drawing.mermaid().splitlines()) >= len(
        arrived
    )
    picture = ElementTree.fromstring(drawing.svg())
    assert len(picture.findall("{http://www.w3.org/2000/svg}circle")) >= len(arrived)
    assert drawing.text().count("CHOSEN: ") == sum(event["kind"] == "chosen" for event in drawing.events)
