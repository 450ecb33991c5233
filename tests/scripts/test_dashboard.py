"""The live page in a browser, with real nodes: what it shows, what its buttons do, and whom it refuses."""

import http.client
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

from paxoskv.config import WAYS
from tests.harness.browser import chromium
from tests.harness.processes import DEADLINE_S, SCRIPTS, RealCluster, cluster_file, eventually, finish
from tests.scripts.test_scripts import processes_with

SCRIPT = SCRIPTS / "dashboard.py"
PAGE = SCRIPTS / "dashboard.html"


class Dashboard:
    """A running dashboard.py, and the link that it has printed."""

    def __init__(self, directory: Path, *words: str | Path, program: Path = SCRIPT) -> None:
        directory.mkdir(exist_ok=True)
        self.directory = directory
        self.child = subprocess.Popen(
            [*map(str, (program, *words))], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            text=True, env={**os.environ, "TMPDIR": str(directory)},
        )  # fmt: skip
        assert self.child.stdout is not None and self.child.stderr is not None
        self.link = self.child.stdout.readline().strip()
        assert self.link, self.child.stderr.read()
        self.host, _, self.token = self.link.removeprefix("http://").partition("/#")

    def __enter__(self) -> "Dashboard":
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    def end(self, number: int = signal.SIGINT) -> tuple[int, str]:
        """End it; its exit code, and what it said besides."""
        if self.child.poll() is None:
            self.child.send_signal(number)
        said, errors = self.child.communicate(timeout=DEADLINE_S)
        return self.child.returncode, said + errors

    def ask(
        self, method: str, path: str, body: Any = None, **headers: str | None
    ) -> tuple[int, dict[str, str], bytes]:
        """A request, as the page would make it but for these headers (None: without)."""
        usual = {"Host": self.host, "Origin": f"http://{self.host}", "X-Token": self.token}
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        connection = http.client.HTTPConnection(self.host, timeout=DEADLINE_S)
        try:
            connection.putrequest(method, path, skip_host=True)
            content = b"" if body is None else json.dumps(body).encode()
            for name, value in {**usual, **named, "Content-Length": str(len(content))}.items():
                if value is not None:
                    connection.putheader(name, value)
            connection.endheaders(content)
            answer = connection.getresponse()
            return answer.status, dict(answer.getheaders()), answer.read()
        finally:
            connection.close()

    def do(self, **asked: Any) -> dict[str, Any]:
        status, _, body = self.ask("POST", "/do", asked)
        assert status == 200, body
        return dict(json.loads(body))

    def pid(self, node: int) -> int | None:
        """The process of a node of its own cluster."""
        found = [
            pid for pid in processes_with(self.directory)
            if f"--id\0{node}\0" in Path(f"/proc/{pid}/cmdline").read_text()
        ]  # fmt: skip
        return found[0] if found else None


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Dashboard]:
    with Dashboard(tmp_path_factory.mktemp("demo"), "--demo") as dashboard:
        yield dashboard


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    with chromium(tmp_path_factory.mktemp("chromium")) as driver:
        yield driver


class Page:
    """The page in the browser."""

    def __init__(self, driver: Any, dashboard: Dashboard) -> None:
        self.driver = driver
        driver.get("about:blank")
        driver.get(dashboard.link)
        nodes = "5 of 5"
        self.await_text("serving", nodes)

    def text(self, id_: str) -> str:
        return str(self.driver.find_element(By.ID, id_).text)

    def await_text(self, id_: str, text: str) -> None:
        eventually(lambda: text in self.text(id_), f"{id_} says {text!r}, it says {self.text(id_)!r}")

    def node(self, number: int) -> Any:
        return self.driver.find_elements(By.CLASS_NAME, "node")[number - 1]

    def await_node(self, number: int, text: str) -> None:
        eventually(lambda: text in self.node(number).text, f"node {number} is {text}")

    def press(self, words: str, node: int) -> None:
        self.driver.find_element(By.CSS_SELECTOR, f'button[aria-label="{words}: node {node}"]').click()

    def command(self, text: str) -> None:
        box = self.driver.find_element(By.ID, "text")
        box.clear()
        box.send_keys(text, Keys.ENTER)

    def link(self, name: str) -> Any:
        """The line between two nodes, such as 1-3."""
        return self.driver.find_element(By.CSS_SELECTOR, f'.link[aria-label^="link {name}:"]')

    def applied(self) -> int:
        """Entries that node 1 has applied, all logs together, as its row says."""
        found = re.search(r"applied ([\d,]+)", self.node(1).text)
        return int(found[1].replace(",", "")) if found else 0


