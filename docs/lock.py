"""Rewrite constraints.txt: resolve pyproject.toml in a new environment and freeze it."""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
HEAD = """# Exact set on which medxai is tested (Debian 12, Python 3.11, CPU); written by `make lock`.
# torch carries no +cpu suffix, so that the plain wheel satisfies it too; GPU sites skip this file.
"""
DEV = (
    "# dev: network, video, train, prepared, deidentify, neuro, postgresql and pathology extras, test and lint tools\n"
)
#: torch's plain range would fetch CUDA builds of several gigabytes; the CPU set pins it.
PINNED = ["torch==2.13.0", "setuptools>=77.0.3"]


def freeze(requirements: list[str]) -> dict[str, str]:
    """Install into a new environment and return name -> pin."""
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
        pip = [f"{folder}/bin/python", "-m", "pip", "--disable-pip-version-check"]
        subprocess.run([*pip, "install", "-q", *PINNED, *requirements], check=True)
        listed = subprocess.run([*pip, "list", "--format=freeze"], check=True, capture_output=True, text=True).stdout
    pins = {}
    for line in listed.splitlines():
        name = re.sub(r"[-_.]+", "-", line.split("==")[0]).lower()
        if "==" in line and name not in {"pip", "medxai"}:
            pins[name] = line.split("+")[0]
    return pins


def main() -> None:
    """Resolve core alone, then with the extras that the tests need."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    core = freeze(project["dependencies"])
    wanted = (
        [r for r in extras["dev"] if not r.startswith("medxai[")]
        + extras["network"]
        + extras["video"]
        + extras["train"]
        + extras["prepared"]
        + extras["deidentify"]
        + extras["neuro"]
        + extras["pathology"]
    )
    everything = freeze([*core.values(), *wanted])
    lines = sorted(core.values(), key=str.lower)
    added = sorted((pin for name, pin in everything.items() if name not in core), key=str.lower)
    (ROOT / "constraints.txt").write_text(HEAD + "\n".join(lines) + "\n" + DEV + "\n".join(added) + "\n")


if __name__ == "__main__":
    main()
