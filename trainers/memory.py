"""How much memory this process held at most, on the host and on its GPU, since a run began.

On the host that is Linux's high-water mark of resident memory (`VmHWM`), with the mapped pages of the data set, which
the processes of a machine share. A worker serves one trial after another, so the mark is put back to what is held now
when a run begins (`clear_refs`, see proc(5)): a trial's peak is then its own, with what the process keeps from earlier
ones. Where the system does not allow that, it is the peak since the process began.
"""

from __future__ import annotations

import resource
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from trainers.config import TrialConfig

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
_RESET_PEAK = "5"


def reset_peaks(device: torch.device) -> bool:
    """Begins anew on the host and on `device`. False where the host's peak stays that since the process began."""
    if device.type == "cuda":
        import torch

        torch.cuda.reset_peak_memory_stats(device)
    try:
        _CLEAR.write_text(_RESET_PEAK)
    except OSError:
        return False
    return True


def peaks(device: torch.device) -> dict[str, float]:
    """`memory/host_peak_bytes`, and on a GPU `memory/gpu_peak_bytes`: what torch's allocator held at most, blocks that
    it keeps for later included, as that is what the card has to have.
    """
    found = {"memory/host_peak_bytes": float(host_peak_bytes())}
    if device.type == "cuda":
        import torch

        found["memory/gpu_peak_bytes"] = float(torch.cuda.max_memory_reserved(device))
    return found


def capacity_bytes(device: torch.device) -> float | None:
    """What a GPU has in all; None on a host, which is shared with all else that runs there."""
    if device.type != "cuda":
        return None
    import torch

    return float(torch.cuda.mem_get_info(device)[1])


def free_bytes(device: torch.device) -> float | None:
    """What of a GPU nobody holds now; None on a host."""
    if device.type != "cuda":
        return None
    import torch

    return float(torch.cuda.mem_get_info(device)[0])


def remedy(
    config: TrialConfig, *, workers: int, peak_bytes: float, fixed_bytes: float, capacity_bytes: float | None
) -> str:
    """In words, what a run that did not fit held, and the smallest `accumulate` that needs less.

    `fixed_bytes` of that are parameters, gradients and the optimizer's moments; the rest is a part's activations, which
    `accumulate` divides. How much more the run would have wanted nobody knows: what is named is the least, no promise.
    """
    held = f"this run held {_gib(peak_bytes)} at most"
    if capacity_bytes is not None:
        held += f" of the {_gib(capacity_bytes)} there are"
    held += f", {_gib(fixed_bytes)} of it for parameters, gradients and moments"
    rows = config.batch_size // workers
    if capacity_bytes is not None and fixed_bytes >= capacity_bytes:
        return f"{held}; these do not fit, whatever the batch: choose a smaller model"
    fitting = next((count for count in range(config.accumulate + 1, rows + 1) if rows % count == 0), None)
    if fitting is None:
        return f"{held}; its batch cannot be cut into more parts: choose a smaller model or smaller views"
    norm = ""
    if config.accumulate == 1 and config.accumulate_batch_norm == "exact" and config.batch_norm_place:
        norm = ", with model.norm=layer or accumulate_batch_norm=per_part"
    return f"{held}; it may fit with accumulate={fitting} or more{norm}, or with a smaller batch_size"


def _gib(count: float) -> str:
    return f"{count / 2**30:.2f} GiB"


def host_peak_bytes() -> int:
    """Most resident memory of this process, in bytes."""
    try:
        lines = _STATUS.read_text().splitlines()
    except OSError:
        lines = []
    found = next((int(line.split()[1]) for line in lines if line.startswith("VmHWM:")), None)
    return 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss if found is None else found)
