"""dicom-microscopy-viewer as npm ships it, which SLIM is made of, in a page of ours in front of an Orthanc."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import tarfile
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tests.viewer.ohif import CACHE, HERE

VIEWER, CLIENT = "0.48.24", "0.11.3"
_FRAME = re.compile(r"/dicom-web/studies/[\d.]+/series/[\d.]+/instances/([\d.]+)/frames/(\d+)")


@dataclass(frozen=True)
class Step:
    """One picture.

    Attributes:
        out: file to write.
        pixel: column and row of the finest level to say the place of.
        kind: what lies over the slide: ``map``, ``segmentation`` or ``labelmap``; None for the slide alone.
        wanted: which of its mappings or segments.
        opacity: of it.
    """

    out: str
    pixel: tuple[int, int]
    kind: str | None = None
    wanted: int = 0
    opacity: float = 1.0


def fetch(site: Path) -> Path:
    """Put the page and the libraries from npm, or from the last time, into the folder `site`, and return it."""
    CACHE.mkdir(exist_ok=True)
    packages = {"dicom-microscopy-viewer": VIEWER, "dicomweb-client": CLIENT}
    folders = {name: CACHE / f"{name}-{version}" for name, version in packages.items()}
    for name, folder in folders.items():
        if (folder / "ready").exists():
            continue
        shutil.rmtree(folder, ignore_errors=True)
        subprocess.run(
            ["npm", "pack", "--silent", f"{name}@{packages[name]}"], cwd=CACHE, check=True, stdout=subprocess.DEVNULL
        )
        packed = CACHE / f"{name}-{packages[name]}.tgz"
        with tarfile.open(packed) as archive:
            archive.extractall(folder, filter="data")
        packed.unlink()
        (folder / "ready").touch()
    site.mkdir(parents=True, exist_ok=True)
    shutil.copytree(
        folders["dicom-microscopy-viewer"] / "package" / "dist" / "dynamic-import", site / "dicom-microscopy-viewer"
    )
    shutil.copy(folders["dicomweb-client"] / "package" / "build" / "dicomweb-client.js", site)
    shutil.copy(HERE / "slide.html", site / "index.html")
    return site


def float_frames(archive: str) -> Callable[[str], tuple[str, bytes] | None]:
    """Return what answers for frames of float pixel data, which Orthanc's DICOMweb refuses (HTTP 400).

    The bytes are those that Orthanc has stored; only the cut into frames is made here (PS3.18 section 10.4.1.1.6).

    Args:
        archive: REST root of an Orthanc.
    """
    stored: dict[str, tuple[bytes, int]] = {}

    def load(uid: str) -> tuple[bytes, int]:
        request = urllib.request.Request(f"{archive}/tools/lookup", data=uid.encode(), method="POST")  # noqa: S310
        with urllib.request.urlopen(request) as answer:  # noqa: S310
            (found,) = [item["ID"] for item in json.load(answer) if item["Type"] == "Instance"]
        with urllib.request.urlopen(f"{archive}/instances/{found}/simplified-tags") as answer:  # noqa: S310
            tags = json.load(answer)
        if "FloatPixelData" not in tags:
            return b"", 0
        with urllib.request.urlopen(f"{archive}/instances/{found}/content/7fe0-0008") as answer:  # noqa: S310
            data = answer.read()
        return data, int(tags["Rows"]) * int(tags["Columns"]) * 4

    def answer(path: str) -> tuple[str, bytes] | None:
        found = _FRAME.fullmatch(path)
        if found is None:
            return None
        uid, number = found[1], int(found[2])
        if uid not in stored:
            stored[uid] = load(uid)
        data, size = stored[uid]
        if not size:
            return None
        frame = data[(number - 1) * size : number * size]
        head = b"--frame\r\nContent-Type: application/octet-stream\r\n\r\n"
        return 'multipart/related; type="application/octet-stream"; boundary=frame', head + frame + b"\r\n--frame--\r\n"

    return answer
