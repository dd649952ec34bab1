"""A warm worker group: one long-lived Ray Train run that serves trial after trial.

`TorchTrainer.fit()` runs in a thread of the slot's process. Its training function (`worker.loop`) takes commands from a
mailbox until it is told to shut down. Start-up (imports, process group, CUDA context, compiled pipelines, open files)
is so paid once per slot and not once per trial. Ray Train restarts the group when a worker dies; the group then
announces itself with a new generation, and the slot tells it what to run from which checkpoint.
"""

from __future__ import annotations

import logging
import os
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pretune.execution import ray_private
from pretune.execution.mailbox import Command, Event, Lost, Mailbox, Ready, Worker
from pretune.execution.processes import kill_process, process_started, proportional_bytes
from pretune.execution.settings import SlotSettings
from trainers.files import write_whole

if TYPE_CHECKING:
    from pretune.execution.worker import Train

logger = logging.getLogger(__name__)

POLL_S = 2.0
"""Bound of one long poll of the slot; between two polls it looks at its fit thread and at the workers' silence."""
CALL_S = 60.0
"""Bound of any other call to the mailbox, which only touches memory."""


class GroupStartError(RuntimeError):
    """The worker group could not be placed or started within its bound."""


class NoRoomError(GroupStartError):
    """The cluster had no room for the workers within the bound: nobody's failure, others may hold it."""


