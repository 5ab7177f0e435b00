"""Programs that tests need: found, or the test is skipped with the reason, or fails when they are required."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest


def require_tool(name: str, *, system: bool = False) -> str:
    """Return the path of a program from beside the interpreter or from PATH.

    Skips the test when it is missing; with ``MEDXAI_REQUIRE_TOOLS=1`` the test fails instead.

    Args:
        name: of the program.
        system: not the one beside the interpreter: pynetdicom installs scripts with the names of dcmtk's programs.
    """
    scripts = Path(sys.executable).parent
    folders = [folder for folder in os.environ.get("PATH", os.defpath).split(os.pathsep) if folder]
    folders = [folder for folder in folders if not system or Path(folder) != scripts]
    found = shutil.which(name, path=os.pathsep.join(folders if system else [str(scripts), *folders]))
    if found:
        return found
    reason = f"the program {name} is not installed"
    if os.environ.get("MEDXAI_REQUIRE_TOOLS") == "1":
        pytest.fail(reason)
    pytest.skip(reason)


def require_data(*parts: str) -> Path:
    """Return a path below ``MEDXAI_DATA``; skips the test when it is not there."""
    root = os.environ.get("MEDXAI_DATA")
    if not root:
        pytest.skip("MEDXAI_DATA is not set")
    path = Path(root).joinpath(*parts)
    if not path.exists():
        pytest.skip(f"{'/'.join(parts)} is not below MEDXAI_DATA")
    return path


def dicom_errors(path: Path) -> list[str]:
    """Return the errors that dciodvfy finds in a DICOM file."""
    command = [require_tool("dciodvfy"), str(path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, errors="replace")
    return [line for line in (done.stdout + done.stderr).splitlines() if line.startswith("Error")]


def report_errors(path: Path) -> list[str]:
    """Return the errors that PixelMed's validator finds in the templates of a structured report.

    Debian's libpixelmed-java puts it into /usr/share/java; ``MEDXAI_PIXELMED`` names another folder of jars.
    """
    jars = Path(os.environ.get("MEDXAI_PIXELMED", "/usr/share/java"))
    if not (jars / "pixelmed.jar").exists():
        reason = "PixelMed (libpixelmed-java) is not installed"
        if os.environ.get("MEDXAI_REQUIRE_TOOLS") == "1":
            pytest.fail(reason)
        pytest.skip(reason)
    java = require_tool("java")
    # Java's limits on XPath are too low for the rules of the templates.
    limits = [f"-Djdk.xml.{name}=0" for name in ("xpathTotalOpLimit", "xpathExprGrpLimit", "xpathExprOpLimit")]
    # For a run of seconds the better compiler and the parallel collector cost more than they give.
    short = ["-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-Xms1g", "-Xmn700m"]
    command = [java, "-Djava.awt.headless=true", *short, *limits, "-cp", f"{jars}/*"]
    command += ["com.pixelmed.validate.DicomSRValidator", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False, errors="replace")
    text = done.stdout + done.stderr
    assert "Root Template Validation Complete" in text, text
    return [line for line in text.splitlines() if line.startswith("Error")]
