"""dicom-microscopy-viewer as npm ships it, which SLIM is made of, in a page of ours in front of an Orthanc."""

from __future__ import annotations

import base64
import json
import re
import shutil
import subprocess
import tarfile
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.viewer.ohif import CACHE, HERE

VIEWER, CLIENT = "0.48.24", "0.11.3"
#: Given a path, type and body of the answer, or None when the archive answers itself.
Answers = Callable[[str], tuple[str, bytes] | None]
_FRAME = re.compile(r"/dicom-web/studies/[\d.]+/series/[\d.]+/instances/([\d.]+)/frames/(\d+)")
_METADATA = re.compile(r"/dicom-web/studies/[\d.]+/series/[\d.]+/metadata")
#: PointCoordinatesData and LongPrimitivePointIndexList, and the VR that PS3.6 gives them.
_POINTS = {"00660016": "OF", "00660040": "OL"}


@dataclass(frozen=True)
class Step:
    """One picture.

    Attributes:
        out: file to write.
        pixel: column and row of the finest level to say the place of.
        kind: what lies over the slide: ``map``, ``segmentation``, ``labelmap`` or ``annotations``; None for the slide
            alone.
        wanted: which of its mappings, segments or groups.
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


def completed(archive: str) -> Answers:
    """Return what answers where Orthanc's DICOMweb does not give all that it has stored.

    Args:
        archive: REST root of an Orthanc.
    """
    frames, values = float_frames(archive), whole_values(archive)
    return lambda path: frames(path) or values(path)


def float_frames(archive: str) -> Answers:
    """Return what answers for frames of float pixel data, which Orthanc's DICOMweb refuses (HTTP 400).

    The bytes are those that Orthanc has stored; only the cut into frames is made here (PS3.18 section 10.4.1.1.6).

    Args:
        archive: REST root of an Orthanc.
    """
    stored: dict[str, tuple[bytes, int]] = {}

    def load(uid: str) -> tuple[bytes, int]:
        found = _instance(archive, uid)
        tags = json.loads(_get(f"{archive}/instances/{found}/simplified-tags"))
        if "FloatPixelData" not in tags:
            return b"", 0
        data = _get(f"{archive}/instances/{found}/content/7fe0-0008")
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


def whole_values(archive: str) -> Answers:
    """Return what answers for the metadata of a series with the points of its annotations.

    Of each of them Orthanc 1.10.1 gives one number as a string. The bytes put in its place, as ``InlineBinary`` (PS3.18
    F.2.7), are those that Orthanc has stored; everything else is its answer.

    Args:
        archive: REST root of an Orthanc.
    """

    def answer(path: str) -> tuple[str, bytes] | None:
        if _METADATA.fullmatch(path) is None:
            return None
        series: list[dict[str, Any]] = json.loads(_get(archive + path))
        if not any("006A0002" in metadata for metadata in series):
            return None
        for metadata in series:
            for number, group in enumerate(metadata.get("006A0002", {}).get("Value", [])):
                found = _instance(archive, metadata["00080018"]["Value"][0])
                for tag in _POINTS.keys() & group.keys():
                    address = f"{archive}/instances/{found}/content/006a-0002/{number}/{tag[:4]}-{tag[4:]}"
                    group[tag] = {"vr": _POINTS[tag], "InlineBinary": base64.b64encode(_get(address)).decode()}
        return "application/dicom+json", json.dumps(series).encode()

    return answer


def _instance(archive: str, uid: str) -> str:
    """Orthanc's own name of an instance."""
    request = urllib.request.Request(f"{archive}/tools/lookup", data=uid.encode(), method="POST")  # noqa: S310
    with urllib.request.urlopen(request) as answer:  # noqa: S310
        (found,) = [item["ID"] for item in json.load(answer) if item["Type"] == "Instance"]
    return str(found)


def _get(address: str) -> bytes:
    with urllib.request.urlopen(address) as answer:  # noqa: S310
        return bytes(answer.read())
