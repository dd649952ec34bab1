"""References in a request: made absolute where they were typed, loaded, tried, and explained in words."""

from __future__ import annotations

from pathlib import Path

import pytest

from pretune.core.errors import RequestError
from pretune.request import levels, lookup, overrides, request, usercode
from tests.imports import imported
from tests.packages import installed
from tests.parts import broken_parts, own_parts
from tests.pretune.analysis.ablations import asked
from trainers.config import OwnBackbone, OwnTerm, TrialConfig

BROKEN, MINE = Path(broken_parts.__file__), Path(own_parts.__file__)
PACKAGE = """
from trainers.config import TrialConfig
from trainers.terms import TermConfig

class Scale(TermConfig):
    def __call__(self, outputs):
        return outputs.projections[0].square().mean()

def recipe():
    return TrialConfig(objective={"lab_scale": {}})

def space(trial, base):
    return base
"""
OFFERED = {
    "pretune.terms": {"lab_scale": "request_lab:Scale"},
    "pretune.recipes": {"lab_recipe": "request_lab:recipe"},
    "pretune.spaces": {"lab_space": "request_lab:space"},
}


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a sound and a broken file, to type references in."""
    (tmp_path / "mine.py").write_text(MINE.read_text())
    (tmp_path / "broken.py").write_text(BROKEN.read_text())
    monkeypatch.chdir(tmp_path)
    return tmp_path


def configured(*assignments: str) -> TrialConfig:
    return request.configure(lookup.recipe("sfrik_tiny"), assignments=assignments)


def test_parts_in_a_file_join_a_recipe_by_set(here: Path) -> None:
    config = configured(
        "objective.mine.kind=mine.py:Spread",
        "objective.mine.strength=2",
        "objective.mine.weight=0.1",
        "model.backbone.kind=mine.py:Net",
        "model.backbone.width=8",
        "views.*.operations.noise.kind=mine.py:noise",
        "views.*.operations.noise.probability=0.5",
    )
    mine, backbone, noise = config.objective["mine"], config.model.backbone, config.views[1].operations["noise"]
    assert isinstance(mine, OwnTerm)
    assert isinstance(backbone, OwnBackbone)
    assert (mine.kind, mine.weight, mine.settings) == (f"{here}/mine.py:Spread", 0.1, {"strength": 2})
    assert (backbone.kind, backbone.settings) == (f"{here}/mine.py:Net", {"width": 8}), "inherited settings are gone"
    assert (noise.kind, noise.probability, noise.settings) == (f"{here}/mine.py:noise", 0.5, {})
    assert len({part.source_sha256 for part in config.own_parts.values()}) == 1
    assert TrialConfig.model_validate(config.model_dump(mode="json")) == config


def test_a_typed_object_has_its_files_made_absolute_too(here: Path) -> None:
    typed = 'views.0.operations={"noise": {"kind": "mine.py:noise", "strength": 0.2}}'
    assert configured(typed).views[0].operations["noise"].kind == f"{here}/mine.py:noise"
    assert overrides.parse(["objective.mine.note=mine.py:noise"]) == {"objective.mine.note": "mine.py:noise"}


@pytest.mark.parametrize(
    ("assignments", "message"),
    [
        (["objective.mine.kind=mine.py:Spred"], "has no 'Spred'; known: Spread, Net, noise; did you mean 'Spread'?"),
        (["objective.mine.kind=none.py:Spread"], "objective.mine.kind: there is no file"),
        (["objective.mine.kind=mine.py:Net"], "must be a class derived from trainers.terms.TermConfig"),
        (
            ["objective.mine.kind=mine.py:Spread", "objective.mine.strenght=2"],
            "unknown key: 'objective.mine.strenght'; known keys of 'objective.mine': weight, strength; "
            "did you mean 'objective.mine.strength'?",
        ),
        (
            ["objective.mine.kind=mine.py:Spread", "objective.mine.strength=high"],
            "'objective.mine.strength' is 'high', but must be a valid number",
        ),
        (
            ["objective.mine.kind=mine.py:Spread", "objective.mine.weight=-1"],
            "'objective.mine.weight' is -1, but must be at least 0",
        ),
        (["objective.mine.kind=spread"], "or file.py:Name or module:Name of your own"),
        (["model.backbone.kind=resnet"], "or timm:NAME, or file.py:Name or module:Name of your own"),
        (["model.backbone.kind=timm:resnet1t"], "timm 1.0"),
        (["model.backbone.kind=mine.py:Net", "model.backbone.widht=8"], "did you mean 'width'?"),
        (["model.backbone.kind=broken.py:Maps"], "must give one feature vector for each image"),
        (["objective.mine.kind=broken.py:Vector"], "objective.mine: Vector ("),
        (["objective.mine.kind=broken.py:NotANumber"], "must return a finite number"),
        (["objective.mine.kind=broken.py:Detached"], "no gradient reaches them"),
        (["objective.mine.kind=broken.py:Misspelt"], "did you mean 'projections'?"),
        (["objective.mine.kind=broken.py:NeedsThreeViews"], "objective.mine needs 3 views, but there are 2"),
        (["views.0.operations.mine.kind=broken.py:unkeyed"], "views.0.operations.mine: unkeyed ("),
        (["views.0.operations.mine.kind=noise"], "must be file.py:Name or module:Name"),
    ],
)
def test_what_is_wrong_with_a_part_is_said_before_anything_starts(
    here: Path, assignments: list[str], message: str
) -> None:
    with pytest.raises(RequestError) as error:
        configured(*assignments)
    assert message in str(error.value)


def test_a_config_that_ran_with_another_file_is_refused(here: Path) -> None:
    config = configured("objective.mine.kind=mine.py:Spread")
    (here / "run.json").write_text(config.model_dump_json())
    assert request.configure(lookup.recipe("run.json")) == config
    (here / "mine.py").write_text(MINE.read_text() + "# and more\n")
    with pytest.raises(RequestError, match=r"objective\.mine\.kind: .* as when this run was requested"):
        request.configure(lookup.recipe("run.json"))
    accepted = request.configure(lookup.recipe("run.json"), assignments=["objective.mine.source_sha256=null"])
    before, after = (one.own_parts["objective.mine"].source_sha256 for one in (config, accepted))
    assert after is not None
    assert after != before


CHILDREN = """
from search_spaces import RECIPES
from trainers.terms import Alignment
from trainers.config import ProbeConfig

