"""The weighted sum: linear in the weights, silent about what weighs nothing."""

from __future__ import annotations

from typing import Any, Literal

import pytest
import torch
from torch import Tensor
from torch import distributed as torch_dist

from tests.two_processes import TwoProcesses
from trainers import dist
from trainers.config import TrialConfig, ViewConfig
from trainers.objective import Objective
from trainers.terms import Alignment, Brownian, KernelMMD, Outputs, Prediction, TermConfig


def random_outputs() -> Outputs:
    generator = torch.Generator().manual_seed(0)
    views = tuple(torch.randn(6, 4, generator=generator, dtype=torch.float64).requires_grad_() for _ in range(2))
    return Outputs(
        features=views, projections=views, predictions=None, targets=None, sample_ids=torch.arange(6), seed=0, step=0
    )


def gradients(total: Tensor, outputs: Outputs) -> Tensor:
    return torch.cat(torch.autograd.grad(total, outputs.projections))


class Broken(TermConfig):
    kind: Literal["broken"] = "broken"

    def __call__(self, outputs: Outputs) -> Tensor:
        raise AssertionError("computed")


def test_the_total_is_the_weighted_sum_of_the_unweighted_parts() -> None:
    outputs = random_outputs()
    terms = {"pull": Alignment(weight=0.3), "push": KernelMMD(weight=2.0)}
    total, parts = Objective(terms)(outputs)
    assert list(parts) == ["pull", "push"]
    assert parts["pull"].item() == Alignment()(outputs).item()
    assert parts["push"].item() == KernelMMD()(outputs).item()
    assert total.item() == pytest.approx(0.3 * parts["pull"].item() + 2.0 * parts["push"].item(), rel=1e-14)
    alone = [gradients(Objective({name: term})(outputs)[0], outputs) for name, term in terms.items()]
    torch.testing.assert_close(gradients(total, outputs), alone[0] + alone[1], rtol=1e-12, atol=0)


def test_zero_weight_equals_a_missing_term() -> None:
    outputs = random_outputs()
    without, parts_without = Objective({"pull": Alignment(weight=0.7)})(outputs)
    terms = {"pull": Alignment(weight=0.7), "push": KernelMMD(weight=0.0), "broken": Broken(weight=0.0)}
    with_zero, parts_with_zero = Objective(terms)(outputs)
    assert torch.equal(with_zero, without)
    assert torch.equal(gradients(with_zero, outputs), gradients(without, outputs))
    assert parts_with_zero == parts_without, "a term of weight 0 is not computed, not even for the log"
    with pytest.raises(AssertionError, match="computed"):
        Objective({"pull": Alignment(), "broken": Broken()})(outputs)


def test_two_terms_of_one_kind_live_under_two_names() -> None:
    outputs = random_outputs()
    total, parts = Objective({"v": KernelMMD(), "u": KernelMMD(estimator="u", weight=0.5)})(outputs)
    assert parts["v"] != parts["u"]
    assert total.item() == pytest.approx(parts["v"].item() + 0.5 * parts["u"].item(), rel=1e-14)


class Everybodys(TermConfig):
    """A value that is the global batch's already, in float64."""

    kind: Literal["everybodys"] = "everybodys"

    def __call__(self, outputs: Outputs) -> Tensor:
        return dist.mean_over_ranks(outputs.projections[0].double().square().mean())


def collectives_of_a_step(terms: dict[str, TermConfig], dtype: torch.dtype) -> tuple[list[int], dict[str, Tensor]]:
    """Sums over ranks forward and backward, and the values, of this rank's rows."""
    sums = 0
    plain = torch_dist.all_reduce

    def counted(*given: Any, **named: Any) -> Any:
        nonlocal sums
        sums += 1
        return plain(*given, **named)

    whole = random_outputs()
    rows = slice(3 * dist.rank(), 3 * dist.rank() + 3)
    views = tuple(view.detach()[rows].to(dtype).requires_grad_() for view in whole.projections)
    outputs = whole._replace(features=views, projections=views, sample_ids=whole.sample_ids[rows])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch_dist, "all_reduce", counted)
        total, parts = Objective(terms)(outputs)
        forward = sums
        total.backward()  # type: ignore[no-untyped-call]
    return [forward, sums - forward], parts


