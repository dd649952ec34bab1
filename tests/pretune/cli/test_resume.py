"""`pretune resume`: a sweep goes on with what it began with."""

from __future__ import annotations

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