class MyAlignment(Alignment):
    def __call__(self, outputs):
        return 2 * super().__call__(outputs)

class Vector(Alignment):
    def __call__(self, outputs):
        return outputs.projections[0].mean(1)

class MyProbe(ProbeConfig):
    pass

def changed(**fields):
    base = RECIPES["sfrik_tiny"]()
    return base.model_copy(update=fields)

def a_term():
    return changed(objective={"alignment": MyAlignment()})

def a_vector():
    return changed(objective={"alignment": Vector()})

def a_probe():
    return changed(probe=MyProbe())
"""


def test_a_recipes_child_of_a_shipped_term_runs_and_one_of_another_part_is_refused(here: Path) -> None:
    (here / "children.py").write_text(CHILDREN)
    term = request.configure(lookup.recipe("children.py:a_term")).objective["alignment"]
    assert isinstance(term, OwnTerm)
    assert (term.kind, bool(term.source_sha256)) == (f"{here}/children.py:MyAlignment", True)
    with pytest.raises(RequestError, match=r"^objective.alignment: Vector .*children.py:\d+\) .* shape \[16\]"):
        request.configure(lookup.recipe("children.py:a_vector"))
    with pytest.raises(RequestError, match=r"^probe is of class MyProbe \(.*children.py:\d+\), but only what Probe"):
        request.configure(lookup.recipe("children.py:a_probe"))
    given = usercode.load("children.py:a_probe", what="RECIPE", folder=here)()
    _, recipe = lookup.space_and_recipe("kernels", given)  # as `pretune.run` takes it
    with pytest.raises(RequestError, match=r"^probe is of class MyProbe"):
        request.configure(recipe, assignments=["epochs=3"])


HEADED = """

from trainers.terms import Dino, MismatchDetection, Reconstruction, Swav, TermConfig

class MyDino(Dino):
    factor: float = 2.0
    def __call__(self, outputs):
        return self.factor * super().__call__(outputs)

class MySwav(Swav):
    pass

class MyReconstruction(Reconstruction):
    pass

class MyMismatch(MismatchDetection):
    pass

class Cosines(TermConfig):
    reads_heads = frozenset({"prototypes"})
    def __call__(self, outputs):
        return outputs.scores[0].square().mean()

class Unchecked(Dino):
    def check(self, name, facts):
        pass

class Misspelt(Cosines):
    reads_heads = frozenset({"prototype"})