# ---------------------------------------------------------------------------------------------- what it shows


@pytest.mark.slow
def test_a_put_in_the_command_box_is_answered_and_the_lanes_grow(driver: Any, demo: Dashboard) -> None:
    page = Page(driver, demo)
    before = page.applied()
    driver.find_element(By.TAG_NAME, "body").send_keys("/")  # the key that leads to the box
    page.command("put color 'light green'")
    page.await_text("said", "put color 'light green': ok (")
    page.command("get color")
    page.await_text("said", "get color: 'light green' (")
    eventually(lambda: page.applied() > before, "the row counts one entry more")
    assert (
        driver.execute_script(
            "return document.querySelector('.track .applied').getBoundingClientRect().width"
        )
        > 0
    )
    eventually(
        lambda: re.fullmatch(r"median under [\d.]+, p99 under [\d.]+", page.text("spread")), "the spread"
    )
    page.command("delete color")
    page.await_text("said", "delete color: ok (")
    page.command("get color")
    page.await_text("said", "get color: not found (")
    page.command("put color")
    page.await_text("said", "put color: commands: put KEY VALUE, ")
    page.command("put 'color")
    page.await_text("said", "put 'color: No closing quotation")


@pytest.mark.slow
def test_a_node_that_nobody_has_heard_yet_does_not_look_well(driver: Any, demo: Dashboard) -> None:
    Page(driver, demo)
    colors = driver.execute_script(
        "const color = name => { const one = rows.get(1).whole; one.className = name;"
        " return getComputedStyle(one).borderLeftColor; };"
        "const ring = name => { spots.get(1).group.setAttribute('class', name);"
        " return getComputedStyle(spots.get(1).group.firstChild).stroke; };"
        "return [color('node'), color('node well'), ring('spot'), ring('spot well')];"
    )
    assert colors[0] != colors[1] and colors[2] != colors[3] and colors[1] == colors[3]


@pytest.mark.slow
def test_a_killed_node_shows_and_one_that_is_started_again_serves(driver: Any, demo: Dashboard) -> None:
    page = Page(driver, demo)
    page.press("kill", 3)
    page.await_node(3, "down")
    assert demo.pid(3) is None
    page.await_text("serving", "4 of 5")
    page.command("put x 1")  # only now somebody needs to know that log 3 has nothing earlier
    page.await_text("said", "put x 1: ok")
    page.await_text("feed", "takes over the log of node 3")
    page.press("start", 3)
    page.await_text("serving", "5 of 5")
    page.await_text("feed", "node 3 serves")
    pid = demo.pid(3)
    assert pid is not None
    os.kill(pid, signal.SIGKILL)  # by somebody else
    page.await_node(3, "down")
    page.press("start", 3)
    page.await_text("serving", "5 of 5")


@pytest.mark.slow
def test_a_paused_node_is_silent_until_it_is_resumed(driver: Any, demo: Dashboard) -> None:
    page = Page(driver, demo)
    page.press("pause", 2)
    page.await_node(2, "silent")
    page.press("resume", 2)
    page.await_text("serving", "5 of 5")


@pytest.mark.slow
def test_the_page_says_who_waits_for_whom(driver: Any, tmp_path: Path) -> None:
    file = cluster_file(tmp_path, 5, revoke_after_s=5)
    with Dashboard(tmp_path / "tmp", "--demo", "--cluster", file) as dashboard:
        page = Page(driver, dashboard)
        page.press("pause", 2)
        page.await_node(2, "silent")
        page.command("put x 1")
        page.await_text("feed", "node 1 waits for log 2: may something earlier come?")
        page.await_text("said", "put x 1: ok")
        page.await_text("feed", "takes over the log of node 2")
        driver.get("about:blank")


