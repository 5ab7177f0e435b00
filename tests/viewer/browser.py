"""Pictures of a page, taken by a script of ours in headless Chromium."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tests.viewer.ohif import CHROMIUM, HERE


def look(script: str, url: str, steps: Sequence[Any], modules: Path, work: Path) -> dict[str, Any]:
    """Open a page and take the steps of a script.

    Args:
        script: file beside this one.
        url: of the page.
        steps: dataclasses that the script knows, one for each picture.
        modules: folder of the packages from npm.
        work: folder for the job and the browser's profile.

    Returns:
        ``shots``, one for each step (None where it failed) with what the script found there, and ``faults`` of the
        page and its requests.
    """
    job = {
        "url": url,
        "chromium": CHROMIUM,
        "profile": str(work / "profile"),
        "modules": str(modules),
        "steps": [asdict(step) for step in steps],
    }
    path = work / "job.json"
    path.write_text(json.dumps(job))
    command = ["node", str(HERE / script), str(path)]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=600)
    if done.returncode:
        raise RuntimeError(done.stderr[-2000:])
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found
