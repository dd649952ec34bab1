"""Images that do not decode: found all at once, left out up to a bound, or refused with a list."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np

from trainers.data.sources.base import BrokenImageError, Images, Part, SelectedImages, Source

_LISTED = 100
_CHUNK = 256


def fault(look: Callable[[int], object], index: int) -> BrokenImageError | None:
    """What is wrong with image `index`, as looking at it says; None where that goes well."""
    try:
        look(index)
    except BrokenImageError as error:
        return error
    return None


def find(images: Images, *, threads: int, advance: Callable[[], None] | None = None) -> dict[int, BrokenImageError]:
    """Decode every image: index -> what is wrong with it. Arrays hold none. `advance` is called after each image."""
    found: dict[int, BrokenImageError] = {}
    if images.uniform is None:
        with ThreadPoolExecutor(max(1, threads)) as pool:
            for start in range(0, len(images), _CHUNK):  # so that Ctrl-C does not wait for all
                indices = range(start, min(start + _CHUNK, len(images)))
                for index, error in zip(indices, pool.map(partial(fault, images.read), indices), strict=True):
                    if error is not None:
                        found[index] = error
                    if advance is not None:
                        advance()
    return found


def refusal(errors: Sequence[BrokenImageError], total: int, *, bound: float | None = None) -> ValueError:
    """What to raise for them: one is named as ever, more are listed, a line each."""
    if len(errors) == 1 and bound is None:
        return ValueError(f"{errors[0]}, or skip such files with --skip-broken N%")
    count, share = len(errors), 100 * len(errors) / total
    rule = "every file must decode completely" if bound is None else f"at most {bound:g}% of the files may be broken"
    listed = [f"  {error.name} ({error.reason})" for error in errors[:_LISTED]]
    more = [f"  and {count - _LISTED:,} more"] if count > _LISTED else []
    shown = f"{share:.2g}" if share < 99.5 else "100"
    enough = np.ceil(share * 10) / 10
    skipping = f", or skip them with --skip-broken {enough:g}%" if count < total else ""
    return ValueError(
        "\n".join(
            [
                f"broken images: {rule}, but {count:,} of {total:,} {'is' if count == 1 else 'are'} broken "
                f"({shown}%); replace or remove them{skipping}:",
                *listed,
                *more,
            ]
        )
    )


def without(source: Source, broken: Mapping[str, Iterable[int]]) -> Source:
    """The source without the images at these indices of its parts `train` and `test`."""

    def cleaned(part: Part, indices: Iterable[int]) -> Part:
        kept = np.setdiff1d(np.arange(len(part.labels)), np.array(sorted(indices), dtype=np.int64))
        return Part(SelectedImages(part.images, kept.tolist()), part.labels[kept])

    test = None if source.test is None else cleaned(source.test, broken.get("test", ()))
    return dataclasses.replace(source, train=cleaned(source.train, broken.get("train", ())), test=test)