@pytest.mark.slow
def test_a_link_is_cut_and_healed_by_the_keyboard_as_well(driver: Any, demo: Dashboard) -> None:
    page = Page(driver, demo)
    eventually(lambda: page.link("1-4").get_attribute("aria-label") == "link 1-4: works", "it works")
    page.link("1-4").send_keys(Keys.ENTER)
    eventually(lambda: page.link("1-4").get_attribute("aria-label") == "link 1-4: cut", "it is cut")
    page.await_text("feed", "link 1-4 is gone")
    page.command("put x 2")
    page.await_text("said", "put x 2: ok")
    page.link("1-4").send_keys(" ")
    eventually(lambda: page.link("1-4").get_attribute("aria-label") == "link 1-4: works", "it is healed")
    page.await_text("feed", "link 1-4 works again")


@pytest.mark.slow
def test_an_acceptor_fails_on_request(driver: Any, demo: Dashboard) -> None:
    page = Page(driver, demo)
    page.press("fail acceptor", 5)
    page.await_node(5, "acceptor fails")
    log = next(demo.directory.rglob("node-5.log"))
    eventually(lambda: "acceptor=0.5" in log.read_text(), "the node has heard of it")
    page.press("fail acceptor", 5)
    eventually(lambda: "acceptor fails" not in page.node(5).text, "it works again")
    page.press("fail acceptor", 4)
    page.await_node(4, "acceptor fails")
    driver.find_element(By.ID, "calm").click()
    eventually(lambda: "acceptor fails" not in page.node(4).text, "all is healed")


@pytest.mark.slow
def test_a_workload_moves_the_figures_and_is_stopped(driver: Any, demo: Dashboard) -> None:
    page = Page(driver, demo)
    page.command("run 60 50")
    eventually(lambda: page.text("rate") not in ("-", "0"), "operations per second are shown")
    eventually(lambda: page.text("latency") != "-", "so is how long they take")
    eventually(lambda: driver.find_element(By.ID, "stop").is_enabled(), "it can be stopped")
    driver.find_element(By.ID, "stop").click()
    page.await_text("said", "run 60 50:")
    eventually(lambda: page.text("rate") == "0", "it is over")


@pytest.mark.slow
def test_a_scenario_and_an_explanation_open_as_pages_to_step_through(driver: Any, demo: Dashboard) -> None:
    page = Page(driver, demo)
    driver.find_element(By.CSS_SELECTOR, "#scenarios summary").click()
    listed = '//button[starts-with(., "put: ")]'
    eventually(lambda: driver.find_elements(By.XPATH, listed), "the scenarios are listed")
    driver.find_element(By.XPATH, listed).click()
    opened = '//a[. = "open the page of put"]'
    eventually(lambda: driver.find_elements(By.XPATH, opened), "its page is made")
    page.command("trace on")
    page.await_text("said", "node 5: records")
    page.command("put color green")
    page.await_text("said", "put color green: ok")
    page.command("explain color")
    page.await_text("said", "how the last value of 'color' was chosen")
    links = [driver.find_element(By.XPATH, opened).get_attribute("href")]
    links += [link.get_attribute("href") for link in driver.find_elements(By.CSS_SELECTOR, "#said a")[:1]]
    for link in links:
        driver.get(link)
        assert "color=green" in driver.find_element(By.TAG_NAME, "body").text
    assert demo.do(do="command", text="trace off")["ok"]


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS[1:])
def test_the_two_ways_with_one_log_are_shown(driver: Any, tmp_path: Path, way: str) -> None:
    with Dashboard(tmp_path / "demo", "--demo", "--proposing", way) as dashboard:
        page = Page(driver, dashboard)
        for number in range(2):
            page.command(f"put x {number}")
            page.await_text("said", f"put x {number}: ok")
        page.await_text("logs", "the log")
        assert driver.execute_script("return lanes.size") == 1
        starred = '//*[@id="nodes"]//*[starts-with(., "★ ")]'
        eventually(lambda: driver.find_elements(By.XPATH, starred), "one leads, or has the highest ballot")
        page.press("kill", 1)
        page.await_node(1, "down")
        page.command("put x 3")
        page.await_text("said", "put x 3: ok")
        assert dashboard.do(do="command", text="trace on")["ok"]
        assert dashboard.do(do="command", text="put x 4")["ok"]
        explained = dashboard.do(do="command", text="explain x")
        status, _, html = dashboard.ask("GET", explained["link"])
        assert status == 200 and b"put x=4" in html
        driver.get("about:blank")


