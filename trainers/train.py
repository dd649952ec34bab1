"""One pretraining run, from a config to an outcome. The loop is `_run`, and it reads from top to bottom.

It knows neither who started it nor who watches: `report` gets each finished epoch and answers whether to go on,
`progress` hears of each step. There is no hidden state: what a step does depends on the config, the step number, the
sample ids and the tensors that a checkpoint holds. A run that is resumed, at the end of an epoch or within one, or that
follows others in the same process, is therefore the same, bit for bit (one CPU type, one number of threads; on a GPU
with `config.deterministic`).
"""

from __future__ import annotations

import logging
import math
import os
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from trainers import accumulation, checkpoint, compiling, dist, memory, optim, sentinel, storage
from trainers.config import TrialConfig
from trainers.data.feed import feed, moved, timed, wait_clock
from trainers.data.loader import Batch, steps_per_epoch
from trainers.evaluation import health, probe, quick
from trainers.model import Model, build_model
from trainers.objective import Objective
from trainers.operations import Operations
from trainers.report import Checkpoint, EpochReport, Outcome
from trainers.saving import Saver
from trainers.weights.opening import initialize

if TYPE_CHECKING:
    from trainers.data.datasets import Dataset
    from trainers.data.loader import Loaders
    from trainers.terms import Outputs

logger = logging.getLogger(__name__)

GPU_CHECK_EVERY = 20
"""Optimizer steps between looks at a GPU's numbers: each look waits for the device. On a CPU each step is looked at."""
NOTICE_EVERY = 10
"""Optimizer steps between which several ranks agree whether `progress` asked for a checkpoint."""
LARGE = 1e8
"""Embeddings above this have fourth powers that float32 cannot hold; healthy ones are of the size of 1."""
JUDGED_BY = "probe/linear"
"""The metric whose best checkpoint is kept; without labels there is no such number, and no such checkpoint."""


@dataclass
class Counters:
    """All of the loop's own state; tensors apart, a checkpoint needs no more."""

    epoch: int = 0
    """Epochs finished."""
    step: int = 0
    """Optimizer steps done."""
    views: int = 0
    """Augmented views seen, over all ranks: images x views per image."""
    seconds: float = 0.0
    """Spent in training, without probes and checkpoints, on rank 0, over all resumes, in finished epochs."""
    epoch_seconds: float = 0.0
    """The same of the epoch that is not finished."""
    complaints: int = 0
    """Looks of the sentinel in a row that found fault."""
    best_epoch: int = 0
    """Of the checkpoint with the best `JUDGED_BY` so far; 0 before there is one."""
    best_score: float = -math.inf
    """Its value."""

    def judge(self, epoch: int, score: float | None) -> None:
        """What the checkpoint of `epoch` is worth, if anybody has said so."""
        if score is not None and score > self.best_score:
            self.best_epoch, self.best_score = epoch, score


@dataclass
class Footprint:
    """What a run that runs out of memory is told of."""

    fixed_bytes: float = 0.0
    """For parameters, buffers, gradients and the optimizer's moments, whatever the batch."""


def _ignore(epoch: int, step: int) -> bool:
    """The default for `progress`."""
    return False