"""


@pytest.mark.parametrize(
    ("recipe", "shipped", "own", "heads"),
    [
        ("dino_tiny", "dino", "MyDino", {"center", "prototypes"}),
        ("swav_tiny", "swav", "MySwav", {"prototypes"}),
        ("mae_tiny", "reconstruction", "MyReconstruction", {"decoder"}),
        ("dilemma_mocov3_tiny", "mismatch_detection", "MyMismatch", {"mismatch_head"}),
        ("swav_tiny", "swav", "Cosines", {"prototypes"}),
    ],
)
def test_a_term_of_ones_own_that_reads_a_head_of_the_model_gets_it(
    here: Path, recipe: str, shipped: str, own: str, heads: set[str]
) -> None:
    from trainers.model import build_model, trained_model

    (here / "headed.py").write_text(HEADED)
    changes = [f"objective.mine.kind=headed.py:{own}", f"objective.{shipped}.weight=0"]
    config = request.configure(lookup.recipe(recipe), assignments=changes)
    state = build_model(config).state_dict()
    assert heads <= {name.partition(".")[0] for name in state}
    (here / "headed.py").unlink()
    again = trained_model(TrialConfig.model_validate_json(config.model_dump_json()), state).state_dict()
    assert again.keys() == state.keys(), "a checkpoint opens without the file"


@pytest.mark.parametrize(
    ("recipe", "own", "message"),
    [
        ("sfrik_tiny", "MyDino", r"objective\.mine \(dino\) needs model\.teacher, model\.prototypes"),
        ("sfrik_tiny", "MyMismatch", r"objective\.mine .* needs .*model\.masking"),
        ("sfrik_tiny", "Cosines", r"mine reads the model's prototypes, which needs model\.prototypes, but it is null"),
        ("swav_tiny", "Unchecked", r"mine reads the model's center, which needs model\.teacher, but it is null; set"),
        ("swav_tiny", "Misspelt", r"objective\.mine reads the heads prototype, which no model has; `reads_heads` may"),
    ],
)
def test_a_head_that_the_model_cannot_have_is_refused_by_name_before_anything_starts(
    here: Path, recipe: str, own: str, message: str
) -> None:
    (here / "headed.py").write_text(HEADED)
    with pytest.raises(RequestError, match=message):
        request.configure(lookup.recipe(recipe), assignments=[f"objective.mine.kind=headed.py:{own}"])


def test_levels_of_an_ablation_may_be_parts_of_ones_own(here: Path) -> None:
    kinds = "model.backbone.kind=resnet_tiny,mine.py:Net"
    assert levels.parse_factors([kinds])["model.backbone.kind"] == ["resnet_tiny", f"{here}/mine.py:Net"]
    design = asked("objective.mine.kind=mine.py:Spread", kinds, base=configured())
    changed = [list(level.changes.values()) for level in design.levels]
    assert changed == [[], [f"{here}/mine.py:Spread"], [f"{here}/mine.py:Net"]]
    with pytest.raises(
        RequestError, match=r"--factor objective\.mine\.kind=.*broken.py:Vector: objective\.mine: Vector"
    ):
        asked("objective.mine.kind=broken.py:Vector", base=configured())


def test_what_a_package_offers_has_a_name_wherever_shipped_ones_have(tmp_path: Path) -> None:
    with installed(
        tmp_path, package="the-lab", version="1.2", module="request_lab", source=PACKAGE, entry_points=OFFERED
    ):
        found = lookup.recipe("lab_recipe")
        assert (found.name, found.label) == ("request_lab:recipe", "lab_recipe")
        assert found.config.own_parts["objective.lab_scale"].kind == "request_lab:Scale"
        space = lookup.space("lab_space")
        assert (space.name, space.label) == ("request_lab:space", "lab_space")
        assert lookup.space(space.name).function is space.function, "a resume finds it by what the journal says"
        assert overrides.parse(["objective.mine.kind=lab_scale"]) == {"objective.mine.kind": "request_lab:Scale"}
        assert usercode.part("lab_scale", folder=tmp_path)[1] == "request_lab:Scale"
        with pytest.raises(RequestError, match=r"lab_space; did you mean 'lab_space'\?"):
            lookup.space("lab_spaces")


def test_the_versions_of_a_sweep_name_the_packages_that_its_parts_are_from(tmp_path: Path) -> None:
    from pretune import sweep

    with installed(
        tmp_path, package="the-lab", version="1.2", module="request_lab", source=PACKAGE, entry_points=OFFERED
    ):
        shipped, base = lookup.recipe("sfrik_tiny").config, lookup.recipe("lab_recipe").config
        kernels, space = lookup.space("kernels").function, lookup.space("lab_space").function
        assert "the-lab" not in sweep.versions(kernels, shipped)
        assert sweep.versions(kernels, base)["the-lab"] == "1.2"
        assert sweep.versions(space, shipped)["the-lab"] == "1.2"


def test_a_request_without_own_parts_imports_no_torch() -> None:
    program = (
        "from pretune.request import lookup, request\n"
        "request.configure(lookup.recipe('sfrik_tiny'), assignments=['objective.mmd.weight=2'])"
    )
    assert imported(program, "torch timm ray") == []
