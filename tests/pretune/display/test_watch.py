"""The page that follows sweeps: who may see it, what it is told, and how it looks in a real browser."""

from __future__ import annotations

import asyncio
import http.client
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib import resources
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import pytest

from pretune.analysis import following
from pretune.analysis.watched import Folder, OneSweep, Watched
from pretune.core import journal
from pretune.core.journal import Journal
from pretune.core.lines import line_of
from pretune.core.records import Asked, Closed, Ended, Epoch, Opened, Record, Resumed, Started
from pretune.display import watch
from tests.toys import BASE, experiment

TOKEN = "the-token"
STORED = Path(__file__).parents[2] / "stored" / "sweeps"
EVIL = "<script>document.title='evil'</script><img src=x onerror=\"document.title='evil'\">"


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """The server looks for news ten times as often, and nothing waits for the disk."""
    monkeypatch.setattr(os, "fsync", lambda handle: None)
    for module, name in ((watch, "EVERY_S"), (watch, "SLOWLY_S"), (watch, "LIST_S"), (following, "LOCK_EVERY_S")):
        monkeypatch.setattr(module, name, getattr(module, name) / 10)


@contextmanager
def served(
    watched: Watched, *, port: int = 0, closing: watch.Closing = lambda followed: "the closing screen"
) -> Iterator[str]:
    """The page's address, with its server in a thread."""
    listener, ready = watch.listening(port), threading.Event()
    tasks: list[asyncio.Task[Any]] = []

    async def serve() -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.append(task)
        await watch.serve(watched, listener, TOKEN, closing, ready.set)

    def run() -> None:
        with suppress(asyncio.CancelledError):
            asyncio.run(serve())

    thread = threading.Thread(target=run)
    thread.start()
    try:
        assert ready.wait(10)
        yield watch.address(listener, TOKEN)
    finally:
        tasks[0].get_loop().call_soon_threadsafe(tasks[0].cancel)
        thread.join(10)
        listener.close()
        for followed in watched.sweeps().values():
            followed.close()


def ask(address: str, path: str, *, method: str = "GET", host: str | None = None) -> tuple[int, dict[str, str], str]:
    there = urlsplit(address)
    connection = http.client.HTTPConnection(there.hostname or "", there.port, timeout=60)
    connection.putrequest(method, path, skip_host=host is not None)
    if host is not None:
        connection.putheader("Host", host)
    connection.endheaders()
    answer = connection.getresponse()
    found = answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read().decode()
    connection.close()
    return found


def told(address: str, query: str, wanted: str, *, last: str = "") -> tuple[dict[str, Any], str]:
    """The first event called `wanted`, and the mark that it has."""
    there = urlsplit(address)
    connection = http.client.HTTPConnection(there.hostname or "", there.port, timeout=60)
    connection.request("GET", f"{there.path}events{query}", headers={"Last-Event-ID": last} if last else {})
    answer = connection.getresponse()
    mark = name = ""
    while line := answer.readline().decode():
        field, _, value = line.rstrip("\n").partition(": ")
        if field == "id":
            mark = value
        elif field == "event":
            name = value
        elif field == "data" and name == wanted:
            connection.close()
            return json.loads(value), mark
        elif not field:
            mark = ""
    raise AssertionError(f"no event {wanted}")


def trial(number: int, values: list[float], state: str | None, *, reason: str = "", **params: Any) -> Iterator[Record]:
    config = BASE.model_copy(update={"seed": number}).model_dump(mode="json")
    yield Asked(number=number, params={"rate": 0.1 * (number + 1), **params}, distributions={}, config=config)
    yield Started(number=number, attempt=0, epoch=0)
    for epoch, value in enumerate(values, start=1):
        yield Epoch(number=number, epoch=epoch, metrics={"probe/linear": value, "probe/linear_stderr": 0.0123})
    if state is not None:
        final = values[-1] if state == "COMPLETE" else None
        yield Ended.model_validate({"number": number, "state": state, "value": final, "reason": reason})


def swept(folder: Path, *records: Iterator[Record]) -> Journal:
    """A sweep whose driver still has the journal."""
    book = Journal(folder, new=True)
    book.append(Opened(experiment=experiment(folder.parent, name=folder.name)))
    for of_trial in records:
        for record in of_trial:
            book.append(record)
    return book


