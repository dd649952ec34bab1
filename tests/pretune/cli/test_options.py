"""Every option that a message, a help text or a docstring of ours names is one that can be typed; values of some."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest
import typer.main

from pretune.cli.app import app
from pretune.cli.options import _gpus, share
from tests.pretune.cli.command import pretune

ROOT = Path(__file__).resolve().parents[3]
FOREIGN = {"--logdir", "--gcs-address", "--autoscaling-config", "--short", "--query-gpu", "--format"}
"""Of TensorBoard, Ray's processes, git, and NVIDIA's."""
COLORS = set(re.findall(r"--[a-z]+", (ROOT / "platform/pretune/display/page/report.css").read_text(encoding="utf-8")))
"""Of the report's style."""


def options() -> set[str]:
    root = typer.main.get_command(app)
    commands = root.commands.values()  # type: ignore[attr-defined]
    parameters = [parameter for command in (root, *commands) for parameter in command.params]
    return {"--help"} | {option for parameter in parameters for option in (*parameter.opts, *parameter.secondary_opts)}


def named() -> dict[str, str]:
    """Each option in a string of our source, with a place where it stands."""
    found: dict[str, str] = {}
    for package in ("platform/pretune", "search_spaces", "trainers"):
        for path in sorted((ROOT / package).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Constant) and isinstance(node.value, str):
                    for option in re.findall(r"(?<![\w-])(?<!var\()--[a-z][a-z-]*", node.value):
                        found.setdefault(option, f"{path.relative_to(ROOT)}:{node.lineno}")
    return found


def test_every_option_that_a_text_names_is_one_of_some_command() -> None:
    found = named()
    assert len(found) > 20
    assert {option: place for option, place in found.items() if option not in options() | FOREIGN | COLORS} == {}


@pytest.mark.parametrize(("typed", "gpus"), [("auto", None), ("0", 0.0), ("0.25", 0.25), ("2", 2.0)])
def test_gpus_are_a_number_or_found(typed: str, gpus: float | None) -> None:
    assert _gpus(typed) == gpus


@pytest.mark.parametrize("typed", ["-1", "nan", "inf", "all", ""])
def test_other_gpus_are_refused_with_the_rule(typed: str) -> None:
    done = pretune("sweep", "kernels", "--gpus-per-worker", typed)
    assert done.exit_code == 2
    assert "must be auto, or a number of at least 0" in " ".join(done.stderr.split())


@pytest.mark.parametrize(("typed", "expected"), [("0", 0.0), ("25%", 0.25), ("0.5", 0.5), ("100%", 1.0)])
def test_a_share_is_a_percentage_or_a_number(typed: str, expected: float) -> None:
    assert share(typed) == expected


@pytest.mark.parametrize("option", ["--max-failed", "--audit"])
@pytest.mark.parametrize("typed", ["2", "-1%", "101%", "nan", "a third"])
def test_other_shares_are_refused_with_the_rule(typed: str, option: str) -> None:
    done = pretune("sweep", "kernels", option, typed)
    assert done.exit_code == 2
    assert "must be a share from 0% to 100%" in " ".join(done.stderr.split())
