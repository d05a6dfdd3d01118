"""Takes the network and other programs from this process, in the kernel (Linux, seccomp).

Python's audit hooks see what Python does; a library in C that was taken over goes past them, but
not past this. It cannot be undone, and threads and children inherit it.
"""

import ctypes
import errno
import platform
import socket
import struct
import sys
from dataclasses import dataclass

_PR_SET_NO_NEW_PRIVS, _PR_SET_SECCOMP, _SECCOMP_MODE_FILTER = 38, 22, 2
_LOAD, _IF_EQUAL, _IF_AT_LEAST, _RETURN = 0x20, 0x15, 0x35, 0x06  # BPF instructions
_NUMBER_AT, _ARCH_AT, _FIRST_ARGUMENT_AT = 0, 4, 16  # offsets in struct seccomp_data
_ALLOW, _FAIL = 0x7FFF0000, 0x00050000
_X32 = 0x40000000  # system calls of another kind on x86-64 begin here


@dataclass(frozen=True, slots=True)
class _Machine:
    """A kind of processor: its number in the kernel's audit, and those of the system calls."""

    arch: int
    socket: int
    refused: tuple[int, ...]  # execve, execveat, ptrace, io_uring_setup


_MACHINES = {
    "x86_64": _Machine(0xC000003E, 41, (59, 322, 101, 425)),
    "aarch64": _Machine(0xC00000B7, 198, (221, 281, 117, 425)),
}


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("instructions", ctypes.c_char_p))


def restrict() -> bool:
    """Refuse sockets (but local ones) and starting programs; False where the kernel cannot."""
    machine = _MACHINES.get(platform.machine()) if sys.platform == "linux" else None
    if machine is None:
        return False
    code = _filter(machine)
    program = _Program(len(code) // 8, code)
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0):
        return False
    return not libc.prctl(_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, ctypes.byref(program), 0, 0)


def _filter(machine: _Machine) -> bytes:
    """The filter: a jump names how many instructions it skips.

    arch? → number → x32? → refused calls … → socket? → its domain → local? → allow, fail
    """
    num_calls = len(machine.refused)
    fail = 5 + num_calls  # what the second load would skip to fail
    steps = [
        (_LOAD, 0, 0, _ARCH_AT),
        (_IF_EQUAL, 0, fail + 1, machine.arch),
        (_LOAD, 0, 0, _NUMBER_AT),
        (_IF_AT_LEAST, fail - 1, 0, _X32),
        *((_IF_EQUAL, fail - 2 - n, 0, call) for n, call in enumerate(machine.refused)),
        (_IF_EQUAL, 0, 2, machine.socket),
        (_LOAD, 0, 0, _FIRST_ARGUMENT_AT),
        (_IF_EQUAL, 0, 1, socket.AF_UNIX),
        (_RETURN, 0, 0, _ALLOW),
        (_RETURN, 0, 0, _FAIL | errno.EPERM),
    ]
    return b"".join(struct.pack("HBBI", *step) for step in steps)
