"""Who holds a row: a process of a machine, told apart from a later one with the same number."""

from __future__ import annotations

import os
import socket
from pathlib import Path


def this_process() -> str:
    """The owner's name of the calling process: host, process id and start time."""
    return f"{socket.gethostname()}:{os.getpid()}:{_started(os.getpid())}"


def is_alive(owner: str) -> bool:
    """False when the owner was a process of this machine that no longer runs, or nobody."""
    if owner and owner.rsplit(":", 2)[0] != socket.gethostname():
        return True  # another machine's rows are not ours to judge
    return runs_here(owner)


def runs_here(owner: str) -> bool:
    """True when the owner is a process of this machine that runs."""
    if not owner:
        return False
    host, pid, started = owner.rsplit(":", 2)
    return host == socket.gethostname() and _started(int(pid)) == started and started != "0"


def _started(pid: int) -> str:
    """Start time of a process in clock ticks since boot, which tells a reused process id apart."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[19]
    except (OSError, IndexError):
        return "0"