def test_all_terms_values_travel_in_one_collective_and_their_gradients_in_none(two_processes: TwoProcesses) -> None:
    terms = {"pull": Alignment(), "push": KernelMMD(form="gram"), "kick": Brownian(), "guess": Prediction(weight=0.5)}
    for sums, parts in two_processes.run(collectives_of_a_step, terms, torch.float64):
        assert sums == [1, 0]
        for name, value in Objective(terms)(random_outputs())[1].items():
            torch.testing.assert_close(parts[name], value, rtol=1e-12, atol=1e-14)


def test_a_value_that_is_the_global_batchs_already_stays_what_it_is_beside_narrower_ones(
    two_processes: TwoProcesses,
) -> None:
    terms = {"pull": Alignment(), "mine": Everybodys()}
    for sums, parts in two_processes.run(collectives_of_a_step, terms, torch.float32):
        assert sums == [2, 1]  # its own, and the objective's
        assert (parts["pull"].dtype, parts["mine"].dtype) == (torch.float32, torch.float64)
        expected = random_outputs().projections[0].square().mean()
        torch.testing.assert_close(parts["mine"], expected.detach(), rtol=1e-6, atol=0)


def test_parts_hold_no_graph() -> None:
    total, parts = Objective({"pull": Alignment()})(random_outputs())
    assert total.requires_grad
    assert not parts["pull"].requires_grad


def test_an_objective_in_which_nothing_weighs_is_refused() -> None:
    with pytest.raises(ValueError, match=r"at least one term of positive weight.*raise objective\.<name>\.weight"):
        Objective({"pull": Alignment(weight=0.0), "push": KernelMMD(weight=0.0)})


def test_a_config_in_which_nothing_weighs_or_a_name_is_unfit_is_refused_before_anything_starts() -> None:
    with pytest.raises(ValueError, match=r"at least one term of positive weight.*\['pull', 'push'\] are all 0"):
        TrialConfig(objective={"pull": Alignment(weight=0.0), "push": KernelMMD(weight=0.0)})
    with pytest.raises(ValueError, match="may not be named 'total'"):
        TrialConfig(objective={"total": Alignment()})
    for name in ("a.b", "a/b", "", "Pull"):
        with pytest.raises(ValueError, match="should match pattern"):
            TrialConfig(objective={name: Alignment()})


def test_a_term_of_weight_zero_is_not_checked_against_the_rest_of_the_config() -> None:
    one_view = (ViewConfig(),)
    config = TrialConfig(views=one_view, objective={"push": KernelMMD(), "pull": Alignment(weight=0.0)})
    assert list(Objective(config.objective).terms) == ["push"]


class Returning(TermConfig):
    """Whatever it is told to return."""

    kind: Literal["returning"] = "returning"
    what: str

    def __call__(self, outputs: Outputs) -> Tensor:
        value = outputs.projections[0].square()
        found: dict[str, Any] = {
            "a vector": value.mean(1),
            "one in a list": value.mean()[None],
            "nothing": None,
            "a float": 0.5,
            "a count": torch.tensor(3),
            "a constant": value.mean().detach(),
            "a number": value.mean(),
        }
        return found[self.what]  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("what", "said"),
    [
        ("a vector", r"returned shape \[6\]; take the mean"),
        ("one in a list", r"returned shape \[1\]; take the mean"),
        ("nothing", "returned None; return the tensor"),
        ("a float", r"returned 0\.5; return the tensor"),
        ("a count", r"returned torch\.int64; convert it"),
        ("a constant", r"its value has no gradient; look for detach"),
    ],
)
def test_a_term_that_returns_no_number_with_a_gradient_is_named_with_its_line(what: str, said: str) -> None:
    terms = {"pull": Alignment(), "mine": Returning(what=what)}
    with pytest.raises(ValueError, match=rf"^objective\.mine, Returning \(.*test_objective\.py:\d+\), must .*{said}"):
        Objective(terms)(random_outputs())


def test_a_value_needs_a_gradient_only_where_the_outputs_have_one() -> None:
    outputs = random_outputs()
    for what in ("a constant", "a number"):
        with torch.no_grad():
            total, _ = Objective({"mine": Returning(what=what)})(outputs)
        assert total.isfinite()
    fixed = tuple(view.detach() for view in outputs.projections)
    total, _ = Objective({"mine": Returning(what="a number")})(outputs._replace(features=fixed, projections=fixed))
    assert total.isfinite()
