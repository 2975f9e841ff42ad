"""Reading one scan ahead, in a thread: the first while the program is still loading, each other while one is worked on.

No torch here: the thread starts before it is imported.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from types import TracebackType
from typing import TypeVar

from organdetr_monai.data.nifti import read_voxels
from organdetr_monai.data.scans import Scan

__all__ = ["ReadAhead"]

T = TypeVar("T")


class ReadAhead:
    """A context in which scans are read, one ahead; leaving it gives up what nobody has asked for.

    Parameters
    ----------
    scans : sequence of Scan
        The voxels of the first, if it is NIfTI, are begun at once: most of that is inflating, which runs beside the
        imports of the main thread.

    Examples
    --------
    >>> with ReadAhead(scans) as ahead:  # doctest: +SKIP
    ...     for scan, reading in ahead.each(read_scan):
    ...         array, affine = reading.result()  # raises what reading raised
    """

    def __init__(self, scans: Sequence[Scan]) -> None:
        self._scans = list(scans)
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="read-ahead")
        if self._scans and self._scans[0].kind == "nifti":
            begun = self._pool.submit(read_voxels, self._scans[0].paths[0])
            self._scans[0] = replace(self._scans[0], voxels=begun.result)

    def __enter__(self) -> ReadAhead:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)

    def each(self, read: Callable[[Scan], T]) -> Iterator[tuple[Scan, Future[T]]]:
        """Yield each scan and the future of ``read(scan)``, while the thread reads the next. Once for each context."""
        following = self._begin(read)
        while following is not None:
            current, following = following, self._begin(read)
            yield current

    def _begin(self, read: Callable[[Scan], T]) -> tuple[Scan, Future[T]] | None:
        if not self._scans:
            return None
        scan = self._scans.pop(0)  # not kept: it may hold voxels
        return scan, self._pool.submit(read, scan)
