"""`pretune resume`: a sweep goes on with what it began with."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

from pretune import sweep
from pretune.core.experiment import Experiment
from pretune.core.journal import Journal
from pretune.core.records import Asked, Closed, Ended, Epoch, Opened, Started
from pretune.request import lookup
from search_spaces import RECIPES
from tests.pretune.cli.command import pretune

SPACE = """
from search_spaces.kernels import space as kernels

def space(trial, base):
    return kernels(trial, base)

space.default_recipe = "sfrik_tiny"
"""


def test_a_sweep_does_not_go_on_with_another_version_or_space_unless_that_is_accepted(here: Path) -> None:
    (here / "mine.py").write_text(SPACE)
    base = RECIPES["sfrik_tiny"]()
    asked = Experiment(name="mine", space=f"{here}/mine.py:space", base=base, storage=str(here / "sweeps"))
    now = sweep.versions(lookup.space("mine.py:space").function, base)
    known = {**now, "torch": "0.1", "gone": "1.0"}
    with Journal(asked.folder, new=True) as journal:
        journal.append(Opened(experiment=asked, versions=known))
    result = pretune("resume", "mine")
    assert result.exit_code == 2
    assert f"these changed: torch 0.1 -> {now['torch']}; trials" in result.stderr
    assert "--accept-changes" in result.stderr
    (here / "mine.py").write_text(SPACE + "# and more")
    result = pretune("resume", "mine")
    assert f"space {known['space']} -> " in result.stderr


RANGES = """
def lowest():
    from deep.inside import LOWEST
    return LOWEST
"""


def test_a_sweep_does_not_go_on_with_edited_code_wherever_it_is_imported(here: Path) -> None:
    (here / "mine.py").write_text(SPACE.replace("def space", "import ranges\n\ndef space"))
    (here / "ranges.py").write_text(RANGES)
    (here / "deep").mkdir()
    (here / "deep" / "inside.py").write_text("LOWEST = 0.1")
    (here / "unrelated.py").write_text("")
    base = RECIPES["sfrik_tiny"]()
    space = lookup.space("mine.py:space").function
    known = sweep.source_hashes(space, base)
    assert {name for name in known if "/" not in name} == {"mine.py", "ranges.py"}
    assert {"deep/inside.py", "trainers/terms/mmd.py", "search_spaces/kernels.py", "pretune/sweep.py"} <= set(known)
    assert not {"unrelated.py", "pretune/cli/app.py"} & set(known)

    def refused(**edited: str) -> str:
        asked = Experiment(name="mine", space=f"{here}/mine.py:space", base=base, storage=str(here / "sweeps"))
        shutil.rmtree(asked.folder, ignore_errors=True)
        with Journal(asked.folder, new=True) as journal:
            journal.append(Opened(experiment=asked, sources={**known, **edited}))
        result = pretune("resume", "mine")
        assert result.exit_code == 2
        return result.stderr

    assert "these changed: trainers/terms/mmd.py; trials" in refused(**{"trainers/terms/mmd.py": "0"})
    (here / "deep" / "inside.py").write_text("LOWEST = 0.2")
    assert "these changed: deep/inside.py; trials" in refused()
    many = refused(**dict.fromkeys(list(known)[:20], "0"))
    assert re.search(r"and 1[0-9] more; trials", many)


def test_a_sweep_that_is_out_of_time_goes_on_only_with_more_hours(here: Path) -> None:
    base = RECIPES["sfrik_tiny"]().model_copy(update={"epochs": 2})
    asked = Experiment(name="timed", space="kernels", base=base, storage=str(here / "sweeps"), max_hours=1.0)
    times = iter([0.0, 0.0, 0.0, 1500.0, 3000.0, 3000.0, 3000.0])
    with Journal(asked.folder, new=True, clock=lambda: next(times)) as journal:
        journal.append(Opened(experiment=asked, versions={"torch": "0.1"}))
        journal.append(Asked(number=0, params={}, distributions={}, config=base.model_dump(mode="json")))
        journal.append(Started(number=0, attempt=0, epoch=0))
        for epoch in (1, 2):
            journal.append(Epoch(number=0, epoch=epoch, metrics={"probe/linear": 0.5}))
        journal.append(Ended(number=0, state="COMPLETE", value=0.5))
        journal.append(Closed(reason="out_of_time", detail="of 1 h"))
    for typed in ("resume timed", "resume timed --max-hours 1.5"):
        result = pretune(*typed.split())
        assert result.exit_code == 2
        assert "has used 0.833 h of its 1" in result.stderr
        assert "give it more in all with --max-hours 2" in result.stderr
    assert "--max-hours must be a number above 0" in pretune("resume", "timed", "--max-hours", "-1").stderr
    result = pretune("resume", "timed", "--max-hours", "2")
    assert "these changed: torch 0.1 -> " in result.stderr, "the next thing that is looked at"
    assert "finished, out of time (of 1 h)" in " ".join(pretune("show", "timed").stdout.split())
