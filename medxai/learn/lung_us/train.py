"""Train the folds of a network, several at once, each in a process of its own; what is finished is not done again."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from medxai.errors import SettingsError
from medxai.files import write_text

Say = Callable[[str], None]
#: ``step(text, done, total)``.
Step = Callable[[str, int, int], None]

NETWORKS = ("efficientnet_lite0", "vgg_cam", "vgg_base", "resnet18", "genesis")
#: The network that becomes the bundle.
SHIPPED = "efficientnet_lite0"
#: The network that reads clips; stills, and so the pictures of other things, have none.
VIDEO = "genesis"
_EPOCH = re.compile(r"epoch (\d+)/(\d+)")


@dataclass(frozen=True)
class Wanted:
    """A run that is asked for.

    Attributes:
        network: one of `NETWORKS`.
        data: folder of the open data sets.
        work: features, checkpoints, results.
        folds: number of folds.
        epochs: passes over the frames; the best is kept.
        rate: peak learning rate.
        copies: versions of every frame, the first unchanged.
        weights: ImageNet weights of VGG-16 or ResNet-18, or Models Genesis.
        random_start: without pretrained weights.
        uninformative: with a fourth output for what is no lung ultrasound.
        leak: deal out frames instead of patients, to show the error.
        bfloat16: train in bfloat16 where PyTorch holds it safe.
    """

    network: str
    data: Path
    work: Path
    folds: int = 5
    epochs: int = 6
    rate: float = 1e-4
    copies: int = 4
    weights: Path | None = None
    random_start: bool = False
    uninformative: bool = True
    leak: bool = False
    bfloat16: bool = False

    def arguments(self, fold: int) -> list[str]:
        """Return the arguments of ``python -m medxai.learn.lung_us.train_fold``."""
        switches = {
            "--random-start": self.random_start,
            "--uninformative": self.uninformative,
            "--leak": self.leak,
            "--bfloat16": self.bfloat16,
        }
        given = [self.network, "--fold", str(fold), "--folds", str(self.folds), "--data", str(self.data)]
        given += ["--work", str(self.work), "--epochs", str(self.epochs), "--rate", str(self.rate)]
        given += ["--copies", str(self.copies), *(["--weights", str(self.weights)] if self.weights else [])]
        return [*given, *(name for name, on in switches.items() if on)]

    def note(self) -> dict[str, str | int | float | bool | None]:
        """Return what decides the run, for `medxai.learn.lung_us.runs.NOTE`."""
        names = ("network", "folds", "epochs", "rate", "copies", "random_start", "uninformative", "leak", "bfloat16")
        return {**{name: getattr(self, name) for name in names}, "weights": self.weights and self.weights.name}


def train_folds(wanted: Wanted, jobs: int, say: Say, step: Step) -> Path:
    """Train all folds and return the folder of the run.

    The first fold computes the features that all share; the others begin when it has them.

    Args:
        wanted: the run.
        jobs: processes at once; the CPU's threads are shared out among them.
        say: told of every epoch.
        step: told how many epochs are done.

    Raises:
        SettingsError: a fold fails; with its last line.
    """
    from medxai.learn.lung_us.runs import NOTE

    begun, stop = threading.Event(), threading.Event()
    running: list[subprocess.Popen[str]] = []
    epochs = dict.fromkeys(range(wanted.folds), 0)
    total = wanted.folds * wanted.epochs
    threads = str(max(1, (os.cpu_count() or 1) // jobs))

    def one(fold: int) -> Path:
        if fold:
            begun.wait()
        if stop.is_set():
            msg = f"fold {fold} was not begun, since another failed"
            raise SettingsError(msg)
        command = [sys.executable, "-m", "medxai.learn.lung_us.train_fold", *wanted.arguments(fold)]
        process = subprocess.Popen(  # noqa: S603 - our own module with checked options
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": threads},
        )
        running.append(process)
        errors: list[str] = []
        listener = threading.Thread(target=lambda: errors.extend(process.stderr or ()), daemon=True)
        listener.start()
        line = ""
        for line in process.stdout or ():
            if found := _EPOCH.search(line):
                begun.set()
                epochs[fold] = int(found.group(1))
                step(f"{wanted.network}: fold {fold}, epoch {found.group(1)}", sum(epochs.values()), total)
            if line.startswith("["):
                say(line.rstrip())
        process.wait()
        listener.join()
        begun.set()
        if process.returncode:
            stop.set()
            last = next((text.strip() for text in reversed(errors) if text.strip()), f"exit code {process.returncode}")
            msg = f"fold {fold} of {wanted.network} failed: {last.partition('Error: ')[2] or last}"
            raise SettingsError(msg)
        epochs[fold] = wanted.epochs
        step(f"{wanted.network}: fold {fold} done", sum(epochs.values()), total)
        return Path(line.strip())

    with ThreadPoolExecutor(max(1, jobs)) as pool:
        waiting = [pool.submit(one, fold) for fold in range(wanted.folds)]
        try:
            results = [future.result() for future in waiting]
        except BaseException:
            stop.set()
            begun.set()
            for process in running:
                process.terminate()
            raise
    run = results[0].parents[1]
    write_text(run / NOTE, json.dumps(wanted.note(), indent=1) + "\n")
    return run