def train(
    config: TrialConfig,
    *,
    dataset: Dataset,
    loaders: Loaders,
    folder: Path | str,
    report: Callable[[EpochReport], bool],
    resume: Checkpoint | None = None,
    progress: Callable[[int, int], bool | None] = _ignore,
    device: torch.device | None = None,
) -> Outcome:
    """Run `config` on this process, or on all ranks of the process group, which must all call this with equal values.

    `folder` gets `checkpoints/epoch-0003.pt`, written by rank 0, before the `report` that carries it. Kept are the two
    newest (in the end one), the best by `JUDGED_BY` and the last before the learning rate decays. With
    `config.checkpoint_every_steps` the newest one within an epoch lies there too, until the epoch's own does; a run
    that begins or goes on with this epoch finds it by itself. A `folder` that is text is a URI (storage.py). Where
    `resume` is damaged, the run goes on from an earlier one, and says so in its log.

    `report` is called on all ranks with the same report after each epoch, and must give all ranks the same answer: True
    to go on. `progress` is called after each optimizer step with the epochs finished and the steps done; where it
    answers True on rank 0 (this machine will be taken away), a checkpoint is written within `NOTICE_EVERY` steps, and
    training goes on.
    `device` defaults to the current GPU, else the CPU.

    ValueError, before anything runs: a precision or compiled code that this device cannot have, no whole batch in the
    data, a checkpoint that is damaged or does not belong to this config and data. CUDA running out of memory is an
    outcome on one rank; with several it is raised, as the other ranks then wait in a collective and the group must be
    replaced. Either says what the run held, and what would need less.
    """
    if device is None:
        device = torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")
    check_device(config, device)
    counters, footprint = Counters(), Footprint()
    checkpoints = storage.join(folder, "checkpoints") if isinstance(folder, str) else folder / "checkpoints"
    try:
        with Saver(checkpoints) as saver:
            return _run(config, dataset, loaders, saver, report, resume, progress, device, counters, footprint)
    except torch.OutOfMemoryError as error:
        held = memory.peaks(device)
        remedy = memory.remedy(
            config,
            workers=dist.world_size(),
            peak_bytes=held.get("memory/gpu_peak_bytes", held["memory/host_peak_bytes"]),
            fixed_bytes=footprint.fixed_bytes,
            capacity_bytes=memory.capacity_bytes(device),
        )
        reason = f"GPU memory ran out: {str(error).splitlines()[0].rstrip('.')}; {remedy}"
        if dist.world_size() > 1:
            raise torch.OutOfMemoryError(reason) from error
    # Only here are the run's tensors unreachable; the next trial in this process needs their memory.
    if device.type == "cuda":
        torch.cuda.empty_cache()
    return Outcome(state="out_of_memory", reason=reason, epochs=counters.epoch)


def check_device(config: TrialConfig, device: torch.device) -> None:
    """ValueError where `device` cannot train in the precision of `config`, or cannot compile what it asks for."""
    if config.precision == "bf16" and device.type != "cuda" and not (device.type == "cpu" and cpu_multiplies_bf16()):
        raise ValueError(
            f"precision bf16 needs a GPU, or a CPU that multiplies it (AVX512_BF16, AMX, or ARM's BF16), but this run "
            f"is on a {device} that does not; set precision=float32, or give each worker a GPU (a sweep does with "
            "--gpus-per-worker 1)"
        )
    compiling.check_device(config, device)


def cpu_multiplies_bf16() -> bool:
    """Whether this CPU has instructions for products of bf16; others compute them by way of float32, and slower."""
    found = torch.cpu.get_capabilities()
    return any(found.get(name, False) for name in ("avx512_bf16", "amx_bf16", "bf16"))


