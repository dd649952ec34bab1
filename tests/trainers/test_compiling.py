"""Compiled passes: the numbers of plain ones, and all that a run promises.

Quick tests go through torch.compile with a backend that generates no code (`aot_eager`), so that graphs, guards and
gradients are torch.compile's own while nothing waits for a C++ compiler; the slow ones generate it.
"""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from torch import Tensor, nn

from tests.trainers.test_train import VARIANTS, PowerCutError, Recorder, config, cut_at, fingerprint, learned, run
from tests.two_processes import TwoProcesses
from trainers import compiling, dist
from trainers.accumulation import leaves
from trainers.config import TrialConfig
from trainers.data.feed import moved
from trainers.data.loader import Batch
from trainers.model import build_model
from trainers.objective import Objective
from trainers.train import TrainingStep, data_parallel

CPU = torch.device("cpu")
PER_PART: dict[str, Any] = {"accumulate": 2, "accumulate_batch_norm": "per_part"}
NETWORKS = {**VARIANTS, "accumulated": PER_PART}
QUICK = ("parts of one's own",)
networks = pytest.mark.parametrize(
    "changes",
    [
        pytest.param(changes, id=name, marks=[] if name in QUICK else pytest.mark.slow)
        for name, changes in NETWORKS.items()
    ],
)
SMALL: dict[str, Any] = {"model": VARIANTS["parts of one's own"]["model"]}
"""Three convolutions and a teacher: soon traced."""
TOLERANCE = 1e-4
"""Of losses and gradients, relative to their size: compiled code adds up in another order, in float32."""


class Counted:
    """torch.compile without code generation, and how many graphs it was given."""

    def __init__(self) -> None:
        self.graphs = 0
        self._compile: Callable[..., Any] = torch.compile

    def __call__(self, function: Any, *, dynamic: bool, options: dict[str, Any]) -> Any:
        return self._compile(function, dynamic=dynamic, backend=self._backend)

    def _backend(self, graph: Any, inputs: Any) -> Any:
        from torch._dynamo.backends.debugging import aot_eager

        self.graphs += 1
        return aot_eager(graph, inputs)


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> Iterator[Counted]:
    found = Counted()
    monkeypatch.setattr(torch, "compile", found)
    monkeypatch.setattr(compiling, "_compiled_for", None)
    yield found
    torch.compiler.reset()


def compiled(**changes: Any) -> TrialConfig:
    return config(**changes, compile="on")


def gradients_of(trial: TrialConfig) -> dict[str, Tensor]:
    """The loss and all gradients of this rank's part of one batch, as the loop makes them."""
    model = build_model(trial).to(memory_format=torch.channels_last)
    if trial.compile != "off":
        model.call = compiling.compiled(trial, CPU, dist.world_size())
    objective = Objective(trial.objective)
    network = data_parallel(model, objective, trial, CPU)
    model.train()
    optimizer = torch.optim.SGD(model.parameters())
    step = TrainingStep(trial, model, objective, optimizer, network)
    rows = trial.batch_size // dist.world_size()
    keyed = torch.Generator().manual_seed(0)
    whole = [torch.randn(trial.batch_size, 3, view.size, view.size, generator=keyed) for view in trial.views]
    mine = slice(dist.row_offset(rows), dist.row_offset(rows) + rows)
    views, sample_ids = moved(Batch(tuple(view[mine] for view in whole), torch.arange(trial.batch_size)[mine]), CPU)
    found = step.gradients(views, sample_ids, 5)  # a step at which nothing is frozen any more
    gradients = {name: one.grad for name, one in model.named_parameters() if one.grad is not None}
    buffers = {name: one.double() for name, one in model.named_buffers()}
    return {"loss": found.loss.detach(), **gradients, **buffers}