class Group:
    """Owns the mailbox, the thread in which `fit()` runs, and the handles of the workers. Not thread-safe: one slot
    uses it.
    """

    def __init__(self, settings: SlotSettings, make_train: Callable[[], Train] | None = None) -> None:
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        self.settings = settings
        self.name = f"slot-{uuid.uuid4().hex[:8]}"
        self.generation = 0
        """Of the newest group that announced itself: how often a worker group was started for this slot."""
        self.workers: tuple[Worker, ...] = ()
        """Of the group that waits or works now; empty while none is up."""
        self.preempted = False
        """Whether Ray has said that a machine of this group will be taken away."""
        self._make_train = make_train
        self._records = Path(settings.sweep_folder) / "slots"
        self._job = ray.get_runtime_context().get_job_id()
        self._reclaim()
        # On the slot's own node: a machine that is taken away takes workers, but nobody that knows what they did.
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        mailbox = ray.remote(Mailbox).options(
            name=self.name, num_cpus=0, max_concurrency=1000, scheduling_strategy=here
        )
        self._mailbox: Any = mailbox.remote(settings.workers)
        self._acknowledged = 0
        self._pending: deque[Event] = deque()
        self._silence_s: dict[int, float] = {}
        self._fit_error: BaseException | None = None
        self._fits = 0
        self._starting_since: float | None = None
        self._start_s: float | None = None
        self._closing = False
        self._next_look = 0.0
        self._thread = self._start_fit()

    # ---- life --------------------------------------------------------------------------------------------------------

    def _start_fit(self) -> threading.Thread:
        self._fits += 1
        self._fit_error = None
        self._starting_since = time.monotonic()
        thread = threading.Thread(target=self._fit, name=f"fit-{self.name}-{self._fits}", daemon=True)
        thread.start()
        return thread

    def _fit(self) -> None:
        """Runs until the group is told to shut down. Whatever ends it before is kept for the slot, which watches this
        thread.
        """
        try:
            from pretune.execution.trainrun import make_run

            name = f"{self.name}-{self._fits}"
            make_run(name, self._mailbox, self.settings, self._make_train).fit()
        except BaseException as error:  # it must reach the slot's thread, whatever it is
            self._fit_error = error
            if not self._closing:
                logger.warning("%s: Ray Train's run ended: %s", self.name, error)

    def ready(self) -> int:
        """Wait until a group is up; its generation. Raises NoRoomError, naming what is missing, when the bound has
        passed, GroupStartError where the start itself fails.
        """
        settings = self.settings
        deadline = time.monotonic() + settings.group_start_timeout_s
        fits_at_most = self._fits + 2
        while not self.workers:
            if not self._thread.is_alive():
                if self._fits >= fits_at_most:
                    raise GroupStartError(
                        f"the worker group of {self.name} ended while it started, {self._fits} times: {self._fit_error}"
                    ) from self._fit_error
                self._thread = self._start_fit()
            if time.monotonic() > deadline:
                raise NoRoomError(self._what_is_missing())
            if self._poll(POLL_S) is None:
                self._reclaim()
        return self.generation

    def _what_is_missing(self) -> str:
        import ray

        settings = self.settings
        wanted = " + ".join(f"{amount:g} {name}" for name, amount in settings.resources_per_worker.items())
        free: dict[str, float] = ray.available_resources()  # type: ignore[no-untyped-call]
        held: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
        names = settings.resources_per_worker
        have = ", ".join(f"{held.get(name, 0.0):g} {name} of which {free.get(name, 0.0):g} free" for name in names)
        return (
            f"no worker group within {settings.group_start_timeout_s:g} s: {settings.workers} workers of {wanted} each "
            f"were asked for, the cluster holds {have}; add nodes, or run fewer trials at once with --slots. They are "
            "asked for again until there is room"
        )

    def replace(self, reason: str) -> None:
        """Kill the workers of this group. Ray Train starts a new one, for which `ready` waits."""
        logger.info("%s: generation %d is replaced: %s", self.name, self.generation, reason)
        workers, self.workers = self.workers, ()
        self._starting_since = time.monotonic()
        kill(workers)

    def memory_bytes(self) -> int:
        """What the slot takes of its node beside its workers: this process and the mailbox; pages that processes share
        are counted once.
        """
        import ray

        pids = [os.getpid(), ray.get(self._mailbox.pid.remote(), timeout=CALL_S)]
        return sum(proportional_bytes(pid) for pid in pids)

    def take_start_s(self) -> float | None:
        """Seconds that the newest start took, placing, imports and process group included; told once, then None."""
        start_s, self._start_s = self._start_s, None
        return start_s

    def close(self, timeout_s: float = 45.0) -> None:
        """Shut the group down and wait until Ray Train has given everything back; kill what does not end by itself.
        Idempotent.
        """
        import ray

        if self._closing:
            return
        self._closing = True
        try:
            ray.get(self._mailbox.close.remote(), timeout=CALL_S)
        except ray.exceptions.RayError as error:
            logger.warning("%s: the mailbox is gone already: %s", self.name, error)
        self._thread.join(timeout_s * 2 / 3)
        if self._thread.is_alive():
            logger.warning("%s: the group does not end by itself; killing its workers", self.name)
            kill(self.workers)
            self._thread.join(timeout_s / 3)
        if self._thread.is_alive():
            logger.error("%s: Ray Train's run did not end within %g s; it dies with this process", self.name, timeout_s)
        self.workers = ()
        ray.kill(self._mailbox)
        self._record.unlink(missing_ok=True)

    # ---- placement groups of slots that died -------------------------------------------------------------------------

    # A slot that is killed takes its mailbox and the workers with it: Ray kills what a dead process owns. Only the
    # workers' placement group stays, with their CPUs and GPUs. Ray Train's cleaner removes it where a dashboard answers
    # its questions; the slot that Tune starts next does so anywhere. What another driver has noted is not touched: Ray
    # took back all of its groups when it ended, or it lives and this sweep is a copy of its.

    @property
    def _record(self) -> Path:
        return self._records / f"{self.name}.placement"

    def _reclaim(self) -> None:
        """Remove the placement groups of this driver's slots whose mailbox is gone."""
        import ray
        from ray.util.placement_group import PlacementGroup, remove_placement_group

        self._records.mkdir(parents=True, exist_ok=True)
        for record in sorted(self._records.glob("*.placement")):
            job, _, place = record.read_text().partition(" ")  # older versions noted the place alone
            if job != self._job:
                record.unlink(missing_ok=True)
                continue
            try:
                ray.get_actor(record.stem)
            except ValueError:
                remove_placement_group(PlacementGroup(ray.PlacementGroupID.from_hex(place)))
                record.unlink(missing_ok=True)
                logger.warning("%s: took back the resources of %s, whose process is gone", self.name, record.stem)

    # ---- talk --------------------------------------------------------------------------------------------------------

    def send(self, command: Command) -> bool:
        """False if the group was restarted meanwhile; `event` then tells of the new one."""
        import ray

        self._silence_s = {}
        return bool(ray.get(self._mailbox.send.remote(self.generation, command), timeout=CALL_S))

    def event(self) -> Event | None:
        """The next event of the current group, or `Ready` of a new one; None after about `POLL_S`. Restarts a run that
        ended.
        """
        if not self._thread.is_alive():
            self.workers = ()
            self._thread = self._start_fit()
        return self._poll(POLL_S)

    @property
    def longest_silence_s(self) -> float:
        """Of the rank that was quiet longest, since the last command."""
        return max(self._silence_s.values(), default=0.0)

    def dead_ranks(self) -> list[int]:
        """Ranks whose process is gone: looked up on this node, asked for within a bound on others."""
        import ray

        here = ray.get_runtime_context().get_node_id()
        near = [worker for worker in self.workers if worker.node == here]
        dead = [worker.rank for worker in near if process_started(worker.pid) != worker.started]
        calls = {worker.handle.__ray_ready__.remote(): worker.rank for worker in self.workers if worker.node != here}
        answered, _ = ray.wait(list(calls), num_returns=len(calls), timeout=3.0) if calls else ([], [])
        for call in answered:
            try:
                ray.get(call)
            except ray.exceptions.RayActorError:
                dead.append(calls[call])
        return sorted(dead)

    def _poll(self, timeout_s: float) -> Event | None:
        import ray

        self._heed_notices()
        if not self._pending:
            news = ray.get(self._mailbox.events.remote(self._acknowledged, timeout_s), timeout=timeout_s + CALL_S)
            self._silence_s = news.silence_s
            for sequence, event in news.events:
                self._acknowledged = sequence
                self._pending.append(event)
        while self._pending:
            event = self._pending.popleft()
            if isinstance(event, Ready):
                self.generation, self.preempted = event.generation, False
                self.workers = tuple(
                    replace(worker, handle=ray.cloudpickle.loads(worker.handle)) for worker in event.workers
                )
                if self._starting_since is not None:
                    self._start_s, self._starting_since = time.monotonic() - self._starting_since, None
                pids = ", ".join(str(worker.pid) for worker in event.workers)
                logger.info("%s: generation %d is ready, pids %s", self.name, event.generation, pids)
                write_whole(self._record, f"{self._job} {event.workers[0].placement_group}")
                return event
            if event.generation == self.generation and self.workers:
                if isinstance(event, Lost):
                    self.workers, self._starting_since = (), time.monotonic()
                return event
        return None

    def _heed_notices(self) -> None:
        """Looks for machines that Ray is about to give back (a spot instance that is reclaimed, a drain) and tells the
        workers, as Ray Train's own preemption watcher would with a process for it in each group.
        """
        import ray

        if self.preempted or not self.workers or time.monotonic() < self._next_look:
            return
        self._next_look = time.monotonic() + POLL_S
        leaving = sorted({worker.node for worker in self.workers} & ray_private.draining_nodes())
        if leaving:
            self.preempted = True
            logger.warning("%s: node %s will be taken away; its workers save", self.name, ", ".join(leaving))
            ray.get(self._mailbox.notice.remote(self.generation), timeout=CALL_S)


def kill(workers: tuple[Worker, ...], grace_s: float = 1.0) -> None:
    """End these processes, whatever they do: by Ray's handle, and a moment later by pid where that did not help."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    if not workers:
        return
    for worker in workers:
        ray.kill(worker.handle)
    here = ray.get_runtime_context().get_node_id()
    deadline = time.monotonic() + grace_s
    near = [worker for worker in workers if worker.node == here]
    while time.monotonic() < deadline and any(process_started(worker.pid) == worker.started for worker in near):
        time.sleep(0.02)
    for worker in workers:
        if worker.node == here:
            kill_process(worker.pid, worker.started)
        else:
            strategy = NodeAffinitySchedulingStrategy(worker.node, soft=False)
            remote = ray.remote(kill_process).options(num_cpus=0, max_retries=0, scheduling_strategy=strategy)
            remote.remote(worker.pid, worker.started)
