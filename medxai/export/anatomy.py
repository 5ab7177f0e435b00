"""Which part of the body an image shows, as a code (PS3.16 annex L: terms of BodyPartExamined and their codes)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from medxai.study import Result

if TYPE_CHECKING:
    from pydicom import Dataset

#: Defined term of BodyPartExamined -> name in the dictionary of SNOMED CT codes, whether there are two of it.
PARTS = {
    "ABDOMEN": ("Abdomen", False),
    "ABDOMENPELVIS": ("AbdomenAndPelvis", False),
    "ANKLE": ("AnkleJoint", True),
    "BLADDER": ("Bladder", False),
    "BRAIN": ("Brain", False),
    "BREAST": ("Breast", True),
    "CHEST": ("Chest", False),
    "CHESTABDOMEN": ("ChestAndAbdomen", False),
    "CHESTABDPELVIS": ("ChestAbdomenAndPelvis", False),
    "COLON": ("Colon", False),
    "CSPINE": ("CervicalSpine", False),
    "ELBOW": ("ElbowJoint", True),
    "EYE": ("Eye", True),
    "FOOT": ("Foot", True),
    "HAND": ("Hand", True),
    "HEAD": ("Head", False),
    "HEADNECK": ("HeadAndNeck", False),
    "HEART": ("Heart", False),
    "HIP": ("Hip", True),
    "KIDNEY": ("Kidney", True),
    "KNEE": ("Knee", True),
    "LIVER": ("Liver", False),
    "LSPINE": ("LumbarSpine", False),
    "LUNG": ("Lung", True),
    "NECK": ("Neck", False),
    "PANCREAS": ("Pancreas", False),
    "PELVIS": ("Pelvis", False),
    "PROSTATE": ("Prostate", False),
    "SHOULDER": ("Shoulder", True),
    "SKULL": ("Skull", False),
    "SPINE": ("Spine", False),
    "THYROID": ("Thyroid", False),
    "TSPINE": ("ThoracicSpine", False),
    "WHOLEBODY": ("EntireBody", False),
    "WRIST": ("WristJoint", True),
}  # fmt: skip


def frame_anatomy(result: Result, body: Dataset) -> Dataset | None:
    """Return the item of the Frame Anatomy macro (PS3.3 C.7.6.16.2.8); None where part or side is not known.

    Args:
        result: whose study says the part.
        body: source header with BodyPartExamined and laterality.
    """
    from pydicom.dataset import Dataset
    from pydicom.sr.codedict import codes

    part = (result.study.volume.body_part or str(body.get("BodyPartExamined", "") or "")).strip().upper()
    name, paired = PARTS.get(part, ("", False))
    side = str(body.get("ImageLaterality", "") or body.get("Laterality", "") or "")
    if not name or (paired and side not in ("L", "R", "B")):
        return None
    code, item, region = getattr(codes.SCT, name), Dataset(), Dataset()
    region.CodeValue, region.CodingSchemeDesignator, region.CodeMeaning = code.value, "SCT", code.meaning
    item.AnatomicRegionSequence = [region]
    item.FrameLaterality = side if paired else "U"
    return item