def _run(
    config: TrialConfig,
    dataset: Dataset,
    loaders: Loaders,
    saver: Saver,
    report: Callable[[EpochReport], bool],
    resume: Checkpoint | None,
    progress: Callable[[int, int], bool | None],
    device: torch.device,
    counters: Counters,
    footprint: Footprint,
) -> Outcome:
    # --- set-up -------------------------------------------------------------------------------------------------------
    called = time.perf_counter()
    first_step_s: float | None = None
    configure_torch(config, device)
    memory.reset_peaks(device)
    rank, world_size = dist.rank(), dist.world_size()
    epoch_steps = steps_per_epoch(dataset, config)
    total_steps = config.epochs * epoch_steps

    # --- model, objective, optimizer ----------------------------------------------------------------------------------
    # Channels last is 1.2 times as fast on a CPU too (resnet_tiny at 16 px), and the loaders' views come so.
    model = build_model(config).to(device).to(memory_format=torch.channels_last)
    if config.compile != "off":
        model.call = compiling.compiled(config, device, world_size)
    accumulation.check_batch_norm(model, config)
    objective = Objective(config.objective)
    operations = Operations(config.views)
    optimizer = optim.build_optimizer(model, config.optimizer)
    footprint.fixed_bytes = _fixed_bytes(model, config)
    state = _state_to_go_on_from(saver.folder, resume, config, dataset)
    meter = StepMeter()
    if state is not None:
        model.load_state_dict(state["model"])
        optim.load_state(optimizer, state["optimizer"])
        for name, value in state["counters"].items():
            setattr(counters, name, value)
        counters.judge(counters.epoch, state["score"])
        if "meter" in state:
            meter.load_state(state["meter"], device)
    else:
        initialize(model, config)
    network = data_parallel(model, objective, config, device)
    if state is not None and "rank_buffers" in state:
        # Only now: when it is made, DDP gives all ranks the buffers of one.
        for name, value in state["rank_buffers"][rank].items():
            model.get_buffer(name).copy_(value)
    training_step = TrainingStep(config, model, objective, optimizer, network)
    watched = config.sentinel if any(term.reads_embeddings for term in objective.terms.values()) else None

    # The last checkpoint before the decay: from there a longer run can go on.
    before_decay = config.schedule.last_epoch_before_decay(config.epochs)
    before_decay -= before_decay % config.checkpoint_every
    noticed = False
    start_epoch = counters.epoch
    while counters.epoch < config.epochs:
        # --- one epoch of steps ---------------------------------------------------------------------------------------
        begun = time.perf_counter()
        started = begun - counters.epoch_seconds
        waits = wait_clock(device)
        model.train()
        first_step = counters.epoch * epoch_steps
        batches = loaders.epoch(
            dataset,
            config,
            epoch=counters.epoch,
            rank=rank,
            world_size=world_size,
            first_step=counters.step - first_step,
            pinned=device.type == "cuda",
        )
        for views, sample_ids in timed(feed(batches, device), waits):
            _keep_threads(config)
            views = operations(views, sample_ids, seed=config.seed, epoch=counters.epoch)
            rate = optim.learning_rate(config.optimizer.learning_rate, config.schedule, counters.step, total_steps)

            found = training_step.gradients(views, sample_ids, counters.step)

            # Parts are global values and gradients were reduced: every rank sees the same numbers and ends alike.
            numbers = _prefixed("loss", found.parts)
            numbers |= {"loss/total": found.loss, "optim/gradient_norm": found.gradient_norm}
            meter.add(counters.step, numbers | _prefixed("health", found.health))
            last = counters.step + 1 == first_step + epoch_steps
            if device.type == "cpu" or last or (counters.step + 1) % GPU_CHECK_EVERY == 0:
                bad = meter.first_not_finite()
                if bad is not None:
                    reason = f"{bad[0]} was not finite at step {bad[1]}, in epoch {counters.epoch + 1}"
                    reason += _sizes(found.outputs)
                    return Outcome(state="diverged", reason=reason, epochs=counters.epoch)

            if watched is not None and (counters.step + 1) % watched.every == 0:
                complaint = sentinel.complaint(found.outputs, found.health, found.gradient_norm, watched)
                counters.complaints = counters.complaints + 1 if complaint else 0
                if counters.complaints == watched.patience:
                    reason = f"{complaint}, {watched.patience} times in a row until step {counters.step}"
                    return Outcome(state="collapsed", reason=reason, epochs=counters.epoch)

            del found  # its outputs would lie beside those of the next step
            training_step.update(rate, counters.step, total_steps)
            counters.step += 1
            counters.views += len(views) * config.batch_size
            noticed = bool(progress(counters.epoch, counters.step)) or noticed
            if first_step_s is None:
                first_step_s = time.perf_counter() - called
            every = config.checkpoint_every_steps
            due = every is not None and counters.step % every == 0
            # Only between the ends of epochs that have one, where it will be looked for.
            if config.checkpoint_every == 1 and (world_size == 1 or counters.step % NOTICE_EVERY == 0):
                due, noticed = dist.broadcast_object(noticed) or due, False
            if due and not last:
                counters.epoch_seconds = time.perf_counter() - started
                now = _state(model, optimizer, counters, config, dataset, meter=meter)
                saver.begin(now, epoch=counters.epoch, step=counters.step)
        batch_count = counters.step - first_step
        if batch_count != epoch_steps:
            raise RuntimeError(f"an epoch must have {epoch_steps} steps, but the loader gave {batch_count} batches")
        if config.model.norm == "batch_per_rank":
            _average_buffers(model)
        metrics = meter.means()
        meter = StepMeter()
        if counters.epoch == start_epoch and first_step_s is not None:
            metrics["time/first_step_s"] = first_step_s
        ended = time.perf_counter()
        seconds = ended - started
        wait_share = min(1.0, waits.seconds() / (ended - begun))
        counters.epoch += 1
        counters.seconds += seconds
        counters.epoch_seconds = 0.0

        # --- checkpoint, written while the probe runs -----------------------------------------------------------------
        done = counters.epoch == config.epochs
        due = done or counters.epoch % config.checkpoint_every == 0
        if due:
            saver.begin(_state(model, optimizer, counters, config, dataset), epoch=counters.epoch)

        # --- probe and health -----------------------------------------------------------------------------------------
        if done or counters.epoch % config.probe.every == 0:
            started = time.perf_counter()
            model.eval()
            if dataset.has_labels:
                metrics |= probe.evaluate(
                    model.encode,
                    dataset=dataset,
                    loaders=loaders,
                    config=config,
                    device=device,
                    full=done,
                    beside=partial(
                        quick.accuracies, config.probe.protocols, class_count=dataset.class_count, device=device
                    ),
                )
            metrics |= health.evaluate(model.embed, dataset=dataset, loaders=loaders, config=config, device=device)
            metrics["time/probe_s"] = time.perf_counter() - started
            _keep_threads(config)

        # --- report, once the checkpoint is there ---------------------------------------------------------------------
        metrics |= {
            "epoch": counters.epoch,
            "budget/views": counters.views,
            "budget/seconds": counters.seconds,
            "time/epoch_s": seconds,
            "time/images_per_s": epoch_steps * config.batch_size / seconds,
            "model/parameters": sum(parameter.numel() for parameter in model.backbone.parameters()),
            "optim/learning_rate": rate,
            **_most({"time/wait_share": wait_share, **memory.peaks(device)}),
        }
        metrics = dist.broadcast_object(metrics)
        if bad_metrics := [name for name, value in metrics.items() if not math.isfinite(value)]:
            reason = f"{bad_metrics[0]} was not finite after epoch {counters.epoch}"
            return Outcome(state="diverged", reason=reason, epochs=counters.epoch)
        saved = None
        if due:
            score = metrics.get(JUDGED_BY)
            saved = saver.finish(score)
            counters.judge(counters.epoch, score)
        going_on = report(EpochReport(epoch=counters.epoch, metrics=metrics, checkpoint=saved))
        if rank == 0 and saved is not None:
            kept = {counters.best_epoch, before_decay}
            checkpoint.retain(saver.folder, epoch=saved.epoch, count=1 if done else 2, kept=kept)
            checkpoint.remove_within(saver.folder)
        if not going_on and not done:
            return Outcome(state="stopped", reason="report asked for it", epochs=counters.epoch)

    return Outcome(state="complete", epochs=counters.epoch)


