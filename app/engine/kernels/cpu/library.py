"""Loads the compiled kernels that suit this machine; no compiler is called here."""

import ctypes
import logging
from ctypes import c_float, c_int, c_int64, c_void_p
from dataclasses import dataclass
from functools import cache

from app.engine.kernels.cpu.build import library_path, usable_instruction_sets

logger = logging.getLogger(__name__)

# The kernels' arguments after their names in kernels.cpp: i int, n int64, f float, p pointer.
SIGNATURES = {
    "use_threads_of": "p",
    "rms_norm": "iipppppnnnfi",
    "activate_and_multiply": "iippnni",
    "rotate": "iippppppppnnnnnnnfi",
    "store_kv": "ippnnpnppnnnni",
    "paged_attention": "ippnppnnnnpppnnffni",
    "linear": "iipnnpppppnnni",
}
CTYPES = {"i": c_int, "n": c_int64, "f": c_float, "p": c_void_p}
HOW_TO_BUILD = "python -m app.engine.kernels.cpu.build"


@dataclass(frozen=True, slots=True)
class Library:
    """The kernels, compiled for an instruction set."""

    functions: ctypes.CDLL
    instruction_set: str


@cache
def load_library() -> Library | None:
    """The kernels for the best instruction set of this CPU; None where they are not compiled."""
    for name in usable_instruction_sets():
        path = library_path(name)
        if path.is_file():
            logger.info("cpu kernels loaded instruction_set=%s", name)
            return Library(_load(str(path)), name)
    logger.warning(
        "cpu kernels not compiled, torch computes instead and is slower; to have them: %s",
        HOW_TO_BUILD,
    )
    return None


def _load(path: str) -> ctypes.CDLL:
    """ctypes lets go of the interpreter's lock while a kernel runs."""
    functions = ctypes.CDLL(path)
    for name, signature in SIGNATURES.items():
        function = getattr(functions, name)
        function.argtypes = [CTYPES[letter] for letter in signature]
        function.restype = None
    # torch loads its OpenMP runtime for all to see; the kernels run on the same threads.
    parallel = getattr(ctypes.CDLL(None), "GOMP_parallel", None)
    functions.use_threads_of(ctypes.cast(parallel, c_void_p) if parallel else None)
    return functions
