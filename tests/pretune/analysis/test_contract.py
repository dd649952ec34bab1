"""`pretune check`: sound parts hold in fresh processes and in two at once; each broken term breaks what it should."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from pretune.analysis import contract
from pretune.cli.app import app
from pretune.core.errors import RequestError
from tests.parts import broken_parts, own_parts

BROKEN, MINE = str(Path(broken_parts.__file__)), str(Path(own_parts.__file__))


def tried(reference: str) -> dict[str, contract.Verdict]:
    asked = contract.ask(reference, {}, size=16, folder=Path.cwd())
    return {verdict.contract: verdict for verdict in contract.run(asked)}


@pytest.mark.parametrize(
    ("name", "kind", "contracts"),
    [("Spread", "term", 7), ("Net", "backbone", 9), ("noise", "view operation", 6)],
)
def test_a_sound_part_holds_in_everything(name: str, kind: str, contracts: int) -> None:
    assert contract.ask(f"{MINE}:{name}", {}, size=16, folder=Path.cwd()).kind == kind
    verdicts = tried(f"{MINE}:{name}")
    assert len(verdicts) == contracts
    assert all(verdict.holds for verdict in verdicts.values()), verdicts
    assert {contract.TWO_WORKERS, contract.RESUME} <= verdicts.keys()


@pytest.mark.parametrize(
    ("name", "broken"),
    [
        ("Vector", {"one number"}),
        ("NotANumber", {"finite"}),
        ("Detached", {"differentiable"}),
        ("PerRankRoot", {contract.TWO_WORKERS}),
        ("PerRankGradient", {contract.TWO_WORKERS}),
        ("Remembers", {"no hidden state", contract.TWO_WORKERS, contract.RESUME}),
    ],
)
def test_each_broken_term_breaks_its_contract(name: str, broken: set[str]) -> None:
    verdicts = tried(f"{BROKEN}:{name}")
    assert {contract for contract, verdict in verdicts.items() if verdict.holds is False} == broken
    first = min(list(verdicts).index(name) for name in broken)
    basic = first < 3
    later = list(verdicts.values())[first + 1 :]
    assert all((verdict.holds is None) == basic for verdict in later), "what has no meaning is not tried"


def test_a_backbone_whose_state_no_checkpoint_holds_does_not_resume() -> None:
    verdicts = tried(f"{BROKEN}:Counts")
    assert verdicts[contract.RESUME].holds is False
    assert "fresh process" in verdicts[contract.RESUME].detail


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("nowhere.py:Spread", "there is no file"),
        (f"{MINE}:Spred", "did you mean 'Spread'?"),
        ("spread", "must be file.py:Name or module:Name"),
        (f"{BROKEN}:NoFormula", "must have __call__, but has not"),
    ],
)
def test_what_is_no_part_is_refused(reference: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(RequestError) as error:
        contract.ask(reference, {}, size=16, folder=tmp_path)
    assert message in str(error.value)


def test_the_command_prints_a_table_and_its_exit_code_is_the_verdict() -> None:
    broken = CliRunner().invoke(app, ["check", f"{BROKEN}:Vector"])
    assert broken.exit_code == 1
    assert "BROKEN" in broken.stdout
    assert "not tried" in broken.stdout
    assert "does not do what a term must: one number" in broken.stderr
    wrong = CliRunner().invoke(app, ["check", f"{MINE}:Spread", "--set", "strenght=2"])
    assert wrong.exit_code == 2
    assert "did you mean 'objective.mine.strength'?" in wrong.stderr
