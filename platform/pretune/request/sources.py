"""The source files that decide what a sweep computes, by hash: pretune's own, and those behind a user's space and parts
with all that they import of the user's own. Installed packages are told by their versions.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import os
import subprocess
import sys
import sysconfig
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path

import search_spaces
import trainers

PACKAGES = {
    "pretune": Path(__file__).parents[1],
    "search_spaces": Path(search_spaces.__file__).parent,
    "trainers": Path(trainers.__file__).parent,
}
DECIDING = {"pretune": ("core", "execution", "sweep.py"), "search_spaces": ("",), "trainers": ("",)}
"""What of our packages changes results; commands and tables do not."""
DIGITS = 12


def ours() -> dict[str, str]:
    """`trainers/terms/mmd.py` and its hash, for each file of ours that changes results."""
    found: dict[str, str] = {}
    for package, folder in PACKAGES.items():
        for part in DECIDING[package]:
            start = folder / part
            for path in sorted(start.rglob("*.py")) if start.is_dir() else [start]:
                found[f"{package}/{path.relative_to(folder).as_posix()}"] = _hash(path)
    return found


def behind(places: Iterable[str]) -> dict[str, str]:
    """Each of `places` (files, or modules by name) that is the user's own, and each file that it imports, wherever in
    it, with its hash; by its path from the folder of the first. What cannot be read or parsed is left out: nothing was
    loaded from it.
    """
    files = [Path(place).resolve() if place.endswith(".py") else _file(place) for place in places if place]
    waiting = [file for file in files if file is not None and _is_own(file)]
    start = waiting[0].parent if waiting else Path()
    found: dict[str, str] = {}
    while waiting:
        path = waiting.pop()
        name = os.path.relpath(path, start)
        if name in found or not _is_own(path):
            continue
        with suppress(OSError, SyntaxError, ValueError):
            imported = list(_imported(path))
            found[name] = _hash(path)
            waiting += [file for module in imported if (file := _file(module)) is not None]
    return dict(sorted(found.items()))


def commit() -> str | None:
    """Of the checkout that pretune runs from; None where it is installed, or git is not."""
    root = PACKAGES["trainers"].parent
    if not (root / ".git").exists():
        return None
    command = ["git", "-C", str(root), "rev-parse", "--short=12", "HEAD"]
    with suppress(OSError, subprocess.SubprocessError):
        return subprocess.run(command, capture_output=True, text=True, timeout=5.0, check=True).stdout.strip()
    return None


def _hash(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()[:DIGITS]


def _is_own(path: Path) -> bool:
    """Neither ours, nor of Python or of an installed package."""
    if path.suffix != ".py":
        return False
    installed = [Path(sysconfig.get_path(name)) for name in ("stdlib", "purelib", "platlib")]
    return not any(path.is_relative_to(folder.resolve()) for folder in (*PACKAGES.values(), *installed))


def _imported(path: Path) -> Iterator[str]:
    """Dotted names of the modules that a file may import, also in functions; of `from a import b` both a and a.b."""
    names = [name for name, module in list(sys.modules.items()) if getattr(module, "__file__", None) == str(path)]
    package = names[0] if names and path.name == "__init__.py" else (names or [""])[0].rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_bytes())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            root = ".".join([*above, *([node.module] if node.module else [])])
            yield root
            yield from (f"{root}.{alias.name}" for alias in node.names)


def _file(module: str) -> Path | None:
    """Of a module that is loaded, or that could be."""
    loaded = sys.modules.get(module)
    place = getattr(loaded, "__file__", None)
    if loaded is None:
        with suppress(ImportError, ValueError, AttributeError):  # `from a import b`, and b is no module
            spec = importlib.util.find_spec(module)
            place = None if spec is None else spec.origin
    return Path(place).resolve() if place else None
