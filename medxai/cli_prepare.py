"""``medxai bundle prepare``: compile a bundle, show what that gains and costs, and let the site allow it."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import typer


def prepare_bundle(
    name: str,
    precision: str,
    progress: Callable[[], AbstractContextManager[Callable[[str, int, int], None]]],
    *,
    batch: int,
    samples: Sequence[Path],
    folder: Path | None,
    allow: Path | None,
) -> None:
    """Prepare a bundle and print the measurements.

    Args:
        name: of a shipped bundle, or a folder.
        precision: ``float32`` or ``bfloat16``.
        progress: bar that is shown meanwhile.
        batch: windows that are run at once.
        samples: studies on which the maps are compared; noise when there are none.
        folder: where to store it, or None for `prepared_folder`.
        allow: allow-list that is read for the bundle and extended, or None to print the line to add.

    Raises:
        MedxaiError: OpenVINO is missing, or the bundle cannot be prepared faithfully.
    """
    import torch

    from medxai.explain.preparing import prepare
    from medxai.explain.target_layer import find_target_layer
    from medxai.predict.arithmetic import parse_precision
    from medxai.predict.bundle import AllowList, load_bundle
    from medxai.predict.openvino_engine import openvino
    from medxai.predict.prepared import allowed_name, prepared_folder
    from medxai.predict.samples import bundle_samples
    from medxai.session import quiet_libraries

    quiet_libraries()
    wanted = parse_precision(precision)
    openvino()  # missing is said before anything is read
    trusted = AllowList.shipped()
    if allow is not None and allow.exists():
        trusted = trusted.joined(AllowList.read(allow))
    bundle = load_bundle(name, trusted)
    network = bundle.network()
    given = torch.from_numpy(bundle_samples(bundle, list(samples))) if samples else None
    preparation = bundle.spec.preparation
    noise = torch.randn(1, preparation.channels, *preparation.window, generator=torch.Generator().manual_seed(0))
    example = noise if given is None else given[:1]
    target = folder or prepared_folder(bundle, wanted)
    with progress() as step:
        prepared = prepare(
            network,
            example,
            bundle.spec.target_layer or find_target_layer(network, example),
            target,
            precision=wanted,
            batch=batch,
            samples=given,
            name=bundle.name,
            sha256=bundle.sha256,
            say=step,
        )
    print_prepared(prepared.describe(), on_noise=given is None)
    typer.echo(f"stored in {target}")
    if allow is None:
        typer.echo(f'to use it, add to the allow-list: "{allowed_name(bundle.name)}": ["{prepared.sha256}"]')
    else:
        AllowList.add(allow, allowed_name(bundle.name), prepared.sha256)
        typer.echo(f"allowed in {allow}")


def print_prepared(described: dict[str, Any], *, on_noise: bool) -> None:
    """Print what a preparation measured: seconds of both ways, and how much the results differ."""
    from rich.console import Console
    from rich.table import Table

    measured = described["measured"]
    table = Table(title=f"{described['name']}, {described['precision']}, layer {described['layer']}")
    for column in ("", "network", "prepared", "ratio"):
        table.add_column(column)
    for label, key in (("one Grad-CAM", "map"), (f"{described['batch']} windows, logits", "batch")):
        network, prepared = measured[f"{key}_seconds_network"], measured[f"{key}_seconds_prepared"]
        table.add_row(label, f"{network:.4f} s", f"{prepared:.4f} s", f"{prepared / network:.2f}")
    Console(width=None if sys.stdout.isatty() else 160).print(table)
    if "float32_share" in measured:
        typer.echo(f"the first layers ({measured['float32_share']:.0%} of the work up to the layer) stay in float32")
    inputs = "noise" if on_noise else f"{measured['inputs']:.0f} windows"
    typer.echo(
        f"on {inputs}: correlation of maps {measured['map_correlation']:.6f}, relative error of maps "
        f"{measured['map_error']:.1e}, of logits {measured['logit_error']:.1e}"
    )
