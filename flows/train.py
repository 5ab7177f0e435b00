"""Training of the chest CT bundle as a Prefect flow: a task a stage, each resumed from its last epoch when killed."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from flows.console import answered, say
from flows.environment import configure
from medxai.errors import SettingsError
from medxai.learn.chest_ct import bundle
from medxai.learn.chest_ct.slabs import read_patients
from medxai.learn.train import check_and_allow
from medxai.networks.covidnet3d import Architecture


def train_flow(data: Path, work: Path, out: Path, architecture: Path | None = None) -> Path:
    """Pretrain, leave each patient out, train on all, write and check the bundle.

    Args:
        data: folder with ``ct_chest_nifti``.
        work: checkpoints; also holds Prefect's database unless the site has another.
        out: folder that receives the bundle.
        architecture: JSON of a search; None for the network that is shipped.

    Returns:
        Path of the bundle.

    Raises:
        MedxaiError: data are absent, or the written bundle has problems.
    """
    configure(work / ".medxai" / "prefect")
    from prefect import flow, task
    from prefect.cache_policies import NO_CACHE

    chosen = bundle.candidates()[bundle.CHOSEN] if architecture is None else Architecture.read(architecture)
    folder = bundle.folder(chosen, work)
    patients = read_patients(data)
    again = {"persist_result": False, "cache_policy": NO_CACHE}

    # Networks stay out of Prefect's results: each stage finds the one before in its checkpoint.
    @task(name="pretrain", **again)  # type: ignore[call-overload, untyped-decorator]
    def pretrain() -> None:
        bundle.pretrain(chosen, folder, say)

    @task(name="leave-one-out", **again)  # type: ignore[call-overload, untyped-decorator]
    def leave_one_out() -> None:
        bundle.out_of_fold(bundle.pretrain(chosen, folder, say), patients, folder, say)

    @task(name="store", **again)  # type: ignore[call-overload, untyped-decorator]
    def store() -> str:
        before = bundle.pretrain(chosen, folder, say)
        return str(bundle.store(before, patients, folder / "out_of_fold.csv", folder, out, say))

    @flow(name="train-chest-ct", log_prints=False)
    def whole() -> str:
        """All stages in order."""
        pretrain()
        leave_one_out()
        return str(store())

    path = Path(whole())
    if problems := check_and_allow(path, out):
        raise SettingsError("; ".join(problems), study=path.name)
    return path


def main(arguments: list[str] | None = None) -> int:
    """Command line: ``python -m flows.train --data DIR --out DIR``."""
    parser = argparse.ArgumentParser(prog="python -m flows.train", description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder of the open data sets")
    parser.add_argument("--out", type=Path, required=True, help="folder that receives the bundle and allow.json")
    parser.add_argument("--work", type=Path, default=Path(".training"), help="checkpoints [%(default)s]")
    parser.add_argument("--architecture", type=Path, help="JSON of a search [the shipped one]")
    options = parser.parse_args(arguments)

    def work() -> int:
        print(train_flow(options.data, options.work, options.out, options.architecture))
        return 0

    return answered(work)


if __name__ == "__main__":
    sys.exit(main())
