from __future__ import annotations

import io
import os
import re
import struct
import subprocess
import sys
import zlib
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from medxai.export import ExportOptions, encapsulated_pdf
from medxai.export.case_pdf import case_pdf
from medxai.study import TrustReport
from tests.export import build
from tests.export.read import read
from tests.tools import dicom_errors

CASES = {
    "oblique": lambda: build.ct_case(),
    "mr": lambda: build.mr_case(),
    "enhanced": lambda: build.enhanced_case(),
    "ultrasound": lambda: build.us_case(cine=False),
    "cine": lambda: build.us_case(cine=True),
}


def streams(pdf):
    """The content of all streams of a PDF, unpacked."""
    out = []
    for raw in re.findall(rb"stream\r?\n(.*?)\r?\nendstream", pdf, re.DOTALL):
        try:
            out.append(zlib.decompress(raw))
        except zlib.error:
            out.append(raw)
    return out


def pictures(pdf):
    """The pictures of a PDF as ``[H, W, 3]``; their streams are compressed as in a PNG file."""
    found = []
    for start in re.finditer(rb"/Subtype /Image", pdf):
        end = pdf.index(b"stream", start.start())
        head = pdf[pdf.rindex(b"<<", 0, start.start()) : end]
        width, height = (int(re.search(rb"/%s (\d+)" % key, head)[1]) for key in (b"Width", b"Height"))
        body = pdf[end + len(b"stream\n") : pdf.index(b"\nendstream", end)]
        parts = [(b"IHDR", struct.pack(">2I5B", width, height, 8, 2, 0, 0, 0)), (b"IDAT", body), (b"IEND", b"")]
        png = b"\x89PNG\r\n\x1a\n"
        for name, data in parts:
            png += struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        found.append(np.asarray(Image.open(io.BytesIO(png)).convert("RGB")))
    return found


@pytest.mark.parametrize("name", CASES)
def test_the_document_comes_back_whole_and_valid(name, tmp_path):
    case = CASES[name]()
    (path,) = encapsulated_pdf.write(case.result, tmp_path, ExportOptions())
    assert dicom_errors(path) == []
    ds = read(path)
    document = ds.EncapsulatedDocument[: ds.EncapsulatedDocumentLength]
    assert document == case_pdf(case.result, ExportOptions())
    assert document.startswith(b"%PDF-")
    assert document.rstrip().endswith(b"%%EOF")
    assert document.count(b"/Type /Page ") == len(case.result.explanations)
    assert (ds.PatientID, ds.StudyInstanceUID) == (case.sources[0].PatientID, case.sources[0].StudyInstanceUID)
    assert [i.ReferencedSOPInstanceUID for i in ds.SourceInstanceSequence] == [s.SOPInstanceUID for s in case.sources]
    assert ds.MIMETypeOfEncapsulatedDocument == "application/pdf"
    assert ds.VerificationFlag == "UNVERIFIED"


def test_nothing_in_the_document_identifies_the_patient():
    case = build.ct_case()
    case.result.study.volume.source[0].InstitutionName = "SECRET Hospital"
    pdf = case_pdf(case.result, ExportOptions())
    header = case.sources[0]
    for data in (pdf, *streams(pdf)):
        for value in ("SECRET", "Secret", "4711", "19500101", header.StudyInstanceUID, header.AccessionNumber + "^"):
            assert value.encode() not in data


_CHILD = """
import sys
from medxai.export import ExportOptions
from medxai.export.case_pdf import case_pdf
from tests.export import build
sys.stdout.buffer.write(case_pdf(build.ct_case(shape=(3, 20, 30)).result, ExportOptions(explanations="primary")))
"""


def test_the_bytes_do_not_depend_on_process_clock_and_hash_seed():
    made = []
    for seed, zone in (("1", "UTC"), ("77", "Asia/Tokyo")):
        environment = {**os.environ, "PYTHONHASHSEED": seed, "TZ": zone}
        made.append(subprocess.run([sys.executable, "-c", _CHILD], capture_output=True, check=True, env=environment))
    assert made[0].stdout == made[1].stdout
    assert b"CreationDate" not in made[0].stdout


def test_the_verdict_stands_on_the_page_and_withheld_maps_are_not_shown():
    result = build.ct_case().result
    supported = case_pdf(replace(result, trust=(TrustReport("supported"),) * 2), ExportOptions())
    withheld = TrustReport("withheld", ("the region matters no more than a random one",))
    hidden = case_pdf(replace(result, trust=(withheld,) * 2), ExportOptions())
    shown = case_pdf(replace(result, trust=(withheld,) * 2), ExportOptions(send_withheld=True))

    def coloured(pdf):
        """Pixels of the pictures with the colours of strong evidence; the colour bar always has some."""
        pixels = np.concatenate([picture.reshape(-1, 3).astype(int) for picture in pictures(pdf)])
        return int((pixels[:, 0] - pixels[:, 2] > 150).sum())

    assert min(coloured(supported), coloured(shown)) > 2 * coloured(hidden)
