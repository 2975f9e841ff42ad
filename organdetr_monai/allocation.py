"""Memory that is freed stays at hand for the next tensor, instead of going back to the system."""

from __future__ import annotations

import ctypes
import platform

__all__ = ["keep_freed_memory"]

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX = -1, -2, -4  # malloc.h
GROWTH = 256 * 1024**2  # bytes by which the heap grows at a time


def keep_freed_memory() -> bool:
    """Tell the C library not to hand freed memory back; whether it could be told.

    By default glibc maps every block of more than 32 MB anew and unmaps it when it is freed, so that the system clears
    the pages of each large tensor again in every step: on a CPU a large part of the time that a training step on
    volumes takes (``benchmarks/allocation.py`` says how large). What this costs: the process holds the memory of its
    largest moment until it ends. It is of the whole process, and does nothing but on Linux with glibc; memory of a GPU
    is not touched.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    tell = ctypes.CDLL(None).mallopt
    return all([tell(M_MMAP_MAX, 0), tell(M_TRIM_THRESHOLD, 2**31 - 1), tell(M_TOP_PAD, GROWTH)])
