"""Environment variables for the time of a block."""

from __future__ import annotations

import os

import pytest

from pretune.execution.environment import environment


def test_variables_are_set_and_taken_back_and_what_the_user_has_set_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PRETUNE_TEST_MINE", "user")
    monkeypatch.delenv("PRETUNE_TEST_NEW", raising=False)
    with environment({"PRETUNE_TEST_MINE": "ours", "PRETUNE_TEST_NEW": "ours"}):
        assert (os.environ["PRETUNE_TEST_MINE"], os.environ["PRETUNE_TEST_NEW"]) == ("user", "ours")
    assert os.environ["PRETUNE_TEST_MINE"] == "user"
    assert "PRETUNE_TEST_NEW" not in os.environ
