"""Nuclei of many slides as a Prefect flow: a task for every slide, done once, resumed when killed."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

from flows.console import answered
from flows.environment import configure
from medxai.errors import MedxaiError
from medxai.nuclei_run import NucleiDone, NucleiOptions, found_slides, open_model, run_nuclei
from medxai.study import SourceFiles


def nuclei_batch(
    paths: Sequence[Path], out: Path, bundle: str, options: NucleiOptions, allow: Path | None = None
) -> dict[str, NucleiDone | MedxaiError]:
    """Find the nuclei of every slide below some paths; one that fails costs itself.

    Args:
        paths: files and folders, searched recursively.
        out: folder of the results; it also holds Prefect's database unless the site has another.
        bundle: of nuclei.
        options: what is asked of each slide.
        allow: JSON file with hashes of further bundles.

    Returns:
        What was found by the key of the slide, or why nothing was.

    Raises:
        MedxaiError: the bundle cannot be used, or nothing is there.
    """
    configure(out / ".medxai" / "prefect")
    from prefect import flow, task
    from prefect.cache_policies import NO_CACHE
    from prefect.states import Failed

    model = open_model(bundle, allow)

    # What is done is known from the slide's folder, so that the command line and the flow resume each other.
    @task(name="nuclei", task_run_name="nuclei-{source.key}", persist_result=False, cache_policy=NO_CACHE)
    def one(source: SourceFiles) -> Any:
        """Find the nuclei of one slide; a failure is a state with one line, without a traceback of header values."""
        try:
            return run_nuclei(source, model, options, out)
        except MedxaiError as error:
            found = error.about(source.key)
        except Exception as error:
            found = MedxaiError(f"unexpected {type(error).__name__}; see --verbose of the command", study=source.key)
        return Failed(message=str(found), data=found)

    @flow(name="nuclei-batch", log_prints=False)
    def whole() -> dict[str, NucleiDone | MedxaiError]:
        """All slides in the order of their keys."""
        found: dict[str, NucleiDone | MedxaiError] = {}
        with found_slides(paths) as discovery:
            for rejected in discovery.rejected:
                found[rejected.key] = _said(rejected.error.about(rejected.key))
            for source in discovery.sources:
                state = one(source, return_state=True)
                found[source.key] = _said(cast(NucleiDone | MedxaiError, state.result(raise_on_failure=False)))
        return found

    return whole()


def _said(result: NucleiDone | MedxaiError) -> NucleiDone | MedxaiError:
    """The same, after it was told in one line."""
    if isinstance(result, NucleiDone):
        print(result.line, flush=True)
    else:
        print(f"error: {result}", file=sys.stderr, flush=True)
    return result


def main(arguments: list[str] | None = None) -> int:
    """Command line: ``python -m flows.nuclei_batch SLIDES... -o OUT``; exit code 2 when a slide failed."""
    parser = argparse.ArgumentParser(prog="python -m flows.nuclei_batch", description=__doc__)
    parser.add_argument("slides", type=Path, nargs="+", help="files and folders, searched recursively")
    parser.add_argument("-o", "--out", type=Path, required=True, help="folder of the results")
    parser.add_argument("-b", "--bundle", default="nuclei", help="name of a nuclei bundle, or its folder")
    parser.add_argument("--mpp", type=float, help="micrometres per pixel of files that do not state them")
    parser.add_argument("--most", type=int, help="tiles of a slide that are looked at, spread over its tissue")
    parser.add_argument("--allow", type=Path, help="JSON file with hashes of further bundles")
    given = parser.parse_args(arguments)

    def work() -> int:
        from medxai.session import quiet_libraries

        quiet_libraries()
        asked = NucleiOptions(mpp=given.mpp, most=given.most)
        found = nuclei_batch(given.slides, given.out, given.bundle, asked, given.allow)
        return 2 if any(not isinstance(result, NucleiDone) for result in found.values()) else 0

    return answered(work)


if __name__ == "__main__":
    sys.exit(main())
