"""Slides of scanners converted to DICOM by wsidicomizer, a program of its own that medxai does not import.

It is Apache-2.0, and needs libjpeg-turbo and a wsidicom and dicomweb-client older than medxai's network extra, so that
it lives in an environment of its own.
"""

from __future__ import annotations

import secrets
import shutil
import subprocess
from pathlib import Path

from medxai.errors import IngestError
from medxai.ingest.slides.open import open_slide

PROGRAM = "wsidicomizer"
_INSTALL = "pipx install wsidicomizer (or a virtual environment of its own), and libturbojpeg0 of the system"


def convert(slide: Path, folder: Path, *, metadata: Path | None = None, add_levels: bool = False, name: str) -> Path:
    """Convert a slide to the DICOM files of one series; label and overview, which may name the patient, are left out.

    JPEG tiles of SVS are taken over as they are. Identifiers are new ones each time.

    Args:
        slide: SVS or another format that the program reads.
        folder: to write, which must not be there yet; it is complete or absent.
        metadata: JSON file of the program that states patient, study and specimen; None for none of them.
        add_levels: coarser levels that the slide lacks are computed, which is not lossless.
        name: pseudonym for messages.

    Returns:
        `folder`.

    Raises:
        IngestError: no such program or library, the folder is there, or the slide cannot be converted.
    """
    program = shutil.which(PROGRAM)
    if program is None:
        msg = f"conversion needs the program {PROGRAM}, which is not on the PATH: {_INSTALL}"
        raise IngestError(msg, study=name)
    if folder.exists():
        msg = "the folder to write is there already; give another one, since converted slides are never mixed"
        raise IngestError(msg, study=name)
    folder.parent.mkdir(parents=True, exist_ok=True)
    made = folder.parent / f".{folder.name}.{secrets.token_hex(6)}"
    command = [program, "-i", str(slide), "-o", str(made), "--no-label", "--no-overview"]
    command += ["-m", str(metadata)] if metadata is not None else []
    command += ["--add-missing-levels"] if add_levels else []
    try:
        done = subprocess.run(command, check=False, capture_output=True, text=True, errors="replace")  # noqa: S603
        if done.returncode:
            # Its own words quote paths, which may name the patient.
            if "Could not find turbojpeg library" in done.stderr:
                msg = f"libjpeg-turbo is missing: {_INSTALL}"
            else:
                msg = f"{PROGRAM} cannot convert it (exit code {done.returncode}); run it by hand to see why"
            raise IngestError(msg, study=name)
        with open_slide(made, name=name):
            pass  # refused with the reason when it is no slide that can be read back
        made.rename(folder)
    finally:
        shutil.rmtree(made, ignore_errors=True)
    return folder
