"""TAB in bash and in zsh, asked as the scripts of `--show-completion` ask; what they install; and the version."""

from __future__ import annotations

import importlib.metadata
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from pretune.cli.app import app
from search_spaces import RECIPES, SPACES

HEAVY = "ray torch torchvision ffcv numba numpy pandas optuna"


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder to work in and to be at home in, with two sweeps, one of them elsewhere."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for folder in (tmp_path / "sweeps" / "known", tmp_path / "elsewhere" / "other"):
        folder.mkdir(parents=True)
        (folder / "journal.jsonl").touch()
    return tmp_path


def pretune(*arguments: str, **environment: str) -> str:
    """What the command prints."""
    result = CliRunner().invoke(app, list(arguments), prog_name="pretune", env=environment)
    assert result.exit_code == 0, result.output
    return result.stdout


def asked_by_bash(words: list[str]) -> dict[str, str]:
    """The environment in which bash's script asks for the last of `words`."""
    return {
        "COMP_WORDS": "\n".join(["pretune", *words]),
        "COMP_CWORD": str(len(words)),
        "_PRETUNE_COMPLETE": "complete_bash",
    }


def asked_by_zsh(words: list[str]) -> dict[str, str]:
    return {"_TYPER_COMPLETE_ARGS": " ".join(["pretune", *words]), "_PRETUNE_COMPLETE": "complete_zsh"}


@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        ("fin", ["finalize"]),
        ("sweep ", list(SPACES)),
        ("sweep k", ["kernels"]),
        ("sweep kernels --recipe sfrik_t", ["sfrik_tiny"]),
        ("sweep kernels --sampler c", ["cmaes"]),
        ("train ", list(RECIPES)),
        ("train byol_t", ["byol_tiny"]),
        ("ablate kno", ["known"]),
        ("ablate byol_t", ["byol_tiny"]),
        ("show ", ["known"]),
        ("resume --storage elsewhere ", ["other"]),
        ("finalize --storage s3://bucket/x ", []),
        ("show nothing", []),
    ],
)
def test_names_are_offered_in_both_shells(here: Path, typed: str, offered: list[str]) -> None:
    words = typed.split(" ")
    assert pretune(**asked_by_bash(words)).split() == offered
    lines = pretune(**asked_by_zsh(words)).removeprefix("_arguments '*: :((").splitlines()
    assert [line.split('"')[1] for line in lines if line.startswith('"')] == offered


@pytest.mark.parametrize("typed", ["", "sweep ", "resume "])
def test_nothing_heavy_is_imported_to_complete(here: Path, typed: str) -> None:
    program = (
        "import sys\nfrom pretune.__main__ import main\n"
        "try:\n    main()\nexcept SystemExit:\n    print('heavy', sorted(set(sys.argv[1:]) & set(sys.modules)))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, *HEAVY.split()],
        env={**os.environ, **asked_by_bash(typed.split(" "))},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    first, *_, last = done.stdout.splitlines()
    assert first in ("data", *SPACES, "known")
    assert last == "heavy []"


def test_bash_completes_with_the_script_that_is_shown(here: Path) -> None:
    command = here / "pretune"
    command.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m pretune "$@"\n')
    command.chmod(0o755)
    script = f"""
        export PATH={here}:$PATH
        eval "$(pretune --show-completion | cat)"
        COMP_WORDS=(pretune show kn); COMP_CWORD=2
        _pretune_completion pretune
        echo "offered ${{COMPREPLY[@]}}"
    """
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "offered known\n", done.stdout + done.stderr


@pytest.mark.parametrize(("shell", "file"), [("bash", ".bash_completions/pretune.sh"), ("zsh", ".zfunc/_pretune")])
def test_completion_is_installed_for_the_shell_that_is_named(
    here: Path, shell: str, file: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION", "1")
    told = pretune("--install-completion", shell)
    assert f"{shell} completion installed in {here / file}" in told
    assert f"_PRETUNE_COMPLETE=complete_{shell}" in (here / file).read_text()
    assert (here / f".{shell}rc").is_file()


def test_completion_is_installed_for_the_shell_that_runs(here: Path) -> None:
    command = f"{shlex.quote(sys.executable)} -m pretune --install-completion; exit $?"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.startswith("bash completion installed in"), done.stdout + done.stderr


def test_the_version_is_told_whatever_else_was_typed(here: Path) -> None:
    expected = f"pretune {importlib.metadata.version('pretune')}\n"
    assert pretune("--version") == expected
    assert pretune("--version", "swep", "kernels") == expected
