"""Pixels of many single-frame files, several at a time."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

#: More threads than this gain nothing: parsing headers holds the interpreter.
_MOST = 4

_pools: dict[tuple[int, int], ThreadPoolExecutor] = {}
_lock = threading.Lock()


def for_each_slice(files: Iterable[Path], work: Callable[[int, Path], None], threads: int | None = None) -> None:
    """Call ``work(number, file)`` for every file; compressed pixels are decoded in one process for each thread.

    Args:
        files: in the order of their numbers.
        work: reads one file and keeps what it needs.
        threads: None for as many as there are processors, at most four.

    Raises:
        Exception: the first in the order of the files, once nothing is running any more.
    """
    count = min(_MOST, os.cpu_count() or 1) if threads is None else threads
    if count < 2:
        for number, path in enumerate(files):
            work(number, path)
        return
    futures = [_pool(count).submit(work, number, path) for number, path in enumerate(files)]
    try:
        for future in futures:
            future.result()
    finally:
        for future in futures:
            future.cancel()
        for future in futures:
            if not future.cancelled():
                future.exception()


def _pool(threads: int) -> ThreadPoolExecutor:
    """Threads that live on with their decoders; a fork gets its own."""
    with _lock:
        key = (os.getpid(), threads)
        if key not in _pools:
            _pools.clear()
            _pools[key] = ThreadPoolExecutor(threads, thread_name_prefix="medxai-read")
        return _pools[key]
