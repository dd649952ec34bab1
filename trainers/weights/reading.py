"""A file of weights as tensors by name, whoever wrote it. Nothing in it is run."""

from __future__ import annotations

import argparse
import hashlib
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any, NamedTuple

import torch
from torch import Tensor

from trainers.checkpoint import UNREADABLE, plain
from trainers.init_file import check_unchanged, file_of

_UNSAFE = re.compile(r"Unsupported (?:global|class):? (?:GLOBAL )?([\w.]+)")
"""In torch's message, what a file wants to be called."""


class Tensors(NamedTuple):
    """What a file holds: the tensors of all of its state dicts by dotted name, and the sha256 of its bytes."""

    path: Path
    sha256: str
    tensors: Mapping[str, Tensor]


def read(place: Path | str, *, sha256: str | None = None) -> Tensors:
    """The tensors of a `.safetensors`, of what `torch.save` wrote, or of an export's folder, on the CPU.

    A state dict within another object has the object's key before its names: `teacher.backbone.cls_token` of a file
    `{"teacher": {"backbone.cls_token": …}, "epoch": 100}`.
    ValueError where there is no such file, it is damaged, holds no tensor, or could be read only by running what is in
    it; ChangedError where its bytes have another hash than `sha256`.
    """
    path = file_of(str(place), Path.cwd())
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
        check_unchanged(path, found, sha256)
        file.seek(0)
        tensors = _safetensors(path, file) if path.suffix == ".safetensors" else _pickled(path, file)
    if not tensors:
        raise ValueError(f"{path} must hold a state dict, but there is no tensor in it; name another file")
    return Tensors(path, found, tensors)


def _safetensors(path: Path, file: IO[bytes]) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        return dict(sorted(load(file.read()).items()))  # else in another order each time
    except SafetensorError as error:
        raise ValueError(
            f"{path} must be a whole safetensors file, but is damaged or another kind of file ({error}); get it again"
        ) from error


def _pickled(path: Path, file: IO[bytes]) -> dict[str, Tensor]:
    try:
        # The arguments that DINO's and MAE's checkpoints hold beside their weights: a plain bag of values.
        with torch.serialization.safe_globals([argparse.Namespace]):
            return dict(_flat(plain(file), ""))
    except UNREADABLE as error:
        unsafe = _UNSAFE.search(str(error))
        reason = f"it names {unsafe[1]}, which would be" if unsafe else "it is damaged or another kind of file"
        raise ValueError(
            f"{path} must be what torch reads with weights_only=True, or safetensors, but is not; nothing in it was "
            f"run ({reason}). Where you trust whoever made it, save its state dict alone as safetensors"
        ) from error


def _flat(value: Any, name: str) -> Iterator[tuple[str, Tensor]]:
    if isinstance(value, Tensor):
        yield name, value.detach()
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from _flat(item, f"{name}.{key}" if name else str(key))
