"""The conductor behind Ray Tune's two seams: it is asked as a searcher and decides as a scheduler.

Tune keeps trials running, actors warm and events flowing. What it remembers of the sweep (`tune/`, its snapshots) is
never read again. Order of Tune's calls for one result (tune_controller.py, Ray 2.60): `scheduler.on_trial_result`,
unless the result is `done`; then `searcher.on_trial_complete` where the trial stops or is done;
`scheduler.on_trial_error` and `searcher.on_trial_complete(error=True)` where its actor died.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

from ray import tune
from ray.tune.experiment import Trial
from ray.tune.schedulers import FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher

from pretune.core.conductor import Conductor
from pretune.core.requests import Inbox
from pretune.core.rows import Handout, Row
from pretune.execution import ray_private
from pretune.execution.environment import environment
from pretune.execution.interruption import Interruption

ENVIRONMENT = {
    # Its handler of Ctrl-C would take the place of ours (see interruption.py).
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    # Our journal, live view and TensorBoard files replace Tune's CSV, JSON and TensorBoard loggers.
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    # Snapshots of the experiment are never read: take few. With "auto" Tune warns when trials are short.
    "TUNE_GLOBAL_CHECKPOINT_S": "600",
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
    # The new output prints a banner even when it is told to be silent; the old one keeps quiet.
    "RAY_AIR_NEW_OUTPUT": "0",
    # A slot's paths are absolute, but a user's own code may not be: stay in the folder the sweep was started from.
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    # An actor that died is a line in our journal; its traceback is in the slot's log.
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",
}
"""For the time of one `execute`; what the user has set wins. They silence Tune or bound its work."""


class _Inert:
    """Tune pickles searcher, scheduler and callbacks with its snapshots. The copies hold nothing and are never read."""

    def __getstate__(self) -> dict[str, Any]:
        return {}

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self


class ConductedSearch(_Inert, Searcher):
    """Asks the conductor while fewer than `slots` trials are out, and tells it each end."""

    def __init__(self, conductor: Conductor, slots: int, interruption: Interruption) -> None:
        super().__init__()
        self._conductor = conductor
        self._interruption = interruption
        self._slots = slots
        self._numbers: dict[str, int] = {}
        self.errors: dict[str, str] = {}
        """By Tune's trial id, what killed its actor."""

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:  # type: ignore[override]
        with self._interruption.shielded(), _remembered(self._conductor):
            if self._conductor.live >= self._slots:
                return None
            handout = self._conductor.next()
            if handout is not None:
                self._numbers[trial_id] = handout.number
                return handout.to_config()
            return Searcher.FINISHED if self._conductor.finished else None

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        with self._interruption.shielded(), _remembered(self._conductor):
            number = self._numbers[trial_id]
            if error or not result:
                self._conductor.lost(number, self.errors.pop(trial_id, "its slot was lost"))
            else:
                self._conductor.ended(Row.from_result(number, result))

    def save(self, checkpoint_path: str) -> None:
        """The journal is the truth; there is nothing to save."""

    def restore(self, checkpoint_path: str) -> None:
        """`Tuner.restore` is never used."""


class ConductedScheduler(_Inert, FIFOScheduler):
    """Trials in the order of the search; each result goes to the conductor, which has written the stop when STOP is
    returned.
    """

    def __init__(self, conductor: Conductor, search: ConductedSearch, interruption: Interruption) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._conductor = conductor
        self._search = search
        self._interruption = interruption

    def on_trial_result(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> str:
        with self._interruption.shielded(), _remembered(self._conductor):
            go_on = self._conductor.reported(Row.from_result(_number(trial), result))
        if self._conductor.all_handed_out:
            # Tune keeps an idle actor until the search is over, as a trial might still come; its node should go now.
            ray_private.end_idle_actors(tune_controller)
        return TrialScheduler.CONTINUE if go_on else TrialScheduler.STOP

    def on_trial_error(self, tune_controller: Any, trial: Trial) -> None:
        error = trial.get_pickled_error() or trial.get_error()
        self._search.errors[trial.trial_id] = f"its slot was lost: {_short(error)}"


class Steps(_Inert, tune.Callback):
    """Looks for what people ask at each of Tune's steps, some ten a second; writes down that a slot took a trial."""

    def __init__(self, conductor: Conductor, inbox: Inbox, interruption: Interruption) -> None:
        self._conductor = conductor
        self._inbox = inbox
        self._interruption = interruption

    def on_step_begin(self, iteration: int, trials: list[Trial], **info: Any) -> None:
        with self._interruption.shielded(), _remembered(self._conductor):
            self._inbox.look()

    def on_trial_start(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        with self._interruption.shielded(), _remembered(self._conductor):
            self._conductor.started(_number(trial))


def execute(
    conductor: Conductor,
    trainable: type[tune.Trainable],
    *,
    slots: int,
    folder: Path,
    inbox: Inbox,
    interruption: Interruption,
) -> None:
    """Runs trials on up to `slots` warm actors of class `trainable` until the conductor has none left.

    `folder` takes Tune's own files. Raises the conductor's own exception where there was one, and Interrupted.
    """
    search = ConductedSearch(conductor, slots, interruption)
    with environment({**ENVIRONMENT, "TUNE_MAX_PENDING_TRIALS_PG": str(slots)}):
        tuner = tune.Tuner(
            trainable,
            tune_config=tune.TuneConfig(
                num_samples=-1,  # the search says when it is finished: a lost trial is handed out once more
                search_alg=search,
                scheduler=ConductedScheduler(conductor, search, interruption),
                reuse_actors=True,
                trial_name_creator=_name,
                trial_dirname_creator=_name,
            ),
            run_config=tune.RunConfig(
                name=f"session-{conductor.history.sessions:03d}",
                storage_path=str(folder),
                callbacks=[Steps(conductor, inbox, interruption)],
                verbose=0,
                # A dead actor ends the Tune trial; the conductor hands the same number out again with its last
                # checkpoint, where Tune would start it over from the config it was first given.
                failure_config=tune.FailureConfig(max_failures=0),
                checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
            ),
        )
        try:
            tuner.fit()
        finally:
            if conductor.error is not None:
                raise conductor.error


@contextmanager
def _remembered(conductor: Conductor) -> Iterator[None]:
    """Keeps the first exception, and lets nothing more be decided after it: Tune logs some exceptions and goes on."""
    if conductor.error is not None:
        raise conductor.error
    try:
        yield
    except BaseException as error:
        conductor.error = error
        raise


def _name(trial: Trial) -> str:
    # A trial that is handed out again within one session is a new trial to Tune, which wants a new folder for it.
    return f"{_number(trial):04d}-{trial.trial_id}"


def _number(trial: Trial) -> int:
    """Of our trial that Tune's trial is a handout of."""
    return Handout.from_config(trial.config).number


def _short(error: object) -> str:
    lines = [line for line in str(error or "no error was told").splitlines() if line.strip()]
    return lines[-1].strip()[:300] if lines else type(error).__name__
