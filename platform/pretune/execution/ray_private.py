"""All that is asked of Ray by names which it does not promise to keep: with another version of Ray, look here.

Each function says what it asks for and why no public name will do. tests/pretune/execution/test_ray_private.py compares
what is expected here with the Ray that is installed, and tests/test_architecture.py finds such names elsewhere.
Ray Train is imported where it is used: it takes a second.
"""

from __future__ import annotations

import asyncio
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Self

import ray

if TYPE_CHECKING:
    from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

CHECKED_WITH = "2.60.0"
"""The version of Ray whose source was read for this file."""

HEAD = "node:__internal_head__"
"""The resource that Ray gives to the head node alone. `ray.nodes()` tells the head by nothing else; `ray.util.state`
asks a dashboard."""
UNUSED = {"DatasetsCallback", "PlacementGroupCleanerCallback"}
"""Parts of Ray Train that start a process each and have nothing to do here. The cleaner asks the dashboard each second
whether the controller lives, and never finds out where there is no dashboard; `group.py` takes back what a dead slot
held."""


# ---- the cluster -----------------------------------------------------------------------------------------------------


def forget_token() -> None:
    """Makes Ray read anew whether its clusters want a token, from `RAY_AUTH_MODE`, and which, from `RAY_AUTH_TOKEN` or
    wherever it finds one.

    It remembers what it read first in a process, also when `ray.shutdown` has left the cluster that asked for it; for a
    process that starts or joins one cluster after another there is no public way to another token, or to none.
    """
    ray._raylet.Config.initialize("")  # type: ignore[attr-defined]
    ray._raylet.AuthenticationTokenLoader.instance().reset_cache()  # type: ignore[attr-defined]


@contextmanager
def _set(module: Any, **values: object) -> Iterator[None]:
    before = {name: getattr(module, name) for name in values}
    _put(module, values)
    try:
        yield
    finally:
        _put(module, before)


def _put(module: Any, values: Mapping[str, object]) -> None:
    for name, value in values.items():
        setattr(module, name, value)


@contextmanager
def on_loopback() -> Iterator[None]:
    """A cluster that is started in the block has the address 127.0.0.1, and listens there alone.

    Ray takes the address of the machine in its network instead, also where `_node_ip_address` asks for 127.0.0.1, but
    on systems for which it offers no clusters of several machines. Which those are it reads from the environment once,
    while it is imported.
    """
    with _set(ray._private.ray_constants, ENABLE_RAY_CLUSTER=False):
        yield


@contextmanager
def few_processes() -> Iterator[None]:
    """A cluster that is started in the block has no server for a dashboard, for which `ray.init` waits also where it is
    told that none is wanted, nothing that brings logs to the driver, and no autoscaler, which nobody could ask for
    anything on one machine: three programs less to start before the first worker. The agent that stays, for whose ports
    the node waits, is the one of a Ray without its dashboard, which serves and imports less.
    """
    none_of_these = _set(
        ray._private.node.Node,
        start_api_server=lambda node, **how: None,
        start_log_monitor=lambda node: None,
        start_monitor=lambda node: None,
    )
    small_agent = _set(ray._private.utils, get_dashboard_dependency_error=lambda: ImportError("not wanted"))
    with none_of_these, small_agent:
        yield


@contextmanager
def keeping_signals() -> Iterator[None]:
    """`ray.init` leaves the handlers of signals as they are in the block, and the processes that it starts are deaf to
    SIGTERM and SIGHUP, as Ray makes them deaf to SIGINT: where all are told to end, the driver ends the others.

    Ray's own handler ends the driver at once, from wherever it is. Its library puts another one on top, which prints a
    stack of C++, and may crash while the library is being set up. A signal that comes meanwhile is heard afterwards.
    """
    no_handler = _set(ray._private.utils, set_sigterm_handler=lambda handler: None)
    none_on_top = _set(ray._private.ray_constants, RAY_DISABLE_FAILURE_SIGNAL_HANDLER=True)
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGHUP})  # children have their parent's
    try:
        with no_handler, none_on_top:
            yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def autoscaler_status() -> bytes | None:
    """What the connected cluster's autoscaler last wrote of itself, as JSON; None before it wrote anything.

    The command `ray status` makes its text from this. Neither `ray.autoscaler` nor `ray.util.state` gives it to a
    program.
    """
    key = ray._private.ray_constants.DEBUG_AUTOSCALING_STATUS
    status: bytes | None = ray.experimental.internal_kv._internal_kv_get(key)
    return status