@pytest.mark.slow
def test_a_phone_has_all_of_it_and_no_scrolling_to_the_side(driver: Any, demo: Dashboard) -> None:
    driver.set_window_size(500, 900)
    try:
        page = Page(driver, demo)
        assert driver.execute_script("return document.documentElement.scrollWidth <= innerWidth")
        assert page.node(5).is_displayed() and driver.find_element(By.ID, "text").is_displayed()
    finally:
        driver.set_window_size(1280, 900)


# -------------------------------------------------------------------------------------------- whom it refuses


def test_the_page_asks_for_nothing_from_elsewhere() -> None:
    text = PAGE.read_text()
    assert not re.search(r"""\bsrc=|@import|url\(|XMLHttp|import\(|innerHTML""", text)
    assert set(re.findall(r"https?://[^\"]+", text)) == {"http://www.w3.org/2000/svg"}  # a name


@pytest.mark.slow
def test_a_page_from_elsewhere_gets_and_does_nothing(demo: Dashboard) -> None:
    kill = {"do": "kill", "node": 1}
    for method, path in (("POST", "/do"), ("GET", "/events"), ("GET", "/page/1")):
        for wrong in (
            {"X_Token": None}, {"X_Token": "guess"}, {"Origin": "http://example.org"}, {"Origin": "null"},
            {"Host": "example.org"}, {"Host": demo.host.replace("127.0.0.1", "example.org")}, {"Host": None},
        ):  # fmt: skip
            status, _, _ = demo.ask(method, path, kill if method == "POST" else None, **wrong)
            assert status == 403, (method, path, wrong)
    assert demo.ask("POST", "/do", kill, Origin=None)[0] == 403, "a browser always tells the origin of a POST"
    assert demo.ask("GET", "/", Host="example.org")[0] == 403
    assert demo.ask("GET", "/do")[0] == 404
    assert demo.pid(1) is not None
    status, headers, body = demo.ask("GET", "/", X_Token=None, Origin=None)
    assert status == 200 and demo.token.encode() not in body
    assert "frame-ancestors 'none'" in headers["Content-Security-Policy"]


@pytest.mark.slow
def test_what_makes_no_sense_is_refused_in_a_line(demo: Dashboard) -> None:
    for asked, told in (
        ({"do": "kill", "node": 9}, "there is no such node"),
        ({"do": "kill", "node": "1; reboot"}, "there is no such node"),
        ({"do": "cut", "node": 1, "to": 1}, "a link has two ends"),
        ({"do": "serve"}, "nothing that can be done here"),
        ({"do": "start", "node": [1]}, "there is no such node"),
        ({"do": "command", "text": "get"}, "commands: put KEY VALUE"),
        ({"do": "command", "text": "run 1 x"}, "'x' is not a whole number"),
        ({"do": "command", "text": "run 0"}, "run [SECONDS [PER SECOND]]"),
        ({"do": "scenario", "name": "../x"}, "invalid choice"),
        ({"do": "command", "text": "explain nothing-like-it"}, "record"),
    ):
        done = demo.do(**asked)
        assert not done["ok"] and told in done["text"] and "Traceback" not in done["text"], done
    assert demo.do(do="kill")["text"] == "there is no such node"
    with pytest.raises((http.client.HTTPException, OSError)):
        demo.ask("POST", "/do", Content_Length="x")


