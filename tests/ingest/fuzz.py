"""Mutated DICOM files through ingest, each under a limit of time and memory; anything but a reason is a crash.

``python -m tests.ingest.fuzz COUNT [SEED]`` prints what came out.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import resource
import signal
import sys
import tempfile
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

#: For each file.
SECONDS, MEMORY = 10, 4 << 30
LARGEST = 300_000
#: Files that a worker takes before it is asked how it went.
_PORTION = 500


@dataclass(frozen=True)
class Fault:
    """What should not happen: which mutation of which file, and how it ended."""

    source: str
    number: int
    words: str


def seeds() -> list[Path]:
    """Small DICOM files of pydicom, of all transfer syntaxes and kinds."""
    import pydicom

    folder = Path(pydicom.__file__).parent / "data"
    found = [path for path in sorted(folder.rglob("*")) if path.is_file() and 132 < path.stat().st_size < LARGEST]
    return [path for path in found if path.read_bytes()[128:132] == b"DICM"]


def mutate(content: bytes, draws: np.random.Generator) -> bytes:
    """Flip bits, cut off, spoil a length, nest sequences, move or double a piece: one to three of them."""
    changed = bytearray(content)
    for _ in range(int(draws.integers(1, 4))):
        _CHANGES[int(draws.integers(len(_CHANGES)))](changed, draws)
    return bytes(changed)


def _flip(content: bytearray, draws: np.random.Generator) -> None:
    for place in draws.integers(132, max(133, len(content)), int(draws.integers(1, 20))):
        if place < len(content):
            content[place] ^= 1 << int(draws.integers(8))


def _cut(content: bytearray, draws: np.random.Generator) -> None:
    del content[int(draws.integers(100, max(101, len(content)))) :]


def _length(content: bytearray, draws: np.random.Generator) -> None:
    """Of an element, most likely: two or four bytes before the middle of the header."""
    place = int(draws.integers(132, max(133, min(len(content), 3000))))
    size = 2 if draws.random() < 0.5 else 4
    extreme = [
        b"\x00" * size,
        b"\xff" * size,
        b"\xfe" + b"\xff" * (size - 1),
        bytes(draws.integers(0, 256, size).tolist()),
    ]
    content[place : place + size] = extreme[int(draws.integers(len(extreme)))]


def _nest(content: bytearray, draws: np.random.Generator) -> None:
    """Sequences in sequences, of undefined length and never closed."""
    opened = b"\x08\x00\x40\x11SQ\x00\x00\xff\xff\xff\xff\xfe\xff\x00\xe0\xff\xff\xff\xff"
    place = int(draws.integers(132, max(133, min(len(content), 3000))))
    content[place:place] = opened * int(draws.integers(1, 400))


def _move(content: bytearray, draws: np.random.Generator) -> None:
    first, end = sorted(draws.integers(132, max(134, len(content)), 2).tolist())
    piece = bytes(content[first:end])[:5000]
    if draws.random() < 0.5:
        del content[first : first + len(piece)]
    place = int(draws.integers(132, max(133, len(content))))
    content[place:place] = piece


_CHANGES: Sequence[Callable[[bytearray, np.random.Generator], None]] = (_flip, _cut, _length, _nest, _move)


def _worker(files: Sequence[Path], jobs: Sequence[int], seed: int, folder: Path, say: Any) -> None:
    """Read so many mutations; tells the number before each file and the outcome after it."""
    from medxai.errors import MedxaiError
    from medxai.ingest.discover import discover
    from medxai.ingest.read import read_study

    warnings.simplefilter("ignore")
    logging.disable()
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # decoders in C complain there
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    outside: list[str] = []

    def watch(event: str, details: tuple[Any, ...]) -> None:
        writes = event == "open" and isinstance(details[0], str) and set(str(details[1] or "")) & set("wax+")
        if writes and not Path(details[0]).resolve().is_relative_to(folder):
            outside.append(details[0])

    sys.addaudithook(watch)

    def late(*_given: object) -> None:
        raise TimeoutError

    signal.signal(signal.SIGALRM, late)
    for number in jobs:
        say.send(("begun", number))
        source = files[number % len(files)]
        path = folder / f"{number}.dcm"
        path.write_bytes(mutate(source.read_bytes(), np.random.default_rng([seed, number])))
        signal.alarm(SECONDS)
        try:
            found = discover([path], folder / "work")
            outcome = "rejected"
            for item in found.sources:
                try:
                    read_study(item)
                    outcome = "read"
                except MedxaiError:
                    outcome = "refused"
        except MedxaiError:
            outcome = "rejected"
        except TimeoutError:
            outcome = f"fault: took more than {SECONDS} s"
        except BaseException as error:
            outcome = f"fault: {type(error).__name__}: {error}"[:200]
        signal.alarm(0)
        path.unlink()
        if outside:
            outcome = f"fault: wrote {outside.pop()}"
        say.send(("ended", number, outcome))
    say.close()


def fuzz(count: int, seed: int = 0, first: int = 0) -> tuple[Counter[str], list[Fault]]:
    """Outcomes of mutations ``first`` to ``first + count``, and what should not have happened."""
    files, outcomes, faults = seeds(), Counter[str](), list[Fault]()
    context = multiprocessing.get_context("spawn")  # a fork would take along the address space of whoever asks
    with tempfile.TemporaryDirectory() as folder:
        left = list(range(first, first + count))
        while left:
            ears, mouth = context.Pipe(duplex=False)
            worker = context.Process(target=_worker, args=(files, left[:_PORTION], seed, Path(folder).resolve(), mouth))
            worker.start()
            mouth.close()
            running = None
            while ears.poll(3 * SECONDS):
                try:
                    told = ears.recv()
                except EOFError:
                    break
                running = told[1]
                if told[0] == "ended":
                    left.remove(running)
                    running = None
                    outcomes[told[2].partition(":")[0]] += 1
                    if told[2].startswith("fault"):
                        faults.append(Fault(files[told[1] % len(files)].name, told[1], told[2]))
            worker.join(1)
            if worker.is_alive():
                os.kill(worker.pid or 0, signal.SIGKILL)
                worker.join()
            if running is not None:  # it died on this one, or hung in native code
                left.remove(running)
                outcomes["fault"] += 1
                words = f"fault: the process ended with {worker.exitcode}"
                faults.append(Fault(files[running % len(files)].name, running, words))
    return outcomes, faults


def main() -> int:
    """Run and print."""
    count, seed = int(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 0
    outcomes, faults = fuzz(count, seed)
    for fault in faults:
        print(fault)
    print(dict(outcomes))
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
