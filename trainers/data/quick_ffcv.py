"""What is used of FFCV, imported in less than a second instead of six.

FFCV's image field fills a typed dict of numba's with two entries when it is imported, and for that numba compiles: five
seconds in each process, of every worker and every command that reads images. FFCV only ever looks those two entries up
in Python, so that a dict does, and a dict is what it gets here. Importing FFCV also sets torch to one thread: undone.

FFCV says that a mapped file is for reading only by writing so into numba's type of byte arrays, of which there is one
in a process: code that was compiled before and writes bytes could then no longer be called by what is compiled later.
Here the file has a type of its own.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numba import typed, types

_threads, _typed_dict = torch.get_num_threads(), typed.Dict
typed.Dict = dict
try:
    from ffcv.libffcv import ctypes_imdecode
    from ffcv.loader import Loader, OrderOption
    from ffcv.memory_managers.os_cache import OSCacheManager
    from ffcv.pipeline import Compiler, PipelineSpec
    from ffcv.pipeline.operation import Operation
    from ffcv.pipeline.state import State
finally:
    typed.Dict = _typed_dict
    torch.set_num_threads(_threads)

READ_ONLY = types.Array(types.uint8, 1, "C", readonly=True)
_LISTED = types.Array(types.uint64, 1, "C")
STORAGE: Any = types.Tuple([READ_ONLY, _LISTED, _LISTED])  # type: ignore[no-untyped-call]
"""Of a mapped file, with the addresses and lengths of what lies in it."""


def _compiled_reader(manager: Any) -> Any:
    def read(address: Any, storage: Any) -> Any:
        length = storage[2][np.searchsorted(storage[1], address)]
        return storage[0][address : address + length]

    return Compiler.compile(read, READ_ONLY(types.uint64, STORAGE))


OSCacheManager.state_type = property(lambda manager: STORAGE)
OSCacheManager.compile_reader = _compiled_reader

__all__ = ["Compiler", "Loader", "Operation", "OrderOption", "PipelineSpec", "State", "ctypes_imdecode"]
