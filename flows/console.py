"""What the flows' command lines have in common: lines of progress, and one line for what went wrong."""

from __future__ import annotations

import sys
from collections.abc import Callable

from medxai.errors import MedxaiError


def say(line: str) -> None:
    """Print a line at once."""
    print(line, flush=True)


def answered(work: Callable[[], int]) -> int:
    """Return the exit code of some work; a MedxaiError becomes one line on stderr and 2."""
    try:
        return work()
    except MedxaiError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