def three(folder: Path) -> Journal:
    return swept(
        folder,
        trial(0, [0.4, 0.6, 0.7, 0.75, 0.8, 0.81], "COMPLETE"),
        trial(1, [0.2], "PRUNED", reason="probe/linear 0.2 at 1 epochs is not among the best 1 of 2"),
        trial(2, [0.5, 0.65], None),
    )


# ---- who may see it --------------------------------------------------------------------------------------------------


def test_only_who_knows_the_token_is_answered(tmp_path: Path) -> None:
    with three(tmp_path / "s"), served(Folder(tmp_path)) as address:
        assert ask(address, f"/{TOKEN}/")[0] == 200
        for path in ("/", "/events", "/the-tokem/", "/the-token-/", "/the-toke/page.js", "/%ff/", "//x/", "/page.js"):
            status, headers, text = ask(address, path)
            assert status == 403, path
            assert "script" not in text
            assert TOKEN not in text
            assert "default-src 'none'" in headers["content-security-policy"]
        for path in ("page.js", "page.css", "icon.svg", "trial?sweep=s&number=0", "closing?sweep=s"):
            status, headers, _ = ask(address, f"/{TOKEN}/{path}")
            assert (status, headers["referrer-policy"]) == (200, "no-referrer"), path
            assert headers["cache-control"] == "no-store"
        missing = (
            "nothing.js",
            "trial?sweep=s&number=9",
            "trial?sweep=s&number=x",
            "trial?sweep=..&number=0",
            "..%2fx",
        )
        for path in missing:
            assert ask(address, f"/{TOKEN}/{path}")[0] == 404, path


def test_another_name_for_this_machine_is_refused(tmp_path: Path) -> None:
    with served(Folder(tmp_path)) as address:
        for host in ("127.0.0.1", "localhost:9000", "127.0.0.1:1", "LOCALHOST", "[::1]:80", "[::1]"):
            assert ask(address, f"/{TOKEN}/", host=host)[0] == 200, host
        for host in ("evil.example", "evil.example:8765", "127.0.0.1.evil.example", "localhost.evil.example:80", ""):
            assert ask(address, f"/{TOKEN}/", host=host)[0] == 403, host


def test_nothing_but_get_is_answered_and_nothing_is_written(tmp_path: Path) -> None:
    with three(tmp_path / "s"), served(Folder(tmp_path)) as address:
        before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
        for method in ("POST", "PUT", "DELETE", "PATCH", "OPTIONS", "HEAD"):
            assert ask(address, f"/{TOKEN}/", method=method)[0] == 405, method
        told(address, "?sweep=s", "slots")
        ask(address, f"/{TOKEN}/trial?sweep=s&number=0")
        assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


def test_it_listens_on_the_loopback_interface_alone_and_a_taken_port_is_refused() -> None:
    with watch.listening(0) as first:
        assert first.getsockname()[0] == "127.0.0.1"
        with pytest.raises(ValueError, match=r"--port \d+ cannot be listened on \(it is in use\); choose another"):
            watch.listening(first.getsockname()[1])


def test_the_page_is_in_the_package_and_loads_nothing_from_elsewhere() -> None:
    page = resources.files("pretune.display") / "page"
    files = {file.name: file.read_text(encoding="utf-8") for file in page.iterdir()}
    assert {"index.html", "page.css", "page.js", "icon.svg"} <= files.keys()
    for name, text in files.items():
        outside = [word for word in text.replace("http://www.w3.org/2000/svg", "").split() if "://" in word]
        assert not outside, (name, outside)
        assert "innerHTML" not in text
        assert "outerHTML" not in text
        assert "insertAdjacentHTML" not in text
    assert "<script>" not in files["index.html"]
    assert "style=" not in files["index.html"]


# ---- what it is told -------------------------------------------------------------------------------------------------


