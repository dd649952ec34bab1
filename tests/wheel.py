"""The wheel as a user gets it: an empty environment, a folder that is not the repository, and a sweep.

    python -m tests.wheel dist/pretune-0.1.0-py3-none-any.whl

Checks that the wheel holds every file of the three packages and no other, installs it under the pinned versions, leaves
it no place for caches beside its source (a system's or a container's installation often has none), and sweeps digits.
`make test-wheel` builds it first. Takes minutes and 6.5 GB, which are given back unless something fails.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = {"pretune": ROOT / "platform", "search_spaces": ROOT, "trainers": ROOT}
"""Each import package, and the folder that it lies in."""


def source_files() -> set[str]:
    """The files that a wheel must hold, by their path in it: what git would commit, data included, and no leftovers."""
    return {
        path.relative_to(source_root).as_posix()
        for package, source_root in PACKAGES.items()
        for path in (source_root / package).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }


def wheel_files(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as archive:
        return {name for name in archive.namelist() if ".dist-info/" not in name}


def forbid_writing(site_packages: Path) -> None:
    """Leave no place for caches beside the source: a file in the folder's stead stops the superuser, too."""
    for package in PACKAGES:
        for folder in {path.parent for path in (site_packages / package).rglob("*.py")}:
            cache = folder / "__pycache__"
            shutil.rmtree(cache, ignore_errors=True)
            cache.touch()


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.wheel", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("wheel", type=Path)
    wheel = parser.parse_args().wheel.resolve()

    held, due = wheel_files(wheel), source_files()
    if held != due:
        raise SystemExit(f"{wheel.name} lacks {sorted(due - held)} and has {sorted(held - due)} too many")
    print(f"{wheel.name} holds all {len(due)} files of {', '.join(PACKAGES)}", flush=True)

    folder = Path(tempfile.mkdtemp(prefix="pretune-wheel-"))
    environment, elsewhere = folder / "environment", folder / "elsewhere"
    elsewhere.mkdir()
    # Neither the repository nor an environment that is active may help.
    variables = {name: value for name, value in os.environ.items() if name not in {"PYTHONPATH", "VIRTUAL_ENV"}}

    def run(program: str, *arguments: str | Path) -> None:
        subprocess.run([environment / "bin" / program, *arguments], cwd=elsewhere, env=variables, check=True)

    started = time.monotonic()
    subprocess.run([sys.executable, "-m", "venv", environment], check=True)
    run("pip", "install", "--quiet", "--disable-pip-version-check", "--constraint", ROOT / "constraints.txt", wheel)
    print(f"installed into {environment} in {time.monotonic() - started:.0f} s", flush=True)

    (site_packages,) = environment.glob("lib/python3*/site-packages")
    forbid_writing(site_packages)
    run(
        "python",
        "-c",
        f"import trainers as it; assert it.__file__ == '{site_packages}/trainers/__init__.py', it.__file__",
    )
    started = time.monotonic()
    run("pretune", "sweep", "kernels", "--trials", "2", "--epochs", "2", "--name", "wheel")
    print(f"swept in {time.monotonic() - started:.0f} s, with Python {sys.version.split()[0]}")
    shutil.rmtree(folder)


if __name__ == "__main__":
    main()
