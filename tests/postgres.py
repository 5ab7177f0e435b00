"""A PostgreSQL server of one's own, on a socket in a folder nobody else uses."""

from __future__ import annotations

import itertools
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

#: The server refuses to run as root.
_USER = "postgres" if os.geteuid() == 0 else None


def _program(name: str) -> str:
    found = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}")) or [Path(p) for p in [shutil.which(name)] if p]
    if not found:
        reason = f"{name} of PostgreSQL is not installed (apt-get install postgresql)"
        if os.environ.get("MEDXAI_REQUIRE_TOOLS") == "1":
            pytest.fail(reason)
        pytest.skip(reason)
    return str(found[-1])


@contextmanager
def postgres() -> Iterator[Callable[[], str]]:
    """Run a server; what is yielded makes an empty database and returns its SQLAlchemy URL."""
    from psycopg import sql

    # Not below pytest's own folder, which other users cannot enter.
    folder = Path(tempfile.mkdtemp(prefix="medxai-postgres-"))
    try:
        if _USER:
            shutil.chown(folder, _USER)
        make = [_program("initdb"), "-D", str(folder / "data"), "-U", "medxai", "-A", "trust", "--no-sync"]
        subprocess.run(make, check=True, capture_output=True, user=_USER, cwd=folder)
        command = [_program("postgres"), "-D", str(folder / "data"), "-k", str(folder), "-c", "listen_addresses="]
        with (folder / "log").open("wb") as log:
            server = subprocess.Popen(command, stdout=log, stderr=log, user=_USER, cwd=folder)
        try:
            connection = _connect(folder, server)
            connection.autocommit = True
            numbers = itertools.count()

            def database() -> str:
                name = f"test{next(numbers)}"
                connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
                return f"postgresql+psycopg://medxai@/{name}?host={folder}"

            yield database
            connection.close()
        finally:
            server.send_signal(signal.SIGINT)  # does not wait for connections that pools still hold
            server.wait(30)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _connect(folder: Path, server: subprocess.Popen[bytes], seconds: float = 60) -> Any:
    import psycopg

    limit = time.monotonic() + seconds
    while True:
        try:
            return psycopg.connect(host=str(folder), user="medxai", dbname="postgres")
        except psycopg.OperationalError:
            if server.poll() is not None or time.monotonic() > limit:
                pytest.fail(f"PostgreSQL did not start: {(folder / 'log').read_text(errors='replace')[-1000:]}")
            time.sleep(0.1)