# --- parts of the loop ------------------------------------------------------------------------------------------------


class Found(NamedTuple):
    """What the first half of a step finds; no parameter has moved yet."""

    outputs: Outputs
    loss: Tensor
    parts: dict[str, Tensor]
    """Each term's unweighted value."""
    health: dict[str, Tensor]
    """What terms say of the embeddings."""
    gradient_norm: Tensor
    """Over all trained parameters, before it is clipped."""


class TrainingStep:
    """One step of training in two halves: the loop looks between them, so that a step that diverged is never taken."""

    def __init__(
        self,
        config: TrialConfig,
        model: Model,
        objective: Objective,
        optimizer: torch.optim.Optimizer,
        network: nn.Module | None = None,
    ) -> None:
        """`network`: what is called with a batch in the place of `model`, where that is inside DDP."""
        self._config = config
        self._model = model
        self._objective = objective
        self._optimizer = optimizer
        self._network = model if network is None else network
        self._trained = [parameter for parameter in model.parameters() if parameter.requires_grad]

    def gradients(self, views: tuple[Tensor, ...], sample_ids: Tensor, step: int) -> Found:
        """Forward, loss, backward and clipping, for views [n, 3, S, S] and global sample ids [n] on the same device."""
        precision, seed = _autocast(self._config, sample_ids.device), self._config.seed
        self._optimizer.zero_grad(set_to_none=True)  # before CUDA graphs write over the last step's gradients
        compiling.begin_step(self._config)
        batch: list[accumulation.Part] = []
        if self._config.accumulate > 1:
            batch = accumulation.parts_of(views, sample_ids, self._config.accumulate)
        with precision:
            if batch:
                outputs = accumulation.read_by_terms(self._model, batch, seed=seed, step=step)
            else:
                outputs = self._network(views, sample_ids, seed, step)
        loss, parts = self._objective(outputs)
        health_parts = self._objective.metrics(outputs)
        loss.backward()  # type: ignore[no-untyped-call]
        if batch:
            accumulation.send_back(self._network, batch, outputs, precision)
        settings = self._config.optimizer
        gradient_norm = optim.clip_gradients(self._trained, settings.clip_norm, settings.clip_scope)
        return Found(outputs, loss, parts, health_parts, gradient_norm)

    def update(self, rate: float, step: int, total_steps: int) -> None:
        """Moves the parameters by their gradients at learning rate `rate`, then the teacher."""
        optim.set_step(self._optimizer, self._config.optimizer, rate, step, total_steps)
        self._optimizer.step()
        self._model.update_teacher(step, total_steps)


