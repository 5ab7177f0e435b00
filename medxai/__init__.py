"""medxai: explanations of medical-image classifiers, in the patient, in the PACS, with their evidence.

Importing the package loads no model library; torch and MONAI are imported where they are used.
"""

from __future__ import annotations

__version__ = "0.1.0"
__all__ = ["__version__"]
