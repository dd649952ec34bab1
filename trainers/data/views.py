"""Augmented views as compiled arithmetic: each draw is a function of (seed, epoch, sample, view, operation).

The operations and their order are torchvision's (`RandomResizedCrop` with antialiasing, `RandomHorizontalFlip`,
`ColorJitter` in a random order, `RandomGrayscale`, `GaussianBlur`, `RandomSolarize`, `Normalize`, `RandomErasing`),
computed on float images in 0..1. Bilinear resampling is torchvision's on floats, so nothing is rounded to bytes in
between. Bicubic resampling is Pillow's on bytes, level for level: its kernel reaches below 0 and above 255, so that it
matters that each of its two passes rounds and clips, and which comes first.

Differences that are meant: a JPEG that every view shrinks by four or more is decoded at a half, a quarter or an eighth
of its size. The blur is a Gaussian out to three sigma with mirrored borders, as torchvision's but for the kernel's
size. Most published code (solo-learn, SFRIK, W-MSE, CW-RGP, MoCo v3, DINO) has Pillow's `GaussianBlur`: three box
filters in a row on bytes, with the border's pixels repeated. On photographs of 32 and 224 px that is about one level of
255 apart on average, up to four inside the image and tens in single pixels at its border. BYOL's and SimCLR's code cuts
the Gaussian off at a twentieth of the view's size (at 224 px after 11 px, more than five of the largest sigma) and has
zeros around the image, which darken its border.

Nothing is frozen at compile time: the settings of the views and the keys of the draws are arguments, so one compilation
serves every epoch, trial, view count and image size; and all functions are cached on disk, so a second process only
loads them. They share this file, because numba tells whether what it cached is out of date by the file of the function
that is called, and not by those of the functions that this one calls.

Letters: S = a view's height and width in pixels, n = S * S, K = taps of a resampling filter.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from llvmlite import ir  # type: ignore[import-untyped, unused-ignore]
from numba import njit, types
from numba.extending import intrinsic
from numba.np.numpy_support import carray

from trainers.settings import Resampling, ViewConfig


def _kept(**options: Any) -> Callable[[Callable[..., Any]], Any]:
    """numba's `njit`, with machine code that the next process links: kept beside the source, or in the user's cache.

    Where neither can be written to (a container's installation, and a user without a home) numba refuses the function;
    then each process compiles it anew. `NUMBA_CACHE_DIR` names a place of one's own.
    """

    def decorate(function: Callable[..., Any]) -> Any:
        try:
            return njit(cache=True, nogil=True, error_model="numpy", **options)(function)
        except RuntimeError as error:
            if "cannot cache" not in str(error):
                raise
            return njit(nogil=True, error_model="numpy", **options)(function)

    return decorate


exact = _kept()
"""For the draws: IEEE arithmetic, so that a crop does not depend on how a compiler orders sums."""
compiled = _kept(fastmath={"nsz", "arcp", "contract", "reassoc"})
"""For pixels. `nnan` and `ninf` stay off: should a pixel not be finite after all, that must stay visible."""

primitive: Any = intrinsic  # its own type forgets that callers do not pass the typing context

SETTINGS = np.dtype(
    [
        ("size", np.int64),
        ("start", np.int64),  # floats of the views before this one, per sample
        ("fixed", np.int64),  # not 0: what the shorter side is resized to before the center is cropped, nothing random
        ("scale_low", np.float64),
        ("scale_high", np.float64),
        ("log_ratio_low", np.float64),
        ("log_ratio_high", np.float64),
        ("bicubic", np.int64),  # 0: bilinear
        ("flip_probability", np.float64),
        ("jitter_probability", np.float64),
        ("brightness", np.float64),
        ("contrast", np.float64),
        ("saturation", np.float64),
        ("hue", np.float64),
        ("grayscale_probability", np.float64),
        ("blur_probability", np.float64),
        ("sigma_low", np.float64),
        ("sigma_high", np.float64),
        ("sigma_of_batch", np.int64),  # 1: all images of a batch have the same sigma
        ("solarize_probability", np.float64),
        ("threshold", np.float64),
        ("erase_probability", np.float64),
        ("erase_scale_low", np.float64),
        ("erase_scale_high", np.float64),
        ("log_erase_ratio_low", np.float64),
        ("log_erase_ratio_high", np.float64),
        ("mean", np.float64, (3,)),
        ("deviation", np.float64, (3,)),
    ]
)
"""One row per view: `ViewConfig` as the compiled code reads it, with the data set's channel statistics (0..1 scale)."""

DRAWN = np.dtype(
    [
        ("top", np.float64),  # the sampled box in source pixels
        ("left", np.float64),
        ("height", np.float64),
        ("width", np.float64),
        ("row_low", np.int64),  # pixels that the resampling filter may touch
        ("row_high", np.int64),
        ("column_low", np.int64),
        ("column_high", np.int64),
        ("flip", np.int64),
        ("jitter", np.int64),
        ("order", np.int64),  # of the four color operations, 0..23
        ("brightness", np.float64),
        ("contrast", np.float64),
        ("saturation", np.float64),
        ("hue", np.float64),
        ("grayscale", np.int64),
        ("sigma", np.float64),  # 0: no blur
        ("solarize", np.int64),
        ("erase_top", np.int64),  # in pixels of the view
        ("erase_left", np.int64),
        ("erase_height", np.int64),  # 0: nothing is erased
        ("erase_width", np.int64),
    ]
)
"""What was drawn for one view of one sample."""


class Drawn(NamedTuple):
    """What is drawn for one view of one sample, as torchvision's functional operations take it."""

    top: int
    left: int
    height: int
    width: int
    """The crop, in pixels of the source."""
    flip: bool
    jitter_order: tuple[int, ...]
    """The color operations in order: 0 brightness, 1 contrast, 2 saturation, 3 hue. Empty without jitter."""
    brightness: float
    contrast: float
    saturation: float
    hue: float
    """Factors, and for hue a shift in turns."""
    grayscale: bool
    blur_sigma: float | None
    """In pixels of the view; None without blur."""
    solarize: bool
    erased: tuple[int, int, int, int] | None
    """Top, left, height and width of what is erased, in pixels of the view; None where nothing is."""


LEAST_DEVIATION = 1 / 255
"""A channel that varies by less than one level of a byte is not stretched further, and a constant one not by zero."""


def settings_table(views: Sequence[ViewConfig], mean: Sequence[float], deviation: Sequence[float]) -> npt.NDArray[Any]:
    """The settings of random views, a row of dtype SETTINGS each; `mean` and `deviation` per channel, 0..1 scale."""
    table = np.zeros(len(views), SETTINGS)
    start = 0
    for row, view in zip(table, views, strict=True):
        row["size"], row["start"] = view.size, start
        row["scale_low"], row["scale_high"] = view.crop_scale
        row["log_ratio_low"], row["log_ratio_high"] = math.log(view.crop_ratio[0]), math.log(view.crop_ratio[1])
        row["bicubic"] = view.resampling == "bicubic"
        for operation in ("flip", "jitter", "grayscale", "blur", "solarize", "erase"):
            row[f"{operation}_probability"] = getattr(view, f"{operation}_probability")
        for strength in ("brightness", "contrast", "saturation", "hue"):
            row[strength] = getattr(view, strength)
        row["sigma_low"], row["sigma_high"] = view.blur_sigma
        row["sigma_of_batch"] = view.blur_sigma_per == "batch"
        row["threshold"] = view.solarize_threshold
        row["erase_scale_low"], row["erase_scale_high"] = view.erase_scale
        row["log_erase_ratio_low"], row["log_erase_ratio_high"] = map(math.log, view.erase_ratio)
        row["mean"], row["deviation"] = mean, np.maximum(deviation, LEAST_DEVIATION)
        start += 3 * view.size * view.size
    return table


def evaluation_table(
    size: int,
    mean: Sequence[float],
    deviation: Sequence[float],
    *,
    resampling: Resampling = "bilinear",
    crop_pct: float = 1.0,
) -> npt.NDArray[Any]:
    """The settings of the one view without randomness: shorter side resized to `size` / `crop_pct`, center crop of
    `size`, normalization.
    """
    table = np.zeros(1, SETTINGS)
    table["size"], table["fixed"], table["bicubic"] = size, int(size / crop_pct), resampling == "bicubic"
    table["mean"], table["deviation"] = mean, np.maximum(deviation, LEAST_DEVIATION)
    return table


def draw(
    view: ViewConfig,
    *,
    seed: int,
    epoch: int,
    sample_id: int,
    view_index: int,
    image_height: int,
    image_width: int,
    step: int = 0,
) -> Drawn:
    """What is drawn for view number `view_index` of a sample, as the loader draws it. Epochs, and their steps (global
    batches), count from 0; the step matters only where a blur's sigma is a batch's.
    """
    drawn = np.zeros(1, DRAWN)
    settings = settings_table([view], (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
    _draw_all(settings, drawn, seed, epoch, step, sample_id, view_index, image_height, image_width)
    row = drawn[0]
    order = np.empty(4, np.int64)
    _permutation(row["order"], order)
    return Drawn(
        top=int(row["top"]),
        left=int(row["left"]),
        height=int(row["height"]),
        width=int(row["width"]),
        flip=bool(row["flip"]),
        jitter_order=tuple(int(operation) for operation in order) if row["jitter"] else (),
        brightness=float(row["brightness"]),
        contrast=float(row["contrast"]),
        saturation=float(row["saturation"]),
        hue=float(row["hue"]),
        grayscale=bool(row["grayscale"]),
        blur_sigma=float(row["sigma"]) if row["sigma"] > 0 else None,
        solarize=bool(row["solarize"]),
        erased=(
            (int(row["erase_top"]), int(row["erase_left"]), int(row["erase_height"]), int(row["erase_width"]))
            if row["erase_height"]
            else None
        ),
    )


# ---- Keyed draws -----------------------------------------------------------------------------------------------------

CROP, FLIP, JITTER, ORDER, BRIGHTNESS, CONTRAST, SATURATION, HUE, GRAYSCALE, BLUR, SIGMA, SOLARIZE = range(12)
ERASE, ERASED_BOX, SIGMA_OF_BATCH = range(12, 15)


@exact
def _absorb(key: Any, value: Any) -> Any:
    """Mix an integer into a 64-bit key: splitmix64's step and finalizer (Steele, Lea, Flood, OOPSLA 2014)."""
    mixed = (key ^ np.uint64(value)) + np.uint64(0x9E3779B97F4A7C15)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))


@exact
def _uniform(key: Any, operation: Any, index: Any) -> Any:
    """A float64 in [0, 1) for draw number `index` of an operation."""
    return np.float64(_absorb(_absorb(key, operation), index) >> np.uint64(11)) * (1.0 / 9007199254740992.0)


@exact
def _between(key: Any, operation: Any, index: Any, low: Any, high: Any) -> Any:
    return low + (high - low) * _uniform(key, operation, index)


@exact
def _permutation(number: Any, order: Any) -> None:
    """Permutation `number` (0..23) of 0, 1, 2, 3 into `order`."""
    for place in range(4):
        order[place] = place
    rest = number
    for place in range(3):
        left = 4 - place
        chosen = place + rest % left
        rest //= left
        order[place], order[chosen] = order[chosen], order[place]


@exact
def _draw_crop(settings: Any, drawn: Any, key: Any, height: Any, width: Any) -> None:
    """torchvision's RandomResizedCrop.get_params: ten tries, then the largest allowed crop at the center."""
    area = float(height * width)
    for attempt in range(10):
        target = area * _between(key, CROP, 4 * attempt, settings.scale_low, settings.scale_high)
        ratio = math.exp(_between(key, CROP, 4 * attempt + 1, settings.log_ratio_low, settings.log_ratio_high))
        crop_width = int(np.rint(math.sqrt(target * ratio)))
        crop_height = int(np.rint(math.sqrt(target / ratio)))
        if 0 < crop_width <= width and 0 < crop_height <= height:
            top = int(_uniform(key, CROP, 4 * attempt + 2) * (height - crop_height + 1))
            left = int(_uniform(key, CROP, 4 * attempt + 3) * (width - crop_width + 1))
            break
    else:
        ratio_low, ratio_high = math.exp(settings.log_ratio_low), math.exp(settings.log_ratio_high)
        crop_width, crop_height = width, height
        if width < ratio_low * height:
            crop_height = min(height, max(1, int(np.rint(width / ratio_low))))
        elif width > ratio_high * height:
            crop_width = min(width, max(1, int(np.rint(height * ratio_high))))
        top, left = (height - crop_height) // 2, (width - crop_width) // 2
    drawn.top, drawn.left, drawn.height, drawn.width = top, left, crop_height, crop_width
    drawn.row_low, drawn.row_high = top, top + crop_height
    drawn.column_low, drawn.column_high = left, left + crop_width


@exact
def _center_crop(settings: Any, drawn: Any, height: Any, width: Any) -> None:
    """torchvision's Resize(settings.fixed) then CenterCrop(settings.size), as one box in source pixels."""
    size, shorter = settings.size, settings.fixed
    if height <= width:
        resized_height, resized_width = shorter, int(shorter * width / height)
    else:
        resized_height, resized_width = int(shorter * height / width), shorter
    down, right = height / resized_height, width / resized_width
    drawn.top = np.rint((resized_height - size) / 2.0) * down
    drawn.left = np.rint((resized_width - size) / 2.0) * right
    drawn.height, drawn.width = size * down, size * right
    drawn.row_low, drawn.row_high, drawn.column_low, drawn.column_high = 0, height, 0, width


@exact
def _draw_erased(settings: Any, drawn: Any, key: Any) -> None:
    """torchvision's RandomErasing.get_params: ten tries for a box that is smaller than the view, else none."""
    size = settings.size
    for attempt in range(10):
        area = size * size * _between(key, ERASED_BOX, 4 * attempt, settings.erase_scale_low, settings.erase_scale_high)
        log_ratio = _between(
            key, ERASED_BOX, 4 * attempt + 1, settings.log_erase_ratio_low, settings.log_erase_ratio_high
        )
        ratio = math.exp(log_ratio)
        height, width = int(np.rint(math.sqrt(area * ratio))), int(np.rint(math.sqrt(area / ratio)))
        if height < size and width < size:
            if height > 0 and width > 0:
                drawn.erase_top = int(_uniform(key, ERASED_BOX, 4 * attempt + 2) * (size - height + 1))
                drawn.erase_left = int(_uniform(key, ERASED_BOX, 4 * attempt + 3) * (size - width + 1))
                drawn.erase_height, drawn.erase_width = height, width
            return


@exact
def _draw_view(settings: Any, drawn: Any, key: Any, batch_key: Any, height: Any, width: Any) -> None:
    drawn.flip, drawn.jitter, drawn.grayscale, drawn.solarize, drawn.sigma = 0, 0, 0, 0, 0.0
    drawn.erase_height = 0
    if settings.fixed:
        _center_crop(settings, drawn, height, width)
        return
    _draw_crop(settings, drawn, key, height, width)
    drawn.flip = _uniform(key, FLIP, 0) < settings.flip_probability
    drawn.jitter = _uniform(key, JITTER, 0) < settings.jitter_probability
    drawn.order = int(_uniform(key, ORDER, 0) * 24)
    drawn.brightness = _between(key, BRIGHTNESS, 0, max(0.0, 1 - settings.brightness), 1 + settings.brightness)
    drawn.contrast = _between(key, CONTRAST, 0, max(0.0, 1 - settings.contrast), 1 + settings.contrast)
    drawn.saturation = _between(key, SATURATION, 0, max(0.0, 1 - settings.saturation), 1 + settings.saturation)
    drawn.hue = _between(key, HUE, 0, -settings.hue, settings.hue)
    drawn.grayscale = _uniform(key, GRAYSCALE, 0) < settings.grayscale_probability
    if _uniform(key, BLUR, 0) < settings.blur_probability:
        if settings.sigma_of_batch:
            drawn.sigma = _between(batch_key, SIGMA_OF_BATCH, 0, settings.sigma_low, settings.sigma_high)
        else:
            drawn.sigma = _between(key, SIGMA, 0, settings.sigma_low, settings.sigma_high)
    drawn.solarize = _uniform(key, SOLARIZE, 0) < settings.solarize_probability
    if _uniform(key, ERASE, 0) < settings.erase_probability:
        _draw_erased(settings, drawn, key)


@exact
def _draw_all(
    settings: Any,
    drawn: Any,
    seed: Any,
    epoch: Any,
    step: Any,
    sample_id: Any,
    first_view: Any,
    height: Any,
    width: Any,
) -> None:
    """Fill `drawn` for all rows of `settings`; they are views number first_view, first_view + 1, ... of the sample.

    What a whole batch shares is keyed by `step`, the number of the global batch in its epoch, and by an operation of
    its own, as a step and a sample may have the same number.
    """
    epoch_key = _absorb(_absorb(np.uint64(0), seed), epoch)
    sample_key, step_key = _absorb(epoch_key, sample_id), _absorb(epoch_key, step)
    for view in range(len(settings)):
        key, batch_key = _absorb(sample_key, first_view + view), _absorb(step_key, first_view + view)
        _draw_view(settings[view], drawn[view], key, batch_key, height, width)


# ---- Memory by address -----------------------------------------------------------------------------------------------


@primitive  # type: ignore[untyped-decorator]
def _pointer(typing_context: Any, address: Any) -> Any:
    """An integer address as a pointer that `carray` takes."""

    def build(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.inttoptr(arguments[0], context.get_value_type(types.voidptr))

    return types.voidptr(types.int64), build


@compiled
def _floats(array: Any, start: Any, count: Any) -> Any:
    """array[start : start + count] of float32 without reference counting, which costs more than a short row."""
    return carray(_pointer(array.ctypes.data + 4 * start), (count,), np.float32)


@compiled
def _bytes(address: Any, count: Any) -> Any:
    return carray(_pointer(address), (count,), np.uint8)


# ---- Crop and resize -------------------------------------------------------------------------------------------------

BYTE = np.float32(1.0 / 255.0)
ZERO, ONE, TWO, FOUR, SIX = np.float32(0), np.float32(1), np.float32(2), np.float32(4), np.float32(6)
# Offsets are unsigned: numba then drops Python's rule for negative indices, and loops become vector instructions.
U1, U2, U3, U4, U5 = np.uint64(1), np.uint64(2), np.uint64(3), np.uint64(4), np.uint64(5)


@compiled
def _taps(
    start: Any, extent: Any, low: Any, high: Any, size: Any, reverse: Any, first: Any, at: Any, weights: Any, base: Any
) -> Any:
    """The antialiased bilinear filter of PIL and torch for `size` outputs over [start, start + extent); returns K.

    Output i weighs the K pixels from first[at + i] on by weights[base + k * size + i]; those outside [low, high) weigh
    0. The triangle's half-width is the step between outputs, but at least one pixel.
    """
    step = extent / size
    support = max(step, 1.0)
    taps = min(int(2.0 * support) + 2, high - low) if step > 1.0 else 2
    for i in range(size):
        center = start + step * (i + 0.5)
        begin = max(math.floor(center - support + 0.5), low)
        end = min(math.floor(center + support + 0.5), high)
        begin = max(min(begin, high - taps), low)
        total = 0.0
        for k in range(taps):
            weight = 1.0 - abs(begin + k + 0.5 - center) / support
            if weight > 0.0 and begin + k < end:
                total += weight
        place = size - 1 - i if reverse else i
        first[at + place] = begin
        for k in range(taps):
            weight = 1.0 - abs(begin + k + 0.5 - center) / support
            weights[base + k * size + place] = weight / total if weight > 0.0 and begin + k < end else 0.0
    return taps


@compiled
def _two_rows(target: Any, above: Any, below: Any, weight_above: Any, weight_below: Any) -> None:
    for i in range(len(target)):
        target[i] = weight_above * np.float32(above[i]) + weight_below * np.float32(below[i])


@compiled
def _add_row(target: Any, source: Any, weight: Any) -> None:
    for i in range(len(target)):
        target[i] += weight * np.float32(source[i])


@compiled
def _pick(row: Any, first: Any, left: Any, right: Any, red: Any, green: Any, blue: Any) -> None:
    """Two taps per output: a row of outputs in three planes, from interleaved pixels."""
    for i in range(len(red)):
        at = np.uint64(first[i])
        red[i] = left[i] * row[at] + right[i] * row[at + U3]
        green[i] = left[i] * row[at + U1] + right[i] * row[at + U4]
        blue[i] = left[i] * row[at + U2] + right[i] * row[at + U5]


@compiled
def _pick_many(row: Any, first: Any, weights: Any, taps: Any, red: Any, green: Any, blue: Any) -> None:
    """The same with any number of taps; `weights` [taps * S]."""
    size = len(red)
    for i in range(size):
        at = np.uint64(first[i])
        sum_red, sum_green, sum_blue = ZERO, ZERO, ZERO
        for k in range(taps):
            weight = weights[k * size + i]
            sum_red += weight * row[at]
            sum_green += weight * row[at + U1]
            sum_blue += weight * row[at + U2]
            at += U3
        red[i], green[i], blue[i] = sum_red, sum_green, sum_blue


@compiled
def _crop_and_resize(
    image: Any, image_width: Any, drawn: Any, reduction: Any, planes: Any, size: Any, row: Any, weights: Any, first: Any
) -> None:
    """The drawn box of an interleaved byte image into three planes of n floats, flipped if drawn.

    `image` is the address of its pixels, `reduction` what the decoder has divided the sides by, `image_width` the
    result's.
    """
    low_row, high_row = drawn.row_low // reduction, -(-drawn.row_high // reduction)
    low, high = drawn.column_low // reduction, -(-drawn.column_high // reduction)
    half = len(weights) // 2
    row_taps = _taps(
        drawn.top / reduction, drawn.height / reduction, low_row, high_row, size, False, first, 0, weights, 0
    )
    column_taps = _taps(
        drawn.left / reduction, drawn.width / reduction, low, high, size, drawn.flip, first, size, weights, half
    )
    column_first = first[size : 2 * size]
    for i in range(size):
        column_first[i] = 3 * (column_first[i] - low)
    floats = 3 * (high - low)
    row[floats : floats + 3] = ZERO  # a second tap of weight zero may lie just outside
    target = _floats(row, 0, floats)
    left, right = _floats(weights, half, size), _floats(weights, half + size, size)
    many = _floats(weights, half, size * column_taps)
    n = size * size
    for y in range(size):
        begin = first[y]
        if row_taps == 2:
            above = _bytes(image + 3 * (begin * image_width + low), floats)
            below = _bytes(image + 3 * (min(begin + 1, high_row - 1) * image_width + low), floats)
            _two_rows(target, above, below, weights[y] * BYTE, weights[size + y] * BYTE)
        else:
            target[:] = ZERO
            for k in range(row_taps):
                weight = weights[k * size + y] * BYTE
                if weight > ZERO:
                    _add_row(target, _bytes(image + 3 * ((begin + k) * image_width + low), floats), weight)
        red, green = _floats(planes, y * size, size), _floats(planes, n + y * size, size)
        blue = _floats(planes, 2 * n + y * size, size)
        if column_taps == 2:
            _pick(row, column_first, left, right, red, green, blue)
        else:
            _pick_many(row, column_first, many, column_taps, red, green, blue)


# ---- Bicubic crop and resize, as Pillow does it ----------------------------------------------------------------------

WEIGHT_BITS = 22
"""A weight is a whole number of 2^-22 and a sum of bytes times weights one of 32 bits: Pillow's arithmetic."""
HALF = np.int32(1 << (WEIGHT_BITS - 1))
NOTHING, TOP = np.int32(0), np.int32(255)


@exact
def _cubic(distance: Any) -> Any:
    """Keys' cubic convolution kernel with a = -1/2 (IEEE Transactions on Acoustics, Speech and Signal Processing 29,
    1981).
    """
    x = abs(distance)
    if x < 1.0:
        return (1.5 * x - 2.5) * x * x + 1.0
    return (((x - 5.0) * x + 8.0) * x - 4.0) * -0.5 if x < 2.0 else 0.0


@exact
def _cubic_taps(
    start: Any, extent: Any, count: Any, size: Any, reverse: Any, first: Any, at: Any, weights: Any, base: Any
) -> Any:
    """The antialiased bicubic filter for `size` outputs over [start, start + extent) of `count` pixels; returns K.

    Output i weighs the K pixels from first[at + i] on, all of them in [0, count), by weights[base + i * stride + k] /
    2^22; the stride is K rounded up to an even number, and what is beyond K weighs 0. The kernel's half-width is twice
    the step between outputs, but at least two pixels.
    """
    step = extent / size
    scale = max(step, 1.0)
    taps = min(math.ceil(4.0 * scale), count)
    stride = taps + taps % 2
    for i in range(size):
        center = start + step * (i + 0.5)
        begin = max(min(int(center - 2.0 * scale + 0.5), count - taps), 0)
        place = size - 1 - i if reverse else i
        first[at + place] = begin
        total = 0.0
        for k in range(taps):
            total += _cubic((begin + k - center + 0.5) * (1.0 / scale))
        here = base + place * stride
        for k in range(taps):
            weight = _cubic((begin + k - center + 0.5) * (1.0 / scale)) / total * (1 << WEIGHT_BITS)
            weights[here + k] = int(weight - 0.5) if weight < 0.0 else int(weight + 0.5)
        if stride > taps:
            weights[here + taps] = 0
    return taps


@compiled
def _level(total: Any) -> Any:
    """A sum that started at a half, as a byte; what lies beyond 0 and 255 is clipped."""
    return min(max(total >> WEIGHT_BITS, NOTHING), TOP)


@compiled
def _across(pixels: Any, spread: Any, first: Any, weights: Any, taps: Any, size: Any, target: Any) -> None:
    """A row of interleaved bytes to S outputs, the bytes of three planes one after the other.

    In `spread`, int32, a pixel takes four places, so that it is one vector.
    """
    stride = taps + taps % 2
    for i in range(len(pixels) // 3):
        at, to = np.uint64(3 * i), np.uint64(4 * i)
        spread[to] = pixels[at]
        spread[to + U1] = pixels[at + U1]
        spread[to + U2] = pixels[at + U2]
    for i in range(size):
        at, weigh = np.uint64(4 * first[i]), np.uint64(i * stride)
        red, green, blue, rest = HALF, HALF, HALF, HALF
        for k in range(taps):
            weight = weights[weigh + np.uint64(k)]
            red = np.int32(red + weight * spread[at])
            green = np.int32(green + weight * spread[at + U1])
            blue = np.int32(blue + weight * spread[at + U2])
            rest = np.int32(rest + weight * spread[at + U3])
            at += U4
        target[i] = _level(red)
        target[i + size] = _level(green)
        target[i + 2 * size] = _level(blue)


@compiled
def _down(
    source: Any, pitch: Any, begin: Any, taps: Any, weights: Any, weigh: Any, sums: Any, count: Any, target: Any
) -> None:
    """One row of `count` bytes from `taps` rows, from row `begin` on, that lie `pitch` bytes apart from address
    `source` on; two at a time, as each pass over `sums` costs.
    """
    for i in range(count):
        sums[i] = HALF
    for k in range(0, taps, 2):
        start = source + (begin + k) * pitch
        one, two = _bytes(start, count), _bytes(start + pitch if k + 1 < taps else start, count)
        first, second = weights[weigh + k], weights[weigh + k + 1]
        for i in range(count):
            sums[i] = np.int32(sums[i] + first * np.int32(one[i]) + second * np.int32(two[i]))
    for i in range(count):
        target[i] = _level(sums[i])


@compiled
def _to_planes(levels: Any, planes: Any, start: Any, size: Any, n: Any) -> None:
    for channel in range(3):
        plane = _floats(planes, channel * n + start, size)
        for i in range(size):
            plane[i] = BYTE * np.float32(levels[channel * size + i])


@compiled
def _crop_and_resize_bicubic(
    image: Any,
    image_width: Any,
    drawn: Any,
    reduction: Any,
    planes: Any,
    size: Any,
    first: Any,
    weights: Any,
    spread: Any,
    sums: Any,
    levels: Any,
) -> None:
    """As `_crop_and_resize`, equal to Pillow's resize (since its version 13) of the cropped image, byte for byte.

    Rows are filtered before columns, but columns first where they are shortened by more than twice the pixels that
    rows are. `levels` has room for the bytes between the two: 3 S for each row of the source, or a row and 3 S.
    """
    low_row, high_row = drawn.row_low // reduction, -(-drawn.row_high // reduction)
    low, high = drawn.column_low // reduction, -(-drawn.column_high // reduction)
    height, width = high_row - low_row, high - low
    top, left = drawn.top / reduction - low_row, drawn.left / reduction - low
    box_height, box_width = drawn.height / reduction, drawn.width / reduction
    half = len(weights) // 2
    row_taps = _cubic_taps(top, box_height, height, size, False, first, 0, weights, 0)
    column_taps = _cubic_taps(left, box_width, width, size, drawn.flip, first, size, weights, half)
    stride = row_taps + row_taps % 2
    column_first, column_weights = first[size : 2 * size], weights[half:]
    # How long the columns and rows of the whole image would become: of a center crop's, more than is kept.
    shorter = height - int(np.rint(height * size / box_height))
    narrower = width - int(np.rint(width * size / box_width))
    pitch, address = 3 * image_width, image + 3 * (low_row * image_width + low)
    n, row = size * size, 3 * size
    between = levels.ctypes.data
    if shorter > 0 and shorter > 2 * narrower:
        filtered, made = _bytes(between + row, 3 * width), _bytes(between, row)
        for y in range(size):
            _down(address, pitch, first[y], row_taps, weights, y * stride, sums, 3 * width, filtered)
            _across(filtered, spread, column_first, column_weights, column_taps, size, made)
            _to_planes(made, planes, y * size, size, n)
        return
    begin, end = first[0], first[size - 1] + row_taps
    for y in range(begin, end):
        pixels, target = _bytes(address + y * pitch, 3 * width), _bytes(between + (y - begin) * row, row)
        _across(pixels, spread, column_first, column_weights, column_taps, size, target)
    made = _bytes(between + (end - begin) * row, row)
    for y in range(size):
        _down(between, row, first[y] - begin, row_taps, weights, y * stride, sums, row, made)
        _to_planes(made, planes, y * size, size, n)


# ---- Color, on planes [3, n] of floats in 0..1 -----------------------------------------------------------------------

SIXTH = np.float32(1 / 6)
RED, GREEN, BLUE = np.float32(0.2989), np.float32(0.587), np.float32(0.114)  # torchvision's weights of a gray value


@compiled
def _clamped(value: Any) -> Any:
    return min(max(value, ZERO), ONE)


@compiled
def _brightness(planes: Any, factor: Any) -> None:
    for channel in range(3):
        plane = planes[channel]
        for i in range(len(plane)):
            plane[i] = _clamped(plane[i] * factor)


@compiled
def _contrast(planes: Any, factor: Any) -> None:
    red, green, blue = planes[0], planes[1], planes[2]
    total = ZERO
    for i in range(len(red)):
        total += RED * red[i] + GREEN * green[i] + BLUE * blue[i]
    shift = (ONE - factor) * total / np.float32(len(red))
    for channel in range(3):
        plane = planes[channel]
        for i in range(len(plane)):
            plane[i] = _clamped(plane[i] * factor + shift)


@compiled
def _saturation(planes: Any, factor: Any) -> None:
    red, green, blue = planes[0], planes[1], planes[2]
    rest = ONE - factor
    for i in range(len(red)):
        gray = rest * (RED * red[i] + GREEN * green[i] + BLUE * blue[i])
        red[i] = _clamped(red[i] * factor + gray)
        green[i] = _clamped(green[i] * factor + gray)
        blue[i] = _clamped(blue[i] * factor + gray)


@compiled
def _from_hue(sextant: Any, top: Any, chroma: Any) -> Any:
    """top - chroma * clamp(min(k, 4 - k)) with k = sextant mod 6: HSV to RGB without branches."""
    k = sextant - SIX * np.floor(sextant * SIXTH)
    return top - chroma * _clamped(min(k, FOUR - k))


@compiled
def _hue(planes: Any, shift: Any) -> None:
    """Turn the hue by `shift` (in turns) at equal value and saturation."""
    red, green, blue = planes[0], planes[1], planes[2]
    turn = SIX * shift
    for i in range(len(red)):
        r, g, b = red[i], green[i], blue[i]
        top = max(r, max(g, b))
        chroma = top - min(r, min(g, b))
        inverse = ONE / (chroma if chroma > ZERO else ONE)
        from_blue = FOUR + (r - g) * inverse
        from_green = TWO + (b - r) * inverse
        sextant = (g - b) * inverse if top == r else (from_green if top == g else from_blue)
        sextant += turn
        red[i] = _from_hue(sextant + np.float32(5), top, chroma)
        green[i] = _from_hue(sextant + np.float32(3), top, chroma)
        blue[i] = _from_hue(sextant + ONE, top, chroma)


@compiled
def _grayscale(planes: Any) -> None:
    red, green, blue = planes[0], planes[1], planes[2]
    for i in range(len(red)):
        gray = RED * red[i] + GREEN * green[i] + BLUE * blue[i]
        red[i], green[i], blue[i] = gray, gray, gray


@compiled
def _solarize(planes: Any, threshold: Any) -> None:
    for channel in range(3):
        plane = planes[channel]
        for i in range(len(plane)):
            plane[i] = ONE - plane[i] if plane[i] >= threshold else plane[i]


@compiled
def _jitter(planes: Any, drawn: Any, order: Any) -> None:
    """The four color operations in the drawn order; a factor that changes nothing costs nothing."""
    _permutation(drawn.order, order)
    for place in range(4):
        if order[place] == 0 and drawn.brightness != 1.0:
            _brightness(planes, np.float32(drawn.brightness))
        elif order[place] == 1 and drawn.contrast != 1.0:
            _contrast(planes, np.float32(drawn.contrast))
        elif order[place] == 2 and drawn.saturation != 1.0:
            _saturation(planes, np.float32(drawn.saturation))
        elif order[place] == 3 and drawn.hue != 0.0:
            _hue(planes, np.float32(drawn.hue))


# ---- Blur ------------------------------------------------------------------------------------------------------------

BLUR_BLOCK = 2048
"""Floats that are blurred at a time: what is read and written stays in the first-level cache."""


@compiled
def _convolve(
    target: Any, at: Any, source: Any, center: Any, stride: Any, kernel: Any, radius: Any, count: Any
) -> None:
    """target[at + i] = sum over |k| <= radius of kernel[|k|] source[center + i + k stride], three pairs at a time."""
    out = _floats(target, at, count)
    middle, here = kernel[0], _floats(source, center, count)
    for k in range(1, radius + 1, 3):
        one, two, three = kernel[k], kernel[k + 1], kernel[k + 2]
        left_1, right_1 = _floats(source, center - k * stride, count), _floats(source, center + k * stride, count)
        left_2 = _floats(source, center - (k + 1) * stride, count)
        right_2 = _floats(source, center + (k + 1) * stride, count)
        left_3 = _floats(source, center - (k + 2) * stride, count)
        right_3 = _floats(source, center + (k + 2) * stride, count)
        if k == 1:
            for i in range(count):
                out[i] = (
                    middle * here[i]
                    + one * (left_1[i] + right_1[i])
                    + two * (left_2[i] + right_2[i])
                    + three * (left_3[i] + right_3[i])
                )
        else:
            for i in range(count):
                out[i] += (
                    one * (left_1[i] + right_1[i]) + two * (left_2[i] + right_2[i]) + three * (left_3[i] + right_3[i])
                )


@compiled
def _copy(target: Any, at: Any, source: Any, start: Any, count: Any) -> None:
    out, here = _floats(target, at, count), _floats(source, start, count)
    for i in range(count):
        out[i] = here[i]


@compiled
def _blur(planes: Any, size: Any, sigma: Any, spare: Any, row: Any, kernel: Any) -> None:
    """Separable Gaussian blur of radius ceil(3 sigma), at most S - 1, with reflected borders.

    `spare` holds one plane with borders, up to 3 S + 6 rows of S floats; `row` one row with borders; `kernel` S + 3.
    """
    radius = min(math.ceil(3.0 * sigma), size - 1)
    total = 0.0
    for k in range(radius + 1):
        weight = math.exp(-0.5 * (k / sigma) ** 2)
        kernel[k] = weight
        total += weight if k == 0 else 2 * weight
    for k in range(radius + 1):
        kernel[k] = kernel[k] / np.float32(total)
    border = -(-radius // 3) * 3  # up to a whole number of triples; what lies beyond the radius weighs nothing
    for k in range(radius + 1, border + 1):
        kernel[k] = ZERO
    n = size * size
    for channel in range(3):
        for y in range(size):  # along the rows, into `spare`
            start = channel * n + y * size
            _copy(row, border, planes, start, size)
            for k in range(1, border + 1):
                inward = min(k, size - 1)
                row[border - k] = planes[start + inward]
                row[border + size - 1 + k] = planes[start + size - 1 - inward]
            _convolve(spare, (border + y) * size, row, border, 1, kernel, radius, size)
        for k in range(1, border + 1):
            inward = min(k, size - 1)
            _copy(spare, (border - k) * size, spare, (border + inward) * size, size)
            _copy(spare, (border + size - 1 + k) * size, spare, (border + size - 1 - inward) * size, size)
        for i in range(0, n, BLUR_BLOCK):  # down the columns, back into `planes`
            count = min(BLUR_BLOCK, n - i)
            _convolve(planes, channel * n + i, spare, border * size + i, size, kernel, radius, count)


# ---- Erase -----------------------------------------------------------------------------------------------------------


@compiled
def _erase(target: Any, size: Any, drawn: Any) -> None:
    """The drawn box of a normalized view, `target` [n * 3] channels-last, to 0: the data set's mean color."""
    for y in range(drawn.erase_top, drawn.erase_top + drawn.erase_height):
        start = 3 * (y * size + drawn.erase_left)
        for i in range(start, start + 3 * drawn.erase_width):
            target[i] = ZERO


# ---- One part of a batch ---------------------------------------------------------------------------------------------


@compiled
def _normalize(planes: Any, settings: Any, target: Any) -> None:
    """(x - mean) / deviation, interleaved: `target` [n * 3] is channels-last."""
    red, green, blue = planes[0], planes[1], planes[2]
    scale_red = np.float32(1.0 / settings.deviation[0])
    scale_green = np.float32(1.0 / settings.deviation[1])
    scale_blue = np.float32(1.0 / settings.deviation[2])
    shift_red = np.float32(-settings.mean[0] / settings.deviation[0])
    shift_green = np.float32(-settings.mean[1] / settings.deviation[1])
    shift_blue = np.float32(-settings.mean[2] / settings.deviation[2])
    for i in range(len(red)):
        target[3 * i] = red[i] * scale_red + shift_red
        target[3 * i + 1] = green[i] * scale_green + shift_green
        target[3 * i + 2] = blue[i] * scale_blue + shift_blue


@compiled
def _reduction(settings: Any, drawn: Any) -> Any:
    """By how much a JPEG may be decoded smaller (1, 2, 4 or 8): each view still shrinks what is left by two or more."""
    least = 16.0
    for view in range(len(settings)):
        least = min(least, min(drawn[view].height, drawn[view].width) / settings[view].size)
    if least >= 16.0:
        return 8
    if least >= 8.0:
        return 4
    return 2 if least >= 4.0 else 1


@primitive  # type: ignore[untyped-decorator]
def _decode_jpeg(
    typing_context: Any, function: Any, source: Any, length: Any, height: Any, width: Any, target: Any, reduction: Any
) -> Any:
    """Call ffcv's `imdecode` at address `function`: a JPEG as RGB bytes at 1 / reduction of its size; 0 if all is well.

    The address is an argument because numba cannot cache code that holds a ctypes function.
    """

    def build(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        address, source_, length_, height_, width_, target_, reduction_ = arguments
        i32, i64 = ir.IntType(32), ir.IntType(64)
        kind = ir.FunctionType(i32, [i64, i64, i32, i32, i64, i32, i32, i32, i32, i32, i32, i32, i32])
        zero = ir.Constant(i32, 0)
        rows, columns = builder.trunc(height_, i32), builder.trunc(width_, i32)
        result = builder.call(
            builder.inttoptr(address, kind.as_pointer()),
            [
                source_,
                length_,
                rows,
                columns,
                target_,
                rows,  # the "crop" is the whole image
                columns,
                zero,
                zero,
                ir.Constant(i32, 1),
                builder.trunc(reduction_, i32),
                zero,  # no lossless crop, no flip: both would decode twice
                zero,
            ],
        )
        return builder.sext(result, i64)

    return types.int64(*([types.int64] * 7)), build


@compiled
def _decode(decoder: Any, source: Any, length: Any, height: Any, width: Any, target: Any, reduction: Any) -> bool:
    """A JPEG at address `source` to `target`; False where it is broken.

    The decoder reports a mere warning (a stray byte between markers, as in some ImageNet files) just as it does a
    failure. What tells them apart is whether it got to the last row: then that row does not depend on what was there
    before.
    """
    if _decode_jpeg(decoder, source, length, height, width, target, reduction) == 0:
        return True
    rows, pitch = -(-height // reduction), 3 * -(-width // reduction)
    last = _bytes(target + (rows - 1) * pitch, pitch)
    for fill in (0, 255):
        last[:] = fill
        _decode_jpeg(decoder, source, length, height, width, target, reduction)
        for i in range(pitch):
            if last[i] != fill:
                return True
    return False


@compiled
def render(ids: Any, pixels: Any, settings: Any, numbers: Any, broken: Any, metadata: Any, storage: Any) -> None:
    """All views of the samples `ids`, rows of an FFCV file, into their places in the batch's buffer.

    `pixels`, flat float32: for each view in turn a block [batch rows, S, S, 3]. `settings`: SETTINGS, a row per view.
    `numbers`, int64: seed, epoch, place of ids[0] in the batch, batch rows, largest image side, largest image in
    pixels, address of ffcv's `imdecode`, number of the global batch in its epoch. `broken`, int64 [1]: set to the id of
    a JPEG that does not decode. `metadata` and `storage` are FFCV's: a record (mode, width, height, data_ptr) per
    sample; the mapped bytes with the sorted addresses and sizes of what they hold.
    """
    seed, epoch, place, rows = numbers[0], numbers[1], numbers[2], numbers[3]
    side, area, decoder, step = numbers[4], numbers[5], numbers[6], numbers[7]
    count = len(settings)
    largest = 0
    for view in range(count):
        largest = max(largest, settings[view].size)
    planes = np.empty(3 * largest * largest, np.float32)
    spare = np.empty((3 * largest + 6) * largest, np.float32)
    row = np.empty(3 * max(side, largest) + 6, np.float32)
    weights = np.empty(4 * side + 16 * largest + 32, np.float32)
    cubic_weights = np.empty(8 * side + 16 * largest + 32, np.int32)
    spread = np.zeros(4 * side, np.int32)
    sums = np.empty(3 * max(side, largest), np.int32)
    levels = np.empty(3 * (side + 1) * (largest + 1), np.uint8)
    first = np.empty(2 * largest, np.int64)
    kernel = np.empty(largest + 3, np.float32)
    order = np.empty(4, np.int64)
    decoded = np.empty(3 * area, np.uint8)
    drawn = np.zeros(count, DRAWN)
    memory, addresses, lengths = storage
    for i in range(len(ids)):
        record = metadata[ids[i]]
        height, width = np.int64(record.height), np.int64(record.width)
        address = record.data_ptr
        source = memory.ctypes.data + np.int64(address)
        _draw_all(settings, drawn, seed, epoch, step, ids[i], 0, height, width)
        reduction = 1
        image_width = width
        if record.mode == 0:
            reduction = _reduction(settings, drawn)
            image_width = -(-width // reduction)
            length = np.int64(lengths[np.searchsorted(addresses, address)])
            if not _decode(decoder, source, length, height, width, decoded.ctypes.data, reduction):
                broken[0] = ids[i]
                return
            source = decoded.ctypes.data
        for view in range(count):
            one, size = drawn[view], settings[view].size
            flat = planes[: 3 * size * size]
            if settings[view].bicubic:
                _crop_and_resize_bicubic(
                    source, image_width, one, reduction, flat, size, first, cubic_weights, spread, sums, levels
                )
            else:
                _crop_and_resize(source, image_width, one, reduction, flat, size, row, weights, first)
            colors = flat.reshape(3, size * size)
            if one.jitter:
                _jitter(colors, one, order)
            if one.grayscale:
                _grayscale(colors)
            if one.sigma > 0.0:
                _blur(flat, size, one.sigma, spare, row, kernel)
            if one.solarize:
                _solarize(colors, np.float32(settings[view].threshold))
            begin = settings[view].start * rows + (place + i) * 3 * size * size
            target = pixels[begin : begin + 3 * size * size]
            _normalize(colors, settings[view], target)
            if one.erase_height:
                _erase(target, size, one)
