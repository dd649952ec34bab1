"""How soon the page of `pretune watch` shows a sweep of many trials, and what it costs to follow it.

The sweep is that of scale.py: toy epochs, a third of the trials goes on at each rung. Told are

* the server's work, in seconds of the processor: reading the journal from its beginning, making all that a page is told
  first, with its size, and one more record of a trial that runs, from the journal to what is sent;
* by the clock, in Chromium on the same machine: from the request of the page until its first row is drawn, once the
  server has read the journal, and until a filter and another order are.

Run: python -m benchmarks.watch [--trials 100 1000 10000] [--repeats 3]
Target at 10,000 trials: the first row within 2 s.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TypeVar
from unittest import mock

import scale  # type: ignore[import-not-found]  # beside this script

from pretune.analysis.following import Followed
from pretune.core.journal import Journal
from pretune.core.records import Asked, Epoch, Opened, Resumed
from pretune.display.watch import _text

Result = TypeVar("Result")


def processor(act: Callable[[], Result]) -> tuple[float, Result]:
    begin = time.process_time()
    result = act()
    return time.process_time() - begin, result


def followed_text(followed: Followed, mark: str) -> str:
    return _text(followed.since_mark(mark))


def served(folder: Path) -> dict[str, float]:
    """What the server does for the first page, and for one more record."""
    followed = Followed(folder)
    reading, _ = processor(followed.poll)
    telling, told = processor(partial(followed_text, followed, ""))
    size, mark = len(told) / 1e6, followed.mark
    with Journal(folder, new=False) as journal:
        opened = journal.records[0]
        assert isinstance(opened, Opened)
        number = sum(isinstance(record, Asked) for record in journal.records)
        journal.append(Resumed(trials=number + 1))
        journal.append(Asked(number=number, params={}, distributions={}, config=None))
        followed.poll()
        mark = followed.mark
        times = []
        for epoch in range(1, 21):
            journal.append(Epoch(number=number, epoch=epoch, metrics={opened.experiment.metric: 0.5}))
            times.append(processor(followed.poll)[0])
            times[-1] += processor(partial(followed_text, followed, mark))[0]
            mark = followed.mark
    followed.close()
    return {"read": reading, "tell": telling, "MB": size, "record": statistics.median(times)}


def shown(folder: Path, repeats: int) -> tuple[float, float]:
    """Seconds to the first row, and to a filtered list in another order, in the median."""
    from playwright.sync_api import sync_playwright

    command = [sys.executable, "-m", "pretune", "watch", folder.name, "--storage", str(folder.parent), "--no-open"]
    rows: list[float] = []
    filters: list[float] = []
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as server:
        try:
            assert server.stdout is not None
            address = server.stdout.readline().strip()
            with sync_playwright() as play:
                arguments = ["--no-sandbox"] if os.getuid() == 0 else []
                browser = play.chromium.launch(executable_path=shutil.which("chromium"), args=arguments)
                for repeat in range(repeats + 1):
                    page = browser.new_page()
                    begin = time.perf_counter()
                    page.goto(address)
                    page.wait_for_selector(".row")
                    between = time.perf_counter()
                    page.select_option("#sort", "3")
                    page.fill("#filter", "kernel=rbf")
                    page.wait_for_selector("#table-note:has-text(' of ')")
                    if repeat:  # the first one waits for the journal
                        rows.append(between - begin)
                        filters.append(time.perf_counter() - between)
                    page.close()
                browser.close()
        finally:
            server.terminate()
    return statistics.median(rows), statistics.median(filters)


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, nargs="+", default=[100, 1000, 10_000])
    parser.add_argument("--repeats", type=int, default=3)
    given = parser.parse_args()
    print("| trials | journal | read | all told, first | one record | first row | filter and order |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    with tempfile.TemporaryDirectory() as root, mock.patch.object(os, "fsync"):
        for trials in given.trials:
            folder = Path(root) / f"trials-{trials}"
            scale.written(folder, "random", trials)
            size = (folder / "journal.jsonl").stat().st_size / 1e6
            row, filtered = shown(folder, given.repeats)
            found = served(folder)
            print(
                f"| {trials:,} | {size:.1f} MB | {found['read']:.2f} s | {found['tell']:.2f} s, {found['MB']:.2f} MB | "
                f"{1e3 * found['record']:.1f} ms | {row:.2f} s | {filtered:.2f} s |",
                flush=True,
            )


if __name__ == "__main__":
    main()
