"""What is used of FFCV, imported in less than a second instead of six.

FFCV's image field fills a typed dict of numba's with two entries when it is imported, and for that numba compiles: five
seconds in each process, of every worker and every command that reads images. FFCV only ever looks those two entries up
in Python, so that a dict does, and a dict is what it gets here. Importing FFCV also sets torch to one thread: undone.
"""

from __future__ import annotations

import torch
from numba import typed

_threads, _typed_dict = torch.get_num_threads(), typed.Dict
typed.Dict = dict
try:
    from ffcv.libffcv import ctypes_imdecode
    from ffcv.loader import Loader, OrderOption
    from ffcv.pipeline import Compiler, PipelineSpec
    from ffcv.pipeline.operation import Operation
    from ffcv.pipeline.state import State
finally:
    typed.Dict = _typed_dict
    torch.set_num_threads(_threads)

__all__ = ["Compiler", "Loader", "Operation", "OrderOption", "PipelineSpec", "State", "ctypes_imdecode"]
