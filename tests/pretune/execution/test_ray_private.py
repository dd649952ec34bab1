"""The names that Ray does not promise to keep are there, with the shape that ray_private.py expects of them."""

from __future__ import annotations

import importlib
import inspect
import re
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray

from pretune.execution import ray_private
from pretune.execution.cluster import connected
from tests.imports import imported

EXECUTION = "ray.train.v2._internal.execution"
TRAINER = "ray.train.v2.api.data_parallel_trainer"
VERSIONS = f"ray_private.py was checked with Ray {ray_private.CHECKED_WITH}, installed is {ray.__version__}"


def found(module: str, path: str) -> Any:
    """What `module` has under the dotted `path`; the test fails, naming both versions, where it has nothing there."""
    try:
        value: Any = importlib.import_module(module)
        for name in path.split("."):
            value = getattr(value, name)
    except (ImportError, AttributeError) as error:
        pytest.fail(f"{module}.{path} is gone ({error}); {VERSIONS}")
    return value


@pytest.mark.parametrize(
    ("module", "path", "parameters"),
    [
        ("ray._raylet", "AuthenticationTokenLoader.instance", []),
        ("ray._raylet", "AuthenticationTokenLoader.reset_cache", ["self"]),
        ("ray._raylet", "Config.initialize", ["config_list"]),
        ("ray.experimental.internal_kv", "_internal_kv_get", ["key", "namespace"]),
        ("ray._private.state", "GlobalState.get_draining_nodes", ["self"]),
        ("ray.tune.execution.tune_controller", "TuneController._cleanup_cached_actors", ["self", "force_all"]),
        ("ray._private.node", "Node.start_api_server", ["self", "include_dashboard", "raise_on_failure"]),
        ("ray._private.node", "Node.start_log_monitor", ["self"]),
        ("ray._private.node", "Node.start_monitor", ["self"]),
        (TRAINER, "DataParallelTrainer._create_default_callbacks", ["self"]),
        (TRAINER, "DataParallelTrainer._initialize_and_run_controller", ["self", "controller_init_kwargs"]),
        (f"{EXECUTION}.controller", "TrainController.run", ["self"]),
        (f"{EXECUTION}.controller", "TrainController.get_result", ["self"]),
        (f"{EXECUTION}.scaling_policy", "FixedScalingPolicy._send_resource_request", ["self"]),
        (f"{EXECUTION}.scaling_policy", "FixedScalingPolicy._maybe_send_resource_request", ["self"]),
        (f"{EXECUTION}.scaling_policy", "FixedScalingPolicy._cancel_resource_request", ["self"]),
        (f"{EXECUTION}.worker_group.state", "_shutdown_sync_actor", ["sync_actor"]),
        (
            f"{EXECUTION}.worker_group",
            "WorkerGroup._init_train_context_on_workers",
            ["self", "workers", "sync_actor", "train_context_args"],
        ),
        (
            f"{EXECUTION}.callback",
            "ControllerCallback.before_controller_execute_resize_decision",
            ["self", "resize_decision"],
        ),
    ],
)
def test_each_function_is_there_and_takes_what_it_is_given(module: str, path: str, parameters: list[str]) -> None:
    assert list(inspect.signature(found(module, path)).parameters) == parameters, VERSIONS


def test_each_value_is_there_and_is_what_it_is_taken_for() -> None:
    assert found("ray._common.constants", "HEAD_NODE_RESOURCE_NAME") == ray_private.HEAD, VERSIONS
    assert found("ray._private.ray_constants", "DEBUG_AUTOSCALING_STATUS") == "__autoscaling_status", VERSIONS
    assert isinstance(found("ray._private.state", "state"), found("ray._private.state", "GlobalState")), VERSIONS


def test_the_autoscaler_writes_its_status_where_it_is_looked_for() -> None:
    monitor = inspect.getsource(found("ray.autoscaler._private.monitor", "Monitor"))
    assert "ray_constants.DEBUG_AUTOSCALING_STATUS, as_json" in monitor, VERSIONS
    assert '"autoscaler_report"' in monitor, VERSIONS


# --- Ray Train --------------------------------------------------------------------------------------------------------


OF_RAY_DATA = pytest.mark.filterwarnings(r"ignore:.* is deprecated:DeprecationWarning:ray\.data")
"""Ray Train makes Ray Data's settings, whose own fields are deprecated."""


def refuse() -> None:
    raise RuntimeError("no further group")


@pytest.fixture
def trainers() -> tuple[Any, Any]:
    """Ray's own trainer and the lean one, both with a callback that refuses each start of a group."""
    from ray.train.v2.api.config import RunConfig, ScalingConfig
    from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

    def make(kind: Any) -> Any:
        run_config = RunConfig(callbacks=[ray_private.before_each_group(refuse)])
        return kind(lambda: None, scaling_config=ScalingConfig(num_workers=1), run_config=run_config)

    return make(DataParallelTrainer), make(ray_private.lean_trainer())


