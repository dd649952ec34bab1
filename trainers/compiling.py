"""The network's passes as compiled code (`TrialConfig.compile`), by torch.compile.

What is compiled are the calls of the network's parts in training, forward and backward: backbone, projector, predictor,
teacher, decoder. Terms, masks and everything that draws stay as they are, and so do probes, whose batches have any
size.

A trial must not feel what ran before it in its process. Code is therefore made for one shape of tensors and never
again for shapes in general, and what a process has compiled is forgotten before a run whose network is another one.
A run of the same network takes over the code of the run before: it is what it would have compiled itself, as torch
derives code from the network and the shapes alone. (But not with CUDA graphs, which hold the addresses of tensors that
are gone.) On the disk, code lies in `$PRETUNE_CACHE/compiled`, by default `~/.cache/pretune/compiled`, for each kind
of processor; `TORCHINDUCTOR_CACHE_DIR` names another place. torch adds its own version, and the GPU's.

This module imports no torch before something is compiled.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import platform
import shlex
import shutil
import sysconfig
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainers.config import TrialConfig

if TYPE_CHECKING:
    import torch

Call = Callable[..., Any]
"""Calls its first argument, a part of the network or a function, with the others."""

CACHE = "TORCHINDUCTOR_CACHE_DIR"
"""The variable that says where torch keeps compiled code."""
MOST_VARIANTS = 64
"""Pieces of code of one function: parts of the network, with and without gradient, by size of view."""

_compiled_for: str | None = None
"""What this process holds code of: see `network`. As torch's own store of code is one for the whole process."""
_graphs_before = 0
"""Graphs that torch had compiled in this process when that store was last emptied."""


class CompilationError(RuntimeError):
    """torch cannot compile a part of the network."""


def plainly(part: Call, *inputs: Any) -> Any:
    """Without compiling anything."""
    return part(*inputs)


def why_not() -> str | None:
    """What torch.compile would miss on this machine; None where there is all that it needs."""
    compiler = next(iter(shlex.split(os.environ.get("CXX", ""))), "g++")  # CXX may have arguments: ccache g++
    if shutil.which(compiler) is None:
        return f"a C++ compiler, but there is no {compiler}; install g++, or set CXX to one"
    if not (Path(sysconfig.get_path("include")) / "Python.h").is_file():
        return f"Python's headers, but there is no Python.h in {sysconfig.get_path('include')}; install python3-dev"
    return None


def check(config: TrialConfig) -> None:
    """ValueError where this machine cannot compile what `config` asks for."""
    if config.compile != "off" and (missing := why_not()):
        raise ValueError(f"compile={config.compile} needs {missing}, or set compile=off")


def check_device(config: TrialConfig, device: torch.device) -> None:
    """ValueError where `config` cannot be compiled for `device` on this machine."""
    if config.compile == "cuda_graphs" and device.type != "cuda":
        raise ValueError(
            f"compile=cuda_graphs needs a CUDA GPU, but this run is on {device}; set compile=on or compile=off"
        )
    check(config)


def compiled(config: TrialConfig, device: torch.device, ranks: int) -> Call:
    """What calls the parts of the network of `config`, compiled at the first call for each shape.

    It raises CompilationError where torch cannot compile one.
    """
    import torch
    from torch._dynamo.exc import FailOnRecompileLimitHit, TorchDynamoException
    from torch._inductor.exc import CppCompileError

    _prepare(config, network(config, device.type, ranks))
    options: dict[str, Any] = {
        "deterministic": config.deterministic,
        "triton.cudagraphs": config.compile == "cuda_graphs",
    }
    run = torch.compile(plainly, dynamic=False, options=options)

    def call(part: Call, *inputs: Any) -> Any:
        try:
            return run(part, *inputs)
        except (TorchDynamoException, FailOnRecompileLimitHit, CppCompileError) as error:
            what = " ".join(str(error).split())[:300]
            raise CompilationError(
                f"torch cannot compile {type(part).__name__} ({type(error).__name__}: {what}); set compile=off"
            ) from error

    return call


def begin_step(config: TrialConfig) -> None:
    """Before each step: what CUDA graphs returned in the last one may be written over."""
    if config.compile == "cuda_graphs":
        import torch

        torch.compiler.cudagraph_mark_step_begin()  # type: ignore[no-untyped-call]


def network(config: TrialConfig, device_type: str, ranks: int) -> str:
    """What decides the code: all that the config says of the network, of its input, and of how sums are computed."""
    facts = {
        "model": config.model.model_dump(mode="json"),
        "views": [view.size for view in config.views],
        "rows": [config.batch_size // ranks, config.accumulate],
        "how": [config.compile, config.precision, config.deterministic, config.threads],
        "where": [device_type, ranks],
    }
    return json.dumps(facts, sort_keys=True)


def _prepare(config: TrialConfig, wanted: str) -> None:
    """torch's settings for compiled code, and its store emptied of what another network left there."""
    global _compiled_for, _graphs_before
    import torch
    from torch._dynamo.utils import counters
    from torch._inductor.runtime.cache_dir_utils import default_cache_dir

    if os.environ.get(CACHE, default_cache_dir()) == default_cache_dir():  # which torch sets, too, when it is imported
        os.environ[CACHE] = str(folder())
    if "TORCHINDUCTOR_COMPILE_THREADS" not in os.environ:  # else a pool as large as the machine, for each worker
        torch._inductor.config.compile_threads = config.threads
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)  # it warns where there is no GPU
    settings: Any = torch._dynamo.config
    # More than this would be left uncompiled without a word: other numbers than those of a run that comes first.
    settings.recompile_limit, settings.fail_on_recompile_limit_hit = MOST_VARIANTS, True
    settings.optimize_ddp = False  # it cuts the code at DDP's buckets, which our own calls do not see
    # Parts of one's own may have something that each instance has anew, so that code is never taken over.
    crowded = counters["stats"]["unique_graphs"] - _graphs_before > MOST_VARIANTS // 2
    if wanted != _compiled_for or config.compile == "cuda_graphs" or crowded:
        torch.compiler.reset()
        _graphs_before = counters["stats"]["unique_graphs"]
    _compiled_for = wanted


def folder() -> Path:
    """Where compiled code lies on this kind of processor: other kinds may lack instructions that it uses."""
    from trainers.data import data_cache  # with NumPy, which most commands do without

    facts = [platform.machine()]
    with suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text(errors="replace").splitlines()
        facts += [line for line in lines if line.startswith(("model name", "flags", "Features"))][:2]
    kind = hashlib.sha256("\n".join(facts).encode()).hexdigest()[:12]
    return data_cache.cache().parent / "compiled" / kind