def test_a_page_that_was_away_is_told_what_came_since(tmp_path: Path) -> None:
    with three(tmp_path / "s") as book, served(OneSweep(tmp_path / "s")) as address:
        first, mark = told(address, "?sweep=s", "trials")
        assert first["reset"]
        assert [row[0] for row in first["trials"]] == [0, 1, 2]
        assert first["curves"]["2"] == [[1, 2], [0.5, 0.65]]
        book.append(Epoch(number=2, epoch=3, metrics={"probe/linear": 0.7}))
        for last, query in ((mark, ""), ("", f"&since={quote(mark)}")):
            since, _ = told(address, f"?sweep=s{query}", "trials", last=last)
            assert not since["reset"]
            assert [row[0] for row in since["trials"]] == [2]
            assert since["curves"] == {"2": [[1, 2, 3], [0.5, 0.65, 0.7]]}
        for unknown in ("nonsense", "0.5", f"{mark}x", "x.99999"):
            assert told(address, "?sweep=s", "trials", last=unknown)[0]["reset"]


def test_all_sweeps_of_a_folder_are_listed_as_they_come(tmp_path: Path) -> None:
    shutil.copytree(STORED / "complete", tmp_path / "complete")
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "journal.jsonl").write_text("nonsense\n")
    with served(Folder(tmp_path)) as address:
        found, _ = told(address, "", "sweeps")
        assert [one["key"] for one in found["sweeps"]] == ["complete", "broken"]
        assert found["sweeps"][0]["status"] == "finished"
        assert "is corrupt" in found["sweeps"][1]["problem"]
    with served(Folder(tmp_path / "nowhere")) as address:
        assert told(address, "", "sweeps")[0]["sweeps"] == []