def _fixed_bytes(model: Model, config: TrialConfig) -> float:
    moments = 2 if config.optimizer.kind in ("adam", "adamw") else 1
    held = sum(tensor.nbytes for tensor in (*model.parameters(), *model.buffers()))
    trained = sum(parameter.nbytes for parameter in model.parameters() if parameter.requires_grad)
    return float(held + (1 + moments) * trained)


def _autocast(config: TrialConfig, device: torch.device) -> AbstractContextManager[object]:
    """For a forward pass: in the config's precision."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=config.precision == "bf16")


class StepMeter:
    """Sums of the steps' numbers over an epoch, and where each first was not finite; on their device until asked."""

    def __init__(self) -> None:
        self._names: list[str] = []
        self._sums = torch.zeros(0)
        self._bad_steps = torch.zeros(0)
        self._count = 0

    def add(self, step: int, values: dict[str, Tensor]) -> None:
        """The scalars of optimizer step `step`, under the same names at each step."""
        row = torch.stack([value.detach().double() for value in values.values()])
        if self._count == 0:
            self._names = list(values)
            self._sums = torch.zeros_like(row)
            self._bad_steps = torch.full_like(row, math.inf)
        self._sums += row
        self._bad_steps = torch.where(row.isfinite(), self._bad_steps, self._bad_steps.clamp(max=step))
        self._count += 1

    def first_not_finite(self) -> tuple[str, int] | None:
        """Name and step of the first number that was not finite, or None. Of several in one step, the first added."""
        steps = self._bad_steps.tolist()
        first = min(steps)
        return None if math.isinf(first) else (self._names[steps.index(first)], int(first))

    def means(self) -> dict[str, float]:
        """Each number's mean over the steps."""
        return dict(zip(self._names, (self._sums / self._count).tolist(), strict=True))

    def state(self) -> dict[str, Any]:
        """What a checkpoint holds of it."""
        return {"names": self._names, "sums": self._sums, "bad_steps": self._bad_steps, "count": self._count}

    def load_state(self, state: dict[str, Any], device: torch.device) -> None:
        """Go on from what `state` returned."""
        self._names, self._count = state["names"], state["count"]
        self._sums, self._bad_steps = state["sums"].to(device), state["bad_steps"].to(device)


