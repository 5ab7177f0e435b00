"""The records are the same in both databases."""

from pathlib import Path

import pytest

from medxai.records.database import sqlite_url


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A new database."""
    if request.param == "sqlite":
        return sqlite_url(tmp_path / "deep" / "w.sqlite")
    made: str = request.getfixturevalue("postgres_database")()
    return made
