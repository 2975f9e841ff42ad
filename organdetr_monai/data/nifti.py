"""Voxels of NIfTI files, straight to float32. No torch here, so that a thread can read while it is imported."""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

__all__ = ["inflate", "read_voxels"]

_CHUNK = 1 << 17  # bytes of a compressed file at once: what comes out of them stays in the processor's cache


def read_voxels(path: Path) -> np.ndarray:
    """Read and rescale voxels in float32; nibabel, and MONAI with it, goes through float64 where there is a slope.

    Of the header nothing is checked but what reading needs.

    Parameters
    ----------
    path : Path
        Ends in ``.nii`` or ``.nii.gz``.

    Returns
    -------
    ndarray of the file's shape, float32, Fortran order
        HU.

    Raises
    ------
    OSError, EOFError, ValueError, zlib.error
        If the file is missing, damaged or cut off, its voxels are not one number each, or it
        has more than three axes.
    MemoryError
        If so many voxels as the header speaks of do not fit.
    """
    image = nib.load(path)
    if not isinstance(image, nib.Nifti1Pair):
        raise ValueError(f"it is a {type(image).__name__}")
    proxy: Any = image.dataobj
    if proxy.dtype.kind not in "iuf":
        raise ValueError(f"its voxels are of type {proxy.dtype}")
    if any(n != 1 for n in proxy.shape[3:]):  # no volume: nobody wants gigabytes of it read
        raise ValueError(f"its shape is {proxy.shape}")
    if path.suffix.lower() == ".gz":  # a third faster than Python's gzip, and with its checksum, which nibabel skips
        array = np.empty(proxy.shape, np.float32, order="F")
        _fill(array.reshape(-1, order="F"), inflate(path), proxy.dtype, proxy.offset)
    else:
        stored = np.fromfile(path, proxy.dtype, math.prod(proxy.shape), offset=proxy.offset)
        array = stored.reshape(proxy.shape, order="F").astype(np.float32, order="F", copy=False)
    if (proxy.slope, proxy.inter) != (1, 0):
        array *= np.float32(proxy.slope)
        array += np.float32(proxy.inter)
    return array


def _fill(flat: np.ndarray, chunks: Iterable[bytes], dtype: np.dtype, offset: int) -> None:
    """Fill `flat` with the numbers that lie across the chunks from byte `offset` on; all chunks are taken."""
    done, rest = 0, b""
    for chunk in chunks:
        skipped = min(offset, len(chunk))
        offset -= skipped
        chunk = rest + chunk[skipped:]
        count = min(len(chunk) // dtype.itemsize, len(flat) - done)
        flat[done : done + count] = np.frombuffer(chunk, dtype, count)
        done += count
        rest = chunk[count * dtype.itemsize :] if done < len(flat) else b""
    if done < len(flat):
        raise EOFError(f"it holds {done} of {len(flat)} voxels")


def inflate(path: Path, start: int = 0) -> Iterator[bytes]:
    """Yield what a gzip or zlib block holds from byte `start` on, to the end and its checksum.

    Raises
    ------
    zlib.error, EOFError
        If the block is damaged or ends early.
    """
    decoder = zlib.decompressobj(wbits=47)  # 47: either header
    with open(path, "rb") as file:
        file.seek(start)
        while chunk := file.read(_CHUNK):
            while chunk:
                if decoder.eof:
                    if not chunk.startswith(b"\x1f"):  # padding, not another gzip member
                        return
                    decoder = zlib.decompressobj(wbits=47)
                yield decoder.decompress(chunk)
                chunk = decoder.unused_data
    if not decoder.eof:
        raise EOFError("compressed data end early")
