"""`pretune resume`: a sweep goes on with what it began with."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

from pretune import sweep
from pretune.core.experiment import Experiment
from pretune.core.journal import Journal, Opened
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
