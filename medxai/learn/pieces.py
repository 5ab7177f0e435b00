"""Pieces of long work, each done once by one process, whatever is killed in between.

A piece writes its result last and atomically; one that another process works at is passed over, by a lock that the
system lets go with the process.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from medxai.errors import SettingsError
from medxai.files import alone, write_text


def finished(folder: Path, settings: dict[str, Any]) -> dict[str, Any] | None:
    """What a finished piece found; None before.

    Raises:
        SettingsError: it was made with other settings.
    """
    path = folder / "result.json"
    if not path.exists():
        return None
    found: dict[str, Any] = json.loads(path.read_text())
    if found["settings"] != settings:
        name = "/".join(folder.parts[-2:])
        msg = f"{name} was made with other settings; choose another output folder or remove it"
        raise SettingsError(msg, study=str(folder.parent.parent))
    return found


def piece(
    folder: Path, settings: dict[str, Any], do: Callable[[], dict[str, Any]], say: Callable[[str], None]
) -> dict[str, Any] | None:
    """Do a piece, or return what it found before; None while another process is at it.

    Args:
        folder: of the piece alone; its result is ``result.json``.
        settings: all that the result depends on, as JSON knows it.
        do: the work; returns what can be kept as JSON.
        say: told when it begins and ends.
    """
    with alone(folder) as mine:
        if not mine:
            return None
        done = finished(folder, settings)
        if done is not None:
            return done
        name = "/".join(folder.parts[-2:])
        start = time.process_time()
        say(f"{name}: begins")
        found = do() | {"settings": settings, "cpu_seconds": time.process_time() - start}
        write_text(folder / "result.json", json.dumps(found, indent=1) + "\n")
        say(f"{name}: done")
        return found
