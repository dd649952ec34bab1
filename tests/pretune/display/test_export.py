"""What is printed of an export."""

from __future__ import annotations

import io
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from pretune.display import export


@pytest.mark.parametrize(("largest", "warned"), [(0.0, True), (2.5, False)])
def test_a_comparison_of_features_that_are_all_0_is_said_to_tell_nothing(largest: float, warned: bool) -> None:
    known = SimpleNamespace(
        backbone=SimpleNamespace(kind="resnet18"), width=512, size=32, branch="student", layout="timm"
    )
    exported = SimpleNamespace(description=known, difference=0.0, largest=largest, files=("README.md",))
    written: Any = SimpleNamespace(exported=exported, weights=None, folder=Path("out"))
    console = Console(width=200, file=io.StringIO(), record=True)
    console.print(export.told(written))
    assert ("are all 0, so that this says nothing" in console.export_text()) == warned
