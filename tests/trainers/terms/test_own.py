"""A term of one's own in a config: data until somebody runs it, and then checked as a shipped one is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.imports import imported
from tests.packages import installed
from tests.parts import broken_parts, own_parts
from trainers.changes import with_changes
from trainers.config import TrialConfig
from trainers.contracts import everything, made_outputs
from trainers.objective import Objective
from trainers.terms import Alignment, OwnTerm
from trainers.usercode import ChangedError, SettingsError, load

BROKEN, MINE = str(Path(broken_parts.__file__)), str(Path(own_parts.__file__))
OUTPUTS = made_outputs(everything(), rows=8, seed=0, dtype=torch.float64)

TERM = """
from trainers.terms import TermConfig

class Scale(TermConfig):
    factor: float = 2.0

    def __call__(self, outputs):
        return self.factor * outputs.projections[0].square().mean()
"""


def config(**mine: Any) -> TrialConfig:
    return TrialConfig.model_validate({"objective": {"alignment": {}, "mine": mine}})


def test_a_config_with_a_term_of_ones_own_survives_json_and_computes() -> None:
    made = config(kind=f"{MINE}:Spread", strength=3.0, weight=0.5).completed()
    assert TrialConfig.model_validate(json.loads(made.model_dump_json())) == made
    total, parts = Objective(made.objective)(OUTPUTS)
    found = load(f"{MINE}:Spread").thing(strength=3.0)(OUTPUTS)
    assert torch.equal(parts["mine"], found)
    assert torch.equal(total, Alignment()(OUTPUTS) + 0.5 * found)


def test_reading_a_config_runs_nobodys_code(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("raise RuntimeError('read')")
    made = config(kind=f"{tmp_path}/mine.py:Spread")
    assert isinstance(made.objective["mine"], OwnTerm)
    made.check_workers(2)
    with pytest.raises(ValueError, match="cannot be loaded"):
        made.check_own()


def test_a_completed_config_knows_place_and_hash_and_refuses_another_file(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(TERM)
    made = config(kind="mine.py:Scale").completed(tmp_path)
    assert made.objective["mine"].kind == f"{tmp_path}/mine.py:Scale"
    assert made.completed() == made
    made.check_own()
    (tmp_path / "mine.py").write_text(TERM.replace("2.0", "3.0"))
    for refuse in (made.completed, made.check_own, lambda: Objective(made.objective)):
        with pytest.raises(ChangedError, match=r"^objective\.mine\.kind: .*put the file back, or begin a new run"):
            refuse()


def test_weight_zero_equals_absence_even_of_the_file() -> None:
    gone = config(kind="/nowhere/mine.py:Spread", weight=0.0)
    gone.check_own()
    total, parts = Objective(gone.objective)(OUTPUTS)
    assert torch.equal(total, Alignment()(OUTPUTS))
    assert list(parts) == ["alignment"]


@pytest.mark.parametrize(
    ("mine", "message"),
    [
        ({"kind": f"{MINE}:Net"}, "must be a class derived from trainers.terms.TermConfig"),
        ({"kind": f"{BROKEN}:NoFormula"}, "must have __call__, but has not"),
        ({"kind": f"{BROKEN}:NeedsThreeViews"}, "objective.mine needs 3 views, but there are 2; add one"),
        ({"kind": "mine.py:Spread"}, "must be a whole path here"),
    ],
)
def test_what_is_no_term_for_this_run_is_refused(mine: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=r"objective\.mine") as error:
        config(**mine).check_own()
    assert message in str(error.value)


def test_settings_that_it_does_not_take_are_refused_at_their_path() -> None:
    with pytest.raises(SettingsError) as error:
        config(kind=f"{MINE}:Spread", strenght=1.0).check_own()
    assert error.value.path == "objective.mine"
    assert error.value.error.errors()[0]["loc"] == ("strenght",)


def test_an_instance_of_ones_own_class_becomes_a_reference() -> None:
    made = TrialConfig.model_validate({"objective": {"mine": load(f"{MINE}:Spread").thing(strength=3.0, weight=0.5)}})
    mine = made.objective["mine"]
    assert isinstance(mine, OwnTerm)
    assert (mine.kind, mine.weight, mine.settings) == (f"{MINE}:Spread", 0.5, {"strength": 3.0})
    assert isinstance(TrialConfig(objective={"a": Alignment()}).objective["a"], Alignment)


def test_a_changed_kind_keeps_the_weight_alone() -> None:
    base = TrialConfig.model_validate({"objective": {"alignment": {"normalize": False, "weight": 3.0}}})
    changed = with_changes(base, {"objective.alignment.kind": f"{MINE}:Spread", "objective.alignment.strength": 2.0})
    assert changed.objective["alignment"] == OwnTerm(kind=f"{MINE}:Spread", weight=3.0, strength=2.0)
    back = with_changes(changed.completed(), {"objective.alignment.kind": "alignment"})
    assert back.objective["alignment"] == Alignment(weight=3.0)
    moved = with_changes(changed.completed(), {"objective.alignment.kind": f"{MINE}:Other"})
    assert moved.objective["alignment"] == OwnTerm(kind=f"{MINE}:Other", weight=3.0), "the old file's hash goes"


def test_the_term_of_an_installed_package_has_a_name(tmp_path: Path) -> None:
    offered = {"pretune.terms": {"lab_scale": "own_term_lab:Scale", "alignment": "own_term_lab:Scale"}}
    with installed(
        tmp_path, package="the-lab", version="1.2", module="own_term_lab", source=TERM, entry_points=offered
    ):
        made = TrialConfig.model_validate({"objective": {"lab_scale": {"factor": 3.0}, "alignment": {}}})
        mine = made.objective["lab_scale"]
        assert isinstance(mine, OwnTerm)
        assert mine.kind == "own_term_lab:Scale", (
            "a config says where it is, and is read without the package's metadata"
        )
        assert isinstance(made.objective["alignment"], Alignment), "shipped names win"
        complete = made.completed()
        complete.check_own()
        assert complete.own_parts["objective.lab_scale"].source_sha256 is not None
    with pytest.raises(ValueError, match="there is no module 'own_term_lab'"):
        made.check_own()


def test_configs_with_own_parts_import_no_torch_of_their_own(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(TERM)
    program = (
        "from trainers.config import TrialConfig\n"
        f"values = {{'objective': {{'mine': {{'kind': '{tmp_path}/mine.py:Scale', 'factor': 3}}}}}}\n"
        "TrialConfig.model_validate(values).completed().check_own()"
    )
    assert imported(program, "torch timm numpy") == []
