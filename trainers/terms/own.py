"""A term of one's own, as a config holds it: where its class is, and its settings."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import ConfigDict, ValidationError

from trainers.terms.base import Outputs, TermConfig
from trainers.usercode import Own, SettingsError, where

if TYPE_CHECKING:
    from torch import Tensor


class OwnTerm(Own, TermConfig):
    """A class derived from `TermConfig`, by reference; all other keys are its fields.

    Reading a config runs nobody's code, so nothing of the class is known before `loaded` is asked for: what it checks
    of a run is checked by `TrialConfig.check_own`.
    """

    model_config = ConfigDict(extra="allow")

    @property
    def loaded(self) -> TermConfig:
        """The class' instance. ValueError where there is none, SettingsError where it does not take the settings."""
        found = self.load()
        if not (isinstance(found, type) and issubclass(found, TermConfig)):
            raise ValueError(
                f"{where(found)} must be a class derived from trainers.terms.TermConfig, but is not; derive it"
            )
        if missing := sorted(found.__abstractmethods__):
            raise ValueError(f"{where(found)} must have {', '.join(missing)}, but has not; write it")
        try:
            return found.model_validate({"weight": self.weight, **self.settings})
        except ValidationError as error:
            raise SettingsError(found, error) from error

    def __call__(self, outputs: Outputs) -> Tensor:
        return self.loaded(outputs)
