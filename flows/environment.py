"""Prefect's environment, set before it is imported: offline, patient, and under the batch's own folder."""

from __future__ import annotations

import os
from pathlib import Path


def configure(home: Path) -> None:
    """Set defaults that a site may override in its environment.

    Args:
        home: folder of Prefect's own database and results when the site has set none.
    """
    defaults = {
        "DO_NOT_TRACK": "1",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "180",
        "PREFECT_HOME": str(home.resolve()),
        "PREFECT_LOGGING_EXTRA_LOGGERS": "medxai",
        "PREFECT_LOGGING_TO_API_WHEN_MISSING_FLOW": "ignore",
        # Prefect's page keeps its log; the console has medxai's own line for each study put aside.
        "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "CRITICAL",
    }
    home.mkdir(parents=True, exist_ok=True)
    for name, value in defaults.items():
        os.environ.setdefault(name, value)
