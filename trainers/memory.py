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


def host_peak_bytes() -> int:
    """Most resident memory of this process, in bytes."""
    try:
        lines = _STATUS.read_text().splitlines()
    except OSError:
        lines = []
    found = next((int(line.split()[1]) for line in lines if line.startswith("VmHWM:")), None)
    return 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss if found is None else found)
