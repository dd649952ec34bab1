"""A package that looks installed: modules and entry points in a folder on the import path, for tests of plug-ins."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def installed(
    folder: Path, *, package: str, version: str, module: str, source: str, entry_points: Mapping[str, Mapping[str, str]]
) -> Iterator[None]:
    """While this lasts `module` can be imported and `package` offers `entry_points`: group -> name -> reference."""
    (folder / f"{module}.py").write_text(source)
    information = folder / f"{package.replace('-', '_')}-{version}.dist-info"
    information.mkdir()
    (information / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: {version}\n")
    (information / "RECORD").write_text(f"{module}.py,,\n")
    lines = [
        f"[{group}]\n" + "".join(f"{name} = {reference}\n" for name, reference in offered.items())
        for group, offered in entry_points.items()
    ]
    (information / "entry_points.txt").write_text("\n".join(lines))
    sys.path.insert(0, str(folder))
    importlib.invalidate_caches()
    try:
        yield
    finally:
        sys.path.remove(str(folder))
        sys.modules.pop(module, None)
        importlib.invalidate_caches()
