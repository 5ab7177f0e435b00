"""Export: a `Result` becomes the files that other people's software can open.

Every exporter is one module that offers `ROLE`, `applies` and `write`; `registry` lists them and writes them
all or nothing. Heavy libraries are imported where they are used.
"""

from __future__ import annotations

from medxai.export.registry import export_all, skipped
from medxai.settings import ExportOptions

__all__ = ["ExportOptions", "export_all", "skipped"]