def draining_nodes() -> set[str]:
    """The ids of the nodes that Ray is about to give back: spot instances that are reclaimed, nodes told to drain.

    `ray.nodes()` has them among the living until they are gone. Ray Train's own preemption watcher asks the same.
    """
    return set(ray._private.state.state.get_draining_nodes())


# ---- Ray Tune --------------------------------------------------------------------------------------------------------


def end_idle_actors(tune_controller: Any) -> None:
    """Ends the actors that Tune keeps for a next trial, given what a scheduler is given as its controller.

    Without that they stay until the search is over, as a trial might still come, and with them their nodes. The public
    setting, `reuse_actors`, keeps them for the whole search or not at all.
    """
    tune_controller._cleanup_cached_actors(force_all=True)


# ---- Ray Train -------------------------------------------------------------------------------------------------------


_telling = threading.Lock()
"""Held by the thread that has replaced what workers are told."""


class _Nobody:
    """In the place of an actor that nobody asks for anything."""

    def options(self, **how: object) -> Self:
        return self

    def remote(self, **arguments: object) -> Self:
        return self


def lean_trainer() -> type[DataParallelTrainer]:
    """Ray Train's trainer, whatever it trains with, in fewer processes: an earlier first trial.

    Its controller runs in the thread that calls `fit`, not in an actor of its own: that is one process less between a
    slot and its workers, and one that waits for others to import the same. For each group Ray Train also starts an
    actor through which workers agree when they report to it, which ours do not; and for each cluster one that asks the
    autoscaler for what runs need, as placement groups that wait do by themselves. Both are left out, as are the parts
    named in `UNUSED`: `RunConfig.callbacks` adds to these, and nothing public takes one away.
    """
    from ray.train.v2._internal.execution.controller import TrainController
    from ray.train.v2._internal.execution.scaling_policy import FixedScalingPolicy
    from ray.train.v2._internal.execution.worker_group import WorkerGroup, state, worker_group
    from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

    class Unasked(FixedScalingPolicy):
        def _send_resource_request(self) -> None:
            """Nobody is asked."""

        def _maybe_send_resource_request(self) -> None:
            """Nobody is asked."""

        def _cancel_resource_request(self) -> None:
            """Nobody was asked."""

    class LeanGroup(WorkerGroup):
        def _init_train_context_on_workers(self, *arguments: Any) -> None:
            # Each worker is told which actor it is that controls it.
            with _telling, _set(ray.runtime_context.RuntimeContext, current_actor=_Nobody()):
                super()._init_train_context_on_workers(*arguments)

    class LeanController(TrainController):
        worker_group_cls = LeanGroup

    class LeanTrainer(DataParallelTrainer):
        def _create_default_callbacks(self) -> list[Any]:
            callbacks: list[Any] = super()._create_default_callbacks()
            return [one for one in callbacks if type(one).__name__ not in UNUSED]

        def _initialize_and_run_controller(self, **parts: Any) -> Any:
            # For good: threads may run at once, and this process runs no other trainer.
            _put(worker_group, {"SynchronizationActor": _Nobody()})
            _put(state, {"_shutdown_sync_actor": lambda actor: None})
            scaling: Any = self.scaling_config  # annotated with the class of that name of Ray Train's first version
            controller: Any = LeanController(**{**parts, "scaling_policy": Unasked(scaling)})
            asyncio.run(controller.run())
            return controller.get_result()

    return LeanTrainer


def before_each_group(ask: Callable[[], None]) -> Any:
    """A member of `RunConfig.callbacks`: Ray Train's controller calls `ask` before each start of a worker group.

    What `ask` raises there ends the run, and is not retried. The public `ray.train.UserCallback` hears of reports and
    of what workers raised; nobody asks it before a group starts.
    """
    from ray.train.v2._internal.execution.callback import ControllerCallback

    class Asking(ControllerCallback):
        def before_controller_execute_resize_decision(self, resize_decision: object) -> None:
            ask()

    return Asking()