def test_the_closing_screen_is_that_of_show(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from pretune.cli.watch import closing_screen

    monkeypatch.chdir(tmp_path)
    for name in ("complete", "ablation"):
        shutil.copytree(STORED / name, tmp_path / "sweeps" / name)
    with served(Folder(tmp_path / "sweeps"), closing=closing_screen) as address:
        complete = json.loads(ask(address, f"/{TOKEN}/closing?sweep=complete")[2])["text"]
        assert "best, trial 3" in complete
        assert "same encoder, untrained" in complete
        assert "pretune finalize complete" in complete
        ablation = json.loads(ask(address, f"/{TOKEN}/closing?sweep=ablation")[2])["text"]
        assert "to base" in ablation


# ---- the command -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_the_command_prints_its_address_alone_and_ends_when_it_is_told(
    tmp_path: Path, number: signal.Signals, code: int
) -> None:
    three(tmp_path / "s").close()
    program = (
        f"import signal; signal.signal(signal.{number.name}, signal.SIG_DFL); from pretune.__main__ import main; main()"
    )
    environment = {key: value for key, value in os.environ.items() if key not in ("DISPLAY", "WAYLAND_DISPLAY")}
    with subprocess.Popen(
        [sys.executable, "-c", program, "watch", "s", "--storage", str(tmp_path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    ) as process:
        try:
            assert process.stdout is not None
            address = process.stdout.readline().strip()
            assert told(address, "?sweep=s", "sweep")[0]["status"] == "killed"
            page = http.client.HTTPConnection("127.0.0.1", urlsplit(address).port, timeout=10)
            page.request("GET", f"{urlsplit(address).path}events?sweep=s")  # a page that stays open
            page.getresponse().readline()
            process.send_signal(number)
            out, said = process.communicate(timeout=10)
            page.close()
        finally:
            process.kill()
    assert process.returncode == code, said
    assert out == ""
    assert "ssh -L" in said
    assert said.endswith("the page has ended; sweeps go on\n")


# ---- in a browser ----------------------------------------------------------------------------------------------------


@contextmanager
def opened(browser: Any, address: str, *, width: int = 1280, height: int = 900, dark: bool = False) -> Iterator[Any]:
    """A page; what goes wrong in it fails the test."""
    page = browser.new_page(viewport={"width": width, "height": height}, color_scheme="dark" if dark else "light")
    page.set_default_timeout(20_000)
    wrong: list[str] = []
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("console", lambda said: wrong.append(said.text) if "Content Security" in said.text else None)
    page.goto(address)
    try:
        yield page
        assert not wrong
    finally:
        page.close()


def test_a_stored_sweep_is_drawn_and_a_trial_tells_its_story(browser: Any, tmp_path: Path) -> None:
    shutil.copytree(STORED / "complete", tmp_path / "complete")
    log = tmp_path / "complete" / "trials" / "0000" / "log.txt"
    log.parent.mkdir()
    log.write_text("first line\n\x1b[31mlast line\x1b[0m\n")
    with served(Folder(tmp_path)) as address, opened(browser, address) as page:
        page.click("#sweeps a")
        page.wait_for_selector(".row >> nth=5")
        assert page.inner_text("#status") == "finished"
        assert "trial 3" in page.inner_text("#best-of")
        assert page.inner_text("#closing-text") == "the closing screen"
        assert "curve" in page.inner_text("#chart-note").lower()
        # By keyboard alone.
        page.focus(".scroller")
        page.keyboard.press("End")
        page.keyboard.press("Home")
        page.keyboard.press("Enter")
        page.wait_for_selector("#trial[open] #trial-changes td")
        assert page.inner_text("#trial-title") == "Trial 3"
        page.keyboard.press("Escape")
        page.wait_for_selector("#trial", state="hidden")
        assert page.evaluate("document.activeElement.className") == "scroller"
        page.fill("#filter", "0")
        page.wait_for_selector("#table-note:has-text('1 of ')")
        page.click("#row-0")
        page.wait_for_selector("#trial-log:has-text('last line')")
        assert page.inner_text("#trial-log") == "first line\nlast line"
        assert "trial=0" in page.evaluate("location.hash")
        page.go_back()
        page.wait_for_selector("#trial", state="hidden")


def test_records_that_are_written_are_followed(browser: Any, tmp_path: Path) -> None:
    with three(tmp_path / "s") as book, served(OneSweep(tmp_path / "s")) as address, opened(browser, address) as page:
        page.wait_for_selector("#slots >> text=trial 2")
        assert page.inner_text("#status") == "running"
        book.append(Epoch(number=2, epoch=3, metrics={"probe/linear": 0.912, "probe/linear_stderr": 0.01}))
        page.wait_for_selector("#row-2 >> text=0.912 ± 0.010")
        for record in trial(3, [0.33], None):
            book.append(record)
        page.wait_for_selector("#slots >> text=slot 2")
        for record in (
            Ended(number=2, state="COMPLETE", value=0.912),
            Ended(number=3, state="FAIL", reason=EVIL),
            Closed(reason="finished"),
        ):
            book.append(record)
        page.wait_for_selector("#status:has-text('finished')")
        page.wait_for_selector("#closing-text:has-text('the closing screen')")
        page.wait_for_selector("#row-3 .s-FAIL")
        assert "trial 2" in page.inner_text("#best-of")
        book.append(Resumed(trials=20))
        page.wait_for_selector("#of >> text=of 20 done")
        page.wait_for_selector("#closing", state="hidden")


def test_names_and_reasons_are_text_whatever_is_in_them(browser: Any, tmp_path: Path) -> None:
    records = trial(0, [0.5], "FAIL", reason=EVIL, **{f"kernel{EVIL}": EVIL})
    with swept(tmp_path / "s", records) as book, served(Folder(tmp_path)) as address:
        log = tmp_path / "s" / "trials" / "0000" / "log.txt"
        log.parent.mkdir(parents=True)
        log.write_text(EVIL)
        with opened(browser, address) as page:
            page.click("#sweeps a")
            page.click("#row-0")
            page.wait_for_selector("#trial-log")
            assert EVIL in page.inner_text("#trial-reason")
            assert EVIL in page.inner_text("#trial-log")
            assert page.evaluate("document.querySelectorAll('script:not([src]), img[onerror]').length") == 0
            assert "evil" not in page.title()
        book.append(Closed(reason="failed", detail=EVIL))


@pytest.mark.parametrize("dark", [False, True])
def test_a_phone_shows_all_of_it_without_scrolling_sideways(browser: Any, tmp_path: Path, dark: bool) -> None:
    long = {"a_parameter_with_a_name_that_is_long." * 3: "a value that is longer than the phone is wide " * 3}
    records = trial(3, [0.3], "INFEASIBLE", reason="x" * 300, **long)
    with three(tmp_path / "s") as book, served(Folder(tmp_path)) as address:
        for record in records:
            book.append(record)
        with opened(browser, address, width=360, height=740, dark=dark) as page:

            def fits() -> bool:
                return bool(page.evaluate("document.documentElement.scrollWidth <= innerWidth"))

            page.wait_for_selector("#sweeps a")
            assert fits()
            page.click("#sweeps a")
            page.wait_for_selector("#row-3")
            assert fits()
            page.click("#row-3")
            page.wait_for_selector("#trial-reason")
            assert fits()
            # Text against its ground, as the eye sees it: what is lighter in the dark.
            ground, ink = (
                page.evaluate(f"getComputedStyle(document.body).{name}.match(/\\d+/g).slice(0, 3).map(Number)")
                for name in ("backgroundColor", "color")
            )
            assert (sum(ground) < sum(ink)) == dark


def test_a_page_goes_on_when_its_server_was_away(browser: Any, tmp_path: Path) -> None:
    with three(tmp_path / "s") as book:
        with served(OneSweep(tmp_path / "s")) as address:
            page = browser.new_page()
            page.set_default_timeout(20_000)
            page.goto(address)
            page.wait_for_selector("#row-2")
        try:
            page.wait_for_selector("#lost:has-text('Connection lost')")
            book.append(Epoch(number=2, epoch=3, metrics={"probe/linear": 0.777}))
            with served(OneSweep(tmp_path / "s"), port=urlsplit(address).port or 0):
                page.wait_for_selector("#row-2 >> text=0.777")
                page.wait_for_selector("#lost", state="hidden")
                assert page.inner_text("#connection") == "connected"
        finally:
            page.close()


def test_a_sweep_that_comes_and_goes_is_waited_for(browser: Any, tmp_path: Path) -> None:
    with served(OneSweep(tmp_path / "s")) as address, opened(browser, address) as page:
        page.wait_for_selector("#waiting:has-text('There is no such sweep yet')")
        three(tmp_path / "s").close()
        page.wait_for_selector("#row-0")
        (tmp_path / "s").rename(tmp_path / "renamed")
        page.wait_for_selector("#notes:has-text('removed or renamed')")
        swept(tmp_path / "s", trial(0, [0.123], None)).close()
        page.wait_for_selector("#table-note:has-text('1 trial')")
        page.wait_for_selector("#row-0 >> text=0.123")
        assert page.locator("#row-1").count() == 0, "of the sweep that was there before"


def test_ten_thousand_trials_are_there_at_once_and_only_those_in_sight_are_in_the_page(
    browser: Any, tmp_path: Path
) -> None:
    count, checksum, lines = 10_000, 0, []
    records: list[Record] = [Opened(experiment=experiment(tmp_path, trials=count))]
    for number in range(count):
        records.append(Asked(number=number, params={"rate": 0.1}, distributions={}, config=None))
        records.append(Epoch(number=number, epoch=1, metrics={"probe/linear": number / 1e4}))
        records.append(Ended(number=number, state="COMPLETE", value=number / 1e4))
    records.append(Asked(number=count, params={"rate": 0.2}, distributions={}, config=None))
    for record in records:
        # As `Journal.append` writes it, thirty thousand times.
        line, checksum = line_of(record.model_dump_json().encode(), checksum)
        lines.append(line)
    path = tmp_path / "s" / journal.FILE
    path.parent.mkdir()
    path.write_bytes(b"".join(lines[:-1]))
    with served(OneSweep(tmp_path / "s")) as address:
        ask(address, f"/{TOKEN}/trial?sweep=s&number=0")  # it has been read
        with opened(browser, address) as page:
            begin = time.monotonic()
            page.wait_for_selector("#table-note:has-text('10,000 trials')")
            page.wait_for_selector("#row-9999")
            assert time.monotonic() - begin < 20.0, "it hangs"
            assert page.locator(".row").count() < 60
            page.evaluate("document.querySelector('.scroller').scrollTop = 1e9")
            page.wait_for_selector("#row-0")
            assert page.locator(".row").count() < 60
            with path.open("ab") as file:
                file.write(lines[-1])
            page.wait_for_selector("#table-note:has-text('10,001 trials')")
