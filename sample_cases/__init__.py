"""Deterministic chest phantoms with lesions of known place, as DICOM series and NIfTI."""
