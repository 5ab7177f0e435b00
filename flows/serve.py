"""The batch on a schedule: ``flow.serve`` beside a Prefect server on this machine."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

from flows.environment import configure
from flows.explain_batch import explain_batch
from medxai.cli import log_to_stderr
from medxai.errors import MedxaiError
from medxai.settings import load_settings


def main() -> int:
    """Start a Prefect server on 127.0.0.1 unless PREFECT_API_URL names one, and serve the batch."""
    parser = argparse.ArgumentParser(prog="python -m flows.serve", description=__doc__)
    parser.add_argument("config", type=Path, help="YAML file of settings")
    parser.add_argument("--cron", default="0 1 * * *", help="schedule [%(default)s]")
    parser.add_argument("--port", type=int, default=4200, help="port of the Prefect page [%(default)s]")
    options = parser.parse_args()
    settings = load_settings(options.config)
    configure(settings.output / ".medxai" / "prefect")
    server = None
    if "PREFECT_API_URL" not in os.environ:
        os.environ["PREFECT_API_URL"] = f"http://127.0.0.1:{options.port}/api"
        command = [sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1"]
        server = subprocess.Popen([*command, "--port", str(options.port)])  # noqa: S603 - fixed arguments
        _wait(os.environ["PREFECT_API_URL"] + "/health")
        print(f"Prefect page: http://127.0.0.1:{options.port}", flush=True)
    from prefect import flow
    from prefect.states import Failed

    @flow(name="explain-batch-nightly", log_prints=False)
    def nightly(config: str) -> Any:
        """Run the batch of `config`; returns the number of studies in quarantine."""
        log_to_stderr()
        try:
            return sum(row.state != "done" for row in explain_batch(load_settings(Path(config))))
        except MedxaiError as error:  # may name paths, which do not belong on Prefect's page
            print(f"error: {error}", file=sys.stderr, flush=True)
            return Failed(message=f"the batch failed ({error.code}); this process's log says why")

    try:
        nightly.serve(name="nightly", cron=options.cron, limit=1, parameters={"config": str(options.config.resolve())})
    finally:
        if server is not None:
            server.terminate()
            server.wait(timeout=30)
    return 0


def _wait(url: str, seconds: float = 180) -> None:
    limit = time.monotonic() + seconds
    while True:
        try:
            with urllib.request.urlopen(url, timeout=2):  # noqa: S310 - loopback, scheme fixed above
                return
        except (urllib.error.URLError, OSError):
            if time.monotonic() > limit:
                raise
            time.sleep(0.5)


if __name__ == "__main__":
    sys.exit(main())