def assert_alike(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    assert found.keys() == wanted.keys()
    largest = max(float(value.abs().max()) for value in wanted.values())
    for name, value in wanted.items():
        difference = float((found[name] - value).abs().max())
        assert difference <= TOLERANCE * max(float(value.abs().max()), 1e-3 * largest), name


@networks
def test_compiled_passes_have_the_loss_and_the_gradients_of_plain_ones(
    counted: Counted, changes: dict[str, Any]
) -> None:
    assert_alike(gradients_of(compiled(**changes)), gradients_of(config(**changes)))
    assert counted.graphs > 0


def test_a_warm_trial_of_the_same_network_compiles_nothing_and_equals_a_cold_one(
    counted: Counted, tmp_path: Path
) -> None:
    trial = {**SMALL, "optimizer": {"kind": "lars", "learning_rate": 2.0}}
    cold, warm = Recorder(), Recorder()
    run(tmp_path / "cold", cold, compiled(**trial, seed=3))
    wanted, graphs = fingerprint(cold.checkpoint), counted.graphs
    torch.compiler.reset()
    other = {**trial, "optimizer": {"kind": "sgd"}, "objective": {"alignment": {}, "mmd": {"weight": 0.1}}}
    run(tmp_path / "other", Recorder(stop_at=1), compiled(**other, seed=8))
    before = counted.graphs
    run(tmp_path / "warm", warm, compiled(**trial, seed=3))
    assert (graphs, counted.graphs) == (before - graphs, before)
    assert fingerprint(warm.checkpoint) == wanted
    assert learned(warm.reports[-1]) == learned(cold.reports[-1])


def test_code_of_another_network_is_forgotten(counted: Counted, tmp_path: Path) -> None:
    """Or the second size of batch would be compiled for any size, which a cold run's is not."""
    run(tmp_path / "other", Recorder(stop_at=1), compiled(**SMALL, batch_size=18))
    warm, cold = Recorder(), Recorder()
    run(tmp_path / "warm", warm, compiled(**SMALL))
    torch.compiler.reset()
    run(tmp_path / "cold", cold, compiled(**SMALL))
    assert fingerprint(warm.checkpoint) == fingerprint(cold.checkpoint)


class Numbered(nn.Linear):
    """What its code depends on is another number in each instance."""

    def __init__(self, number: int) -> None:
        super().__init__(2, 2)
        self.number = number

    def forward(self, x: Tensor) -> Tensor:
        return self.number * super().forward(x)


def test_code_that_is_never_taken_over_does_not_pile_up_until_a_trial_fails(
    counted: Counted, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compiling, "MOST_VARIANTS", 4)
    for number in range(12):
        compiling.compiled(compiled(), CPU, 1)(Numbered(number), torch.ones(1, 2))
    assert counted.graphs > 4


def test_nothing_of_a_trial_is_held_by_its_code(counted: Counted) -> None:
    trial = compiled(**SMALL)
    model = build_model(trial).train()
    model.call = compiling.compiled(trial, CPU, 1)
    views = tuple(torch.randn(12, 3, view.size, view.size) for view in trial.views)
    outputs = leaves(model(views, torch.arange(12), 0, 0))
    torch.autograd.backward([rows.sum() for rows in outputs])
    del outputs
    held: list[weakref.ref[Any]] = [weakref.ref(model), *(weakref.ref(one) for one in model.parameters())]
    del model
    gc.collect()
    assert not any(one() is not None for one in held)


def test_a_run_that_is_cut_within_an_epoch_goes_on_bit_for_bit(counted: Counted, tmp_path: Path) -> None:
    straight, begun, resumed = Recorder(), Recorder(), Recorder()
    run(tmp_path / "straight", straight, compiled(**SMALL))
    often = compiled(**SMALL, checkpoint_every_steps=2)
    with pytest.raises(PowerCutError):
        run(tmp_path / "broken", begun, often, progress=cut_at(5))
    torch.compiler.reset()  # another process goes on
    run(tmp_path / "broken", resumed, often, resume=begun.checkpoint)
    assert fingerprint(resumed.checkpoint) == fingerprint(straight.checkpoint)


def without_code(trial: dict[str, Any]) -> tuple[dict[str, Tensor], int]:
    """`gradients_of` on this rank, by `Counted`."""
    found = Counted()
    try:
        with patch.object(torch, "compile", found):
            return gradients_of(TrialConfig.model_validate(trial)), found.graphs
    finally:
        torch.compiler.reset()


@pytest.mark.slow
@pytest.mark.parametrize("changes", [VARIANTS["lars, teacher, predictor"], VARIANTS["dino, multi-crop"], PER_PART])
def test_two_workers_have_the_gradients_of_one(two_processes: TwoProcesses, changes: dict[str, Any]) -> None:
    trial = compiled(**changes)
    one = gradients_of(trial.model_copy(update={"compile": "off"}))
    for found, graphs in two_processes.run(without_code, trial.model_dump(mode="json")):
        assert graphs > 0
        if changes is not PER_PART:  # there, each worker's parts have statistics of both, which are other images
            assert_alike(found, one)
    first, second = two_processes.run(without_code, trial.model_dump(mode="json"))
    assert all(torch.equal(value, second[0][name]) for name, value in first[0].items())


def test_what_cannot_be_compiled_says_so_and_what_to_do(counted: Counted, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(graph: Any, inputs: Any) -> Any:
        raise RuntimeError("no such instruction")

    monkeypatch.setattr(counted, "_backend", broken)
    call = compiling.compiled(compiled(), CPU, 1)
    with pytest.raises(compiling.CompilationError, match=r"cannot compile Linear .*no such instruction.*compile=off"):
        call(nn.Linear(2, 2), torch.ones(1, 2))


def test_more_variants_than_are_kept_end_the_run_instead_of_changing_its_numbers(
    counted: Counted, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compiling, "MOST_VARIANTS", 2)
    call = compiling.compiled(compiled(), CPU, 1)
    layer = nn.Linear(2, 2)
    for rows in (1, 2):
        call(layer, torch.ones(rows, 2))
    with pytest.raises(compiling.CompilationError, match="set compile=off"):
        call(layer, torch.ones(3, 2))


def test_what_this_machine_or_its_device_cannot_compile_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ValueError, match="compile=cuda_graphs needs a CUDA GPU, but this run is on cpu"):
        run(tmp_path, Recorder(), config(compile="cuda_graphs"))
    with pytest.raises(ValueError, match="accumulate=2 saves memory, and compile=cuda_graphs holds"):
        config(compile="cuda_graphs", **PER_PART)
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(ValueError, match=r"needs a C.. compiler, but there is no no-such-compiler; install g"):
        run(tmp_path, Recorder(), compiled())
    compiling.check(config())
    monkeypatch.setenv("CXX", "g++ -O1")
    compiling.check(compiled())
    monkeypatch.delenv("CXX")
    monkeypatch.setattr("sysconfig.get_path", lambda name: str(tmp_path))
    with pytest.raises(ValueError, match=r"needs Python's headers, but there is no Python.h in .*python3-dev"):
        run(tmp_path, Recorder(), compiled())
    assert not list(tmp_path.iterdir())


def test_a_config_from_before_there_was_compiled_code_compiles_none() -> None:
    stored = config().model_dump(mode="json")
    assert stored.pop("compile") == "off"
    assert TrialConfig.model_validate(stored) == config()


# --- bf16 on a CPU ----------------------------------------------------------------------------------------------------


def test_bf16_is_refused_on_a_cpu_that_does_not_multiply_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_f": True, "avx512_bf16": False})
    with pytest.raises(
        ValueError,
        match=r"precision bf16 needs a GPU, or a CPU that multiplies it .*set precision=float32, or give each",
    ):
        run(tmp_path, Recorder(), config(precision="bf16"))
    assert not list(tmp_path.iterdir())


@networks
def test_bf16_trains_on_a_cpu_that_multiplies_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any]
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"amx_bf16": True})
    exact, rounded = gradients_of(config(**changes)), gradients_of(config(**changes, precision="bf16"))
    assert rounded.keys() == exact.keys()
    assert float(rounded["loss"]) == pytest.approx(float(exact["loss"]), rel=0.1, abs=0.02)
    assert float(rounded["loss"]) != float(exact["loss"])
    recorder = Recorder()
    assert run(tmp_path, recorder, config(**changes, precision="bf16", epochs=1)).state == "complete"