def _state_to_go_on_from(
    checkpoints: Path | str, resume: Checkpoint | None, config: TrialConfig, dataset: Dataset
) -> dict[str, Any] | None:
    """The state of the newest checkpoint that can be believed, from `resume` on or before it, with its score; None to
    begin afresh.

    ValueError where `resume` does not belong to this config and data, DamagedError where it and all earlier ones are
    damaged.
    """
    state: dict[str, Any] | None = None
    chosen: Checkpoint | ValueError | None = None
    if dist.rank() == 0:
        try:
            chosen, state = _newest_usable(checkpoints, resume, config, dataset)
        except ValueError as error:
            chosen = error
    # All ranks go on from what one of them found.
    chosen = dist.broadcast_object(chosen)
    if isinstance(chosen, ValueError):
        raise chosen
    if chosen is None:
        return None
    return {**(state or checkpoint.load(chosen)), "score": checkpoint.score(chosen)}


def _newest_usable(
    checkpoints: Path | str, resume: Checkpoint | None, config: TrialConfig, dataset: Dataset
) -> tuple[Checkpoint | None, dict[str, Any] | None]:
    epoch = 0 if resume is None else resume.epoch
    within = checkpoint.newest_within(checkpoints, epoch=epoch)
    if within is not None:
        try:
            state = checkpoint.load(within)
            checkpoint.check_resumable(state, config, dataset.manifest_hash)
        except ValueError as error:
            logger.warning("going on from the end of epoch %d instead: %s", epoch, error)
        else:
            ranks = len(state.get("rank_buffers", ()))
            if ranks in (0, dist.world_size()):
                return within, state
            logger.warning("going on from the end of epoch %d: %s is of %d workers", epoch, within.path, ranks)
    if resume is None:
        return None, None
    damaged: checkpoint.DamagedError | None = None
    for candidate in (resume, *checkpoint.earlier(checkpoints, than=epoch)):
        try:
            state = checkpoint.load(candidate)
        except checkpoint.DamagedError as error:
            logger.warning("going on from an earlier checkpoint, if there is one: %s", error)
            damaged = damaged or error
        else:
            checkpoint.check_resumable(state, config, dataset.manifest_hash)
            return candidate, state
    assert damaged is not None
    raise damaged


def configure_torch(config: TrialConfig, device: torch.device) -> None:
    """torch's process-wide settings, set anew by each run so that none inherits those of the trial before it."""
    _keep_threads(config)
    if device.type != "cuda":
        return
    # "float32" means float32: TF32 would break the exactness under DDP (1e-5) and Gram matrices. bf16 is the fast way.
    torch.backends.cuda.matmul.fp32_precision = "ieee"
    torch.backends.cudnn.conv.fp32_precision = "ieee"  # type: ignore[attr-defined]
    torch.backends.cudnn.benchmark = not config.deterministic
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # what deterministic matrix products ask for
    torch.use_deterministic_algorithms(config.deterministic)


def _keep_threads(config: TrialConfig) -> None:
    """Float sums depend on the number of threads, and FFCV changes it."""
    if torch.get_num_threads() != config.threads:
        torch.set_num_threads(config.threads)