@pytest.mark.slow
def test_without_demo_a_running_cluster_is_watched_and_cannot_be_harmed(tmp_path: Path) -> None:
    with RealCluster(tmp_path, nodes=3, faults="faults.json") as cluster:
        words = ["--cluster", cluster.file, "--data", cluster.data]
        with Dashboard(tmp_path / "tmp", *words) as dashboard:
            for action in ("kill", "pause", "cut", "fail", "calm"):
                done = dashboard.do(do=action, node=1, to=2)
                assert done == {"ok": False, "text": "nothing that can be done here"}
            assert dashboard.do(do="command", text="put x 1", node=2)["ok"]
            code, said = dashboard.end()
        assert (code, said) == (130, "")
        assert all(process.running for process in cluster.nodes.values()), "they were there before"
        with Dashboard(tmp_path / "tmp", "--demo", *words) as dashboard:
            for action in ("cut", "fail"):
                assert dashboard.do(do=action, node=1, to=2)["ok"]
            assert dashboard.do(do="pause", node=3)["ok"]
            dashboard.end()
        assert not (tmp_path / "faults.json").exists(), "what it has cut is healed"
        cluster.wait_until_stores_are_equal()  # and what it has paused goes on


# --------------------------------------------------------------------------------------------- how it ends


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "program"),
    [(signal.SIGINT, (SCRIPTS / "demo.sh", "--page")), (signal.SIGTERM, (SCRIPT, "--demo"))],
)
def test_its_end_leaves_nothing_behind_that_it_has_started(
    tmp_path: Path, number: int, program: tuple[Path, str]
) -> None:
    with Dashboard(tmp_path / "tmp", *program[1:], program=program[0]) as dashboard:
        assert dashboard.ask("GET", "/")[0] == 200
        assert len(processes_with(tmp_path)) >= 5
        assert dashboard.do(do="pause", node=1)["ok"]
        with ThreadPoolExecutor() as pool:
            run = pool.submit(dashboard.do, do="command", text="run 600 5")
            eventually(lambda: processes_with("workload.csv\0--cluster\0" + str(tmp_path)), "a workload runs")
            code, said = dashboard.end(number)
            with suppress(http.client.HTTPException, OSError):
                run.result()
    assert (code, said) == (130, "")
    assert not processes_with(tmp_path) and not list((tmp_path / "tmp").iterdir())


@pytest.mark.slow
def test_an_interrupted_start_leaves_nothing_behind(tmp_path: Path) -> None:
    child = subprocess.Popen(
        [sys.executable, str(SCRIPT), "--demo"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "TMPDIR": str(tmp_path)},
    )  # fmt: skip
    eventually(lambda: any(tmp_path.rglob("node-*.log")), "nodes are being started")
    child.send_signal(signal.SIGINT)
    said = child.communicate(timeout=DEADLINE_S)
    assert (child.returncode, said) == (130, ("", ""))
    assert not processes_with(tmp_path) and not list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_cluster_that_does_not_run_is_started_and_stopped_again(tmp_path: Path) -> None:
    file = cluster_file(tmp_path, 3)
    for _ in range(2):  # the second start goes on with its data
        with Dashboard(tmp_path / "tmp", "--cluster", file) as dashboard:
            assert len(processes_with(file)) >= 3 + 1
            assert dashboard.do(do="command", text="incr n")["ok"]
            assert dashboard.end()[0] == 130
        assert not processes_with(file)
    assert (tmp_path / "data").is_dir()


def test_what_cannot_be_shown_is_told_in_a_line(tmp_path: Path) -> None:
    far = cluster_file(tmp_path, 3)
    far.write_text(far.read_text().replace("127.0.0.1", "192.0.2.1"))
    for words, code, told in (
        (["--cluster", tmp_path / "none.json"], 2, "No such file or directory"),
        (["--cluster", far, "--demo"], 2, "are not on this machine"),
        (["--cluster", far], 3, "no node can be reached"),
        (["--proposing", "leader"], 2, "--proposing is for the cluster that --demo makes"),
    ):
        done = finish([sys.executable, SCRIPT, *words], env={**os.environ, "TMPDIR": str(tmp_path)})
        assert done.returncode == code and told in done.stderr and "Traceback" not in done.stderr
    assert not list(tmp_path.glob("dashboard-*"))