def bf16_gradients(trial: dict[str, Any]) -> dict[str, Tensor]:
    return gradients_of(TrialConfig.model_validate(trial))


def test_two_workers_in_bf16_have_the_loss_of_one(two_processes: TwoProcesses) -> None:
    trial = config(precision="bf16")
    one = gradients_of(trial)
    for found in two_processes.run(bf16_gradients, trial.model_dump(mode="json")):
        assert float(found["loss"]) == pytest.approx(float(one["loss"]), rel=0.02)


# --- with generated code ----------------------------------------------------------------------------------------------


def cold_run(folder: str) -> None:
    """What the fresh process of the next test does."""
    recorder = Recorder()
    run(Path(folder), recorder, compiled(**VARIANTS["lars, teacher, predictor"], seed=3))
    print(json.dumps([fingerprint(recorder.checkpoint), learned(recorder.reports[-1])]))


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of the test's own; one process compiles, as a pool of them would be for one test alone."""
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR", raising=False)
    monkeypatch.setenv("PRETUNE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("TORCHINDUCTOR_COMPILE_THREADS", "1")
    return tmp_path / "cache" / "compiled"


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_generated_code_has_the_plain_numbers_and_a_warm_trial_those_of_a_cold_process(
    tmp_path: Path, cache: Path
) -> None:
    changes = VARIANTS["lars, teacher, predictor"]
    torch.set_num_threads(1)
    torch.compiler.reset()
    assert_alike(gradients_of(compiled(**changes)), gradients_of(config(**changes)))
    begun, resumed, warm = Recorder(stop_at=1), Recorder(), Recorder()
    run(tmp_path / "warm", warm, compiled(**changes, seed=3))
    assert list(cache.glob("*/fxgraph")), "the cache on the disk is ours"
    run(tmp_path / "broken", begun, compiled(**changes, seed=3))
    torch.compiler.reset()
    run(tmp_path / "broken", resumed, compiled(**changes, seed=3), resume=begun.checkpoint)
    assert fingerprint(resumed.checkpoint) == fingerprint(warm.checkpoint)
    code = (
        "import importlib.util, sys; spec = importlib.util.spec_from_file_location('cold', sys.argv[1]); "
        "module = importlib.util.module_from_spec(spec); spec.loader.exec_module(module); module.cold_run(sys.argv[2])"
    )
    found = []
    # With the cache that is there, and with an empty one.
    for place in (cache.parent, tmp_path / "empty"):
        command = [sys.executable, "-c", code, __file__, str(tmp_path / place.name)]
        environment = {name: value for name, value in os.environ.items() if name != "TORCHINDUCTOR_CACHE_DIR"}
        root = Path(__file__).parents[2]
        answer = subprocess.run(
            command,
            cwd=root,
            capture_output=True,
            text=True,
            check=True,
            timeout=900,
            env={**environment, "PRETUNE_CACHE": str(place)},
        )
        found.append(json.loads(answer.stdout.splitlines()[-1]))
    assert found == [[fingerprint(warm.checkpoint), learned(warm.reports[-1])]] * 2


def generated(trial: dict[str, Any], cache: str) -> dict[str, Tensor]:
    os.environ |= {"TORCHINDUCTOR_CACHE_DIR": cache, "TORCHINDUCTOR_COMPILE_THREADS": "1"}
    torch.set_num_threads(1)
    try:
        return gradients_of(TrialConfig.model_validate(trial))
    finally:
        torch.compiler.reset()
        del os.environ["TORCHINDUCTOR_CACHE_DIR"]


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_two_workers_with_generated_code_have_the_gradients_of_one(two_processes: TwoProcesses, cache: Path) -> None:
    trial = compiled(**VARIANTS["lars, teacher, predictor"])
    one = gradients_of(trial.model_copy(update={"compile": "off"}))
    for found in two_processes.run(generated, trial.model_dump(mode="json"), str(cache), timeout_s=900.0):
        assert_alike(found, one)