def data_parallel(
    model: Model,
    objective: Objective,
    config: TrialConfig,
    device: torch.device,
) -> nn.Module:
    """The model itself on one rank, else inside DDP, whose mean over ranks makes gradients those of the global batch.

    Buffers need no broadcast: synchronized batch norm keeps them equal, and others are averaged each epoch. What DDP
    does need are two passes over noise, in evaluation mode so that they leave no trace in running statistics (blank
    images would all have one embedding, which a whitening rightly refuses):

    The first finds the parameters that no term reaches (a predictor, or a projector, whose terms have weight zero).
    They stop asking for a gradient, as DDP would wait for it for ever. The second is DDP's own first step, after
    which it lays out gradients anew, in the order in which they come. On three ranks and more float sums depend on
    that layout; settled here, it is the same for a run from its start and for one that is resumed.
    """
    if dist.world_size() == 1:
        return model
    rows = config.batch_size // dist.world_size()
    keyed = torch.Generator().manual_seed(dist.rank())
    noise = tuple(torch.randn(rows, 3, view.size, view.size, generator=keyed) for view in config.views)
    batch = moved(Batch(noise, torch.arange(rows) + dist.row_offset(rows)), device)
    inputs = (*batch, config.seed, 0)
    model.eval()
    parts = accumulation.parts_of(*inputs[:2], config.accumulate) if config.accumulate > 1 else []
    seed, step = inputs[2:]
    with _autocast(config, device):
        outputs = accumulation.read_by_terms(model, parts, seed=seed, step=step) if parts else model(*inputs)
    loss = objective(outputs)[0]
    if parts:
        loss.backward()  # type: ignore[no-untyped-call]
        with _autocast(config, device):
            part = model(*parts[0], seed, step, with_targets=False)
        reached = _parameters_behind(*(end for end, _ in accumulation.behind(part, outputs, 0, len(parts))))
        del part
    else:
        reached = _parameters_behind(loss)
        del outputs  # both graphs together might not fit in memory
    del loss
    for parameter in model.parameters():
        parameter.requires_grad_(parameter in reached)
    network = DistributedDataParallel(
        model,
        device_ids=[device] if device.type == "cuda" else None,
        forward_sync_buffers=False,
        gradient_as_bucket_view=True,
    )
    if parts:
        accumulation.send_back(network, parts, outputs, _autocast(config, device))
    else:
        with _autocast(config, device):
            outputs = network(*inputs)
        objective(outputs)[0].backward()  # type: ignore[no-untyped-call]
    model.zero_grad(set_to_none=True)
    return network


def _parameters_behind(*ends: Tensor) -> set[Tensor]:
    """The leaves of the graph that made `ends`."""
    found: set[Tensor] = set()
    seen: set[object] = set()
    waiting = [end.grad_fn for end in ends]
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            found.add(node.variable)
        waiting += [following for following, _ in node.next_functions]
    return found


def _sizes(outputs: Outputs) -> str:
    """In words, how large this rank's embeddings are where they alone may be why a loss overflows; empty elsewhere."""
    sizes = {
        name: max(float(rows.detach().abs().max()) for rows in views)
        for name, views in (("features", outputs.features), ("projections", outputs.projections))
    }
    strange = [f"{name} up to {size:.2g}" for name, size in sizes.items() if not size < LARGE]
    return f"; {' and '.join(strange)}: lower the learning rate, or set optimizer.clip_norm" if strange else ""


def _prefixed(prefix: str, values: dict[str, Tensor]) -> dict[str, Tensor]:
    return {f"{prefix}/{name}": value for name, value in values.items()}


def _most(values: dict[str, float]) -> dict[str, float]:
    """Of each number the largest over the ranks."""
    ranks = dist.gather_objects(values)
    return {name: max(of_rank[name] for of_rank in ranks) for name in values}


@torch.no_grad()
def _average_buffers(model: Model) -> None:
    """Running statistics that each rank kept become their mean, so that all ranks judge, save and resume one model."""
    for buffer in model.buffers():
        if buffer.is_floating_point():
            buffer.copy_(dist.mean_over_ranks(buffer))


def _state(
    model: Model,
    optimizer: torch.optim.Optimizer,
    counters: Counters,
    config: TrialConfig,
    dataset: Dataset,
    *,
    meter: StepMeter | None = None,
) -> dict[str, Any]:
    """What a checkpoint holds. `meter`: of the epoch that is not finished; without, it is of an epoch's end."""
    within: dict[str, Any] = {}
    if meter is not None:
        within["meter"] = meter.state()
        if config.model.norm == "batch_per_rank" and dist.world_size() > 1:
            # Running statistics that differ until the epoch ends (`_average_buffers`).
            own = {name: buffer.cpu() for name, buffer in model.named_buffers() if buffer.is_floating_point()}
            within["rank_buffers"] = dist.gather_objects(own)
    return {
        "config": config.model_dump(mode="json"),
        "manifest": dataset.manifest_hash,
        # What an encoder needs of the data, so that it can be used where they are not.
        "normalization": {
            "mean": list(dataset.manifest.mean),
            "std": list(dataset.manifest.std),
            "gray_white": dataset.manifest.gray_white,
            "max_side": dataset.manifest.max_side,
        },
        "counters": asdict(counters),
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        **within,
    }