@OF_RAY_DATA
def test_the_lean_trainer_leaves_out_what_is_unused_and_nothing_else(trainers: tuple[Any, Any]) -> None:
    whole, lean = ([type(one).__name__ for one in trainer._create_default_callbacks()] for trainer in trainers)
    assert set(whole) >= ray_private.UNUSED, VERSIONS
    assert lean == [name for name in whole if name not in ray_private.UNUSED], VERSIONS


def test_what_is_replaced_while_the_controller_runs_is_looked_up_there() -> None:
    starting = inspect.getsource(found(f"{EXECUTION}.worker_group.worker_group", "WorkerGroup._start_impl"))
    assert "SynchronizationActor.options(" in starting, VERSIONS
    ending = inspect.getsource(found(f"{EXECUTION}.worker_group.state", "WorkerGroupState.shutdown"))
    assert "_shutdown_sync_actor(self.sync_actor)" in ending, VERSIONS
    telling = inspect.getsource(found(f"{EXECUTION}.worker_group", "WorkerGroup._init_train_context_on_workers"))
    assert "controller_actor=ray.get_runtime_context().current_actor," in telling, VERSIONS
    controller = found(f"{EXECUTION}.controller", "TrainController")
    assert "self.worker_group_cls.create(" in inspect.getsource(controller), VERSIONS
    made = found(f"{EXECUTION}.checkpoint.sync_actor", "SynchronizationActor")
    assert isinstance(made, ray.actor.ActorClass), VERSIONS


def test_a_slots_process_runs_ray_train_without_torch() -> None:
    program = "import pretune.execution.trainrun; from pretune.execution import ray_private; ray_private.lean_trainer()"
    assert imported(program, "ray.train torch numba") == ["ray.train"]


# --- signals and addresses --------------------------------------------------------------------------------------------


def test_what_is_set_for_a_start_is_what_ray_reads_then() -> None:
    constants, utils = found("ray._private", "ray_constants"), found("ray._private", "utils")
    services, worker = (Path(found("ray._private", name).__file__).read_text() for name in ("services", "worker"))
    assert "ray_constants.ENABLE_RAY_CLUSTER" in services, VERSIONS
    assert "ray._private.utils.set_sigterm_handler(" in worker, VERSIONS
    assert "if ray._private.utils.get_dashboard_dependency_error() is not None:" in services, VERSIONS
    before = (constants.ENABLE_RAY_CLUSTER, constants.RAY_DISABLE_FAILURE_SIGNAL_HANDLER, utils.set_sigterm_handler)
    with ray_private.on_loopback(), ray_private.keeping_signals():
        assert not constants.ENABLE_RAY_CLUSTER
        assert constants.RAY_DISABLE_FAILURE_SIGNAL_HANDLER
        assert {signal.SIGTERM, signal.SIGHUP} <= signal.pthread_sigmask(signal.SIG_BLOCK, [])
    after = (constants.ENABLE_RAY_CLUSTER, constants.RAY_DISABLE_FAILURE_SIGNAL_HANDLER, utils.set_sigterm_handler)
    assert before == after
    assert signal.SIGTERM not in signal.pthread_sigmask(signal.SIG_BLOCK, [])


# --- a process, and a cluster -----------------------------------------------------------------------------------------


@pytest.fixture
def _token_restored() -> Iterator[None]:
    yield
    ray_private.forget_token()


@pytest.mark.usefixtures("_token_restored")
def test_a_token_is_remembered_until_it_is_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    def token() -> str:
        loader = found("ray._raylet", "AuthenticationTokenLoader").instance()
        return str(loader.get_raw_token(ignore_auth_mode=True))

    monkeypatch.setenv("RAY_AUTH_TOKEN", "a" * 64)
    ray_private.forget_token()
    assert token() == "a" * 64, VERSIONS
    monkeypatch.setenv("RAY_AUTH_TOKEN", "b" * 64)
    assert token() == "a" * 64, VERSIONS
    ray_private.forget_token()
    assert token() == "b" * 64, VERSIONS


@pytest.mark.ray
@OF_RAY_DATA
def test_a_running_cluster_answers_and_a_refused_group_takes_no_process(
    tmp_path: Path, trainers: tuple[Any, Any]
) -> None:
    with connected(None, cpus=1, logs=tmp_path) as folder:
        (node,) = ray.nodes()  # type: ignore[no-untyped-call]
        assert ray_private.HEAD in node["Resources"], VERSIONS
        assert ray_private.draining_nodes() == set(), VERSIONS
        status = ray_private.autoscaler_status()
        assert status is None or isinstance(status, bytes), VERSIONS

        _, lean = trainers
        with pytest.raises(ray.train.ControllerError, match="no further group"):
            lean.fit()
        commands = [file.read_bytes().decode(errors="replace") for file in Path("/proc").glob("[0-9]*/cmdline")]
        commands = [command for command in commands if str(folder) in command]
        assert all("--minimal" in command for command in commands if "dashboard/agent.py" in command), VERSIONS
        programs = [" ".join(command.split("\0")[:3]) for command in commands]
        assert any("raylet" in program for program in programs)
        needless = re.compile("default_worker|log_monitor|dashboard/dashboard.py|autoscaler")
        assert not list(filter(needless.search, programs))
