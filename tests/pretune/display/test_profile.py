"""What `pretune profile` prints has each part with its numbers, and last what limits."""

from __future__ import annotations

import pytest
from rich.console import Group

from pretune.analysis import limits
from pretune.display import profile
from tests.pretune.display.screen import shown
from tests.profiles import FIGURES, STEP, figures, spread
from trainers.profiling.figures import Figures


def printed(found: Figures) -> str:
    parts = profile.whole(found, limits.limit(found), recipe="sfrik_tiny", data="digits")
    return shown(Group(*parts), width=120)


def test_each_part_stands_there_with_its_number_and_the_limit_comes_last() -> None:
    text = printed(FIGURES)
    lines = text.splitlines()
    title = (
        "sfrik_tiny on digits: 6,400 images in batches of 64, 2 views each, on a CPU of 4 cores, 1 worker of 2 threads"
    )
    assert f"{title}, float32" in " ".join(lines[:2])
    for name, *parts in (
        ("loader alone", "3,200", "2,670 to 3,560", "5.00"),
        ("model alone", "640", "533 to 711", "1.00"),
        ("both together", "615", "0.96"),
        ("term mmd", "2", "4", "6", "6.0 %"),
        ("optimizer", "5", "5.0 %"),
        ("sentinel", "0.1 %"),
        ("network, the rest", "86.9", "86.9 %"),
        ("waiting for a batch", "1 ms of a step of 104 ms, 1 %"),
        ("an epoch", "about 11 s: 100 steps, 40 ms to begin, probe 1 s, checkpoint 50 ms"),
        ("at the end", "2 s more for the full probes"),
        ("start-up", "5 s: Python, imports, workers meet 4 s, model, first step 1 s"),
        ("memory of a worker", "host 900 MB at most"),
        ("FLOP/s, model alone", "40 GFLOP/s, 40 % of the 100 GFLOP/s of a large product here"),
        ("FLOP/s, training", "38.5 GFLOP/s, 38 %"),
    ):
        line = next(line for line in lines if line.startswith(name))
        assert [part for part in parts if part not in line] == [], line
    assert "communication" not in text
    limit, helps = (line for line in lines[-3:] if line.startswith(("compute-limited", "what helps")))
    assert limit.startswith("compute-limited: the network's passes take 87 % of the step")
    assert helps.startswith("what helps: compiled passes")


def test_workers_communicate_and_a_card_has_memory_and_a_stated_peak() -> None:
    step = STEP.model_copy(update={"collectives": 0.012})
    many = figures(workers=2, step=step, gpu_peak_bytes=4e9, published_peak=2e12, device="NVIDIA L4", probe_every=5)
    text = printed(many)
    assert "on NVIDIA L4, 2 workers of 2 threads, 4 cores" in text
    assert "communication, meanwhile" in text
    assert "12" in next(line for line in text.splitlines() if line.startswith("communication"))
    assert "GPU 4 GB at most" in text
    assert "2 % of the 2 TFLOP/s stated for the card, 40 % of" in text
    assert "probe 1 s each 5 epochs" in text


def test_figures_of_a_machine_that_does_something_else_say_so() -> None:
    assert "note:" not in printed(FIGURES)
    noisy = FIGURES.real_s.model_copy(update={"most": 3.0 * FIGURES.real_s.least})
    assert "differ by a factor of 3.0: something else runs" in " ".join(printed(figures(real_s=noisy)).split())


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.0, "0 ms"), (0.0123, "12.3 ms"), (1.31, "1.3 s"), (9.96, "10 s"), (125.0, "2 min 05 s")]
)
def test_seconds_have_as_many_digits_as_they_deserve(seconds: float, text: str) -> None:
    found = figures(full_probe_s=seconds, real_s=spread(0.2))
    assert f"at the end           {text} more" in printed(found)
