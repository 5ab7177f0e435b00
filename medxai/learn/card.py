"""Metadata and model card of a trained bundle, from the numbers that were measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from medxai.learn.metrics import Interval
from medxai.predict.bundle_spec import MedxaiBlock, Metadata, NetworkDataFormat, TensorFormat
from medxai.prepare.spec import AffineIntensity, WindowIntensity

INTENDED_USE = (
    "Research and testing of explanation methods only. Not a medical device; not for diagnosis, triage or "
    "treatment decisions."
)


@dataclass(frozen=True)
class Card:
    """What a model card says.

    Attributes:
        name: bundle name.
        version: bundle version.
        summary: one sentence: what it decides on what.
        data: what it was trained on: number, source, licence.
        split: how training and evaluation were kept apart.
        training: architecture and recipe.
        results: metric -> value with interval, or a plain sentence.
        evaluation: what the results were measured on.
        limits: what the model cannot do, one sentence each.
        reproduce: command.
        licence: SPDX name and why.
        references: citations.
    """

    name: str
    version: str
    summary: str
    data: str
    split: str
    training: str
    results: Mapping[str, Interval | str]
    evaluation: str
    limits: Sequence[str]
    reproduce: str
    licence: str
    references: tuple[str, ...] = ()

    def markdown(self, spec: MedxaiBlock) -> str:
        """Return the card for ``docs/README.md``."""
        size = " x ".join(str(n) for n in spec.preparation.window)
        spacing = spec.preparation.spacing_mm
        scaled = "the central square, scaled" if spec.preparation.fit == "crop" else "scaled to fit, aspect kept"
        place = f"{' x '.join(f'{v:g}' for v in spacing)} mm voxels" if spacing else scaled
        lines = [
            f"# {self.name} {self.version}",
            "",
            self.summary,
            "",
            f"**Intended use.** {INTENDED_USE}",
            "",
            "| | |",
            "|---|---|",
            f"| labels | {', '.join(spec.labels)}; abnormal: {', '.join(spec.positive) or 'none'} |",
            f"| input | {size} voxels ({spec.preparation.axes}), {spec.preparation.channels} channel(s), {place}"
            f"{'; the lungs alone' if spec.preparation.region == 'lungs' else ''} |",
            f"| modality, body part | {', '.join(spec.modalities)}; {', '.join(spec.body_parts)} |",
            f"| layer to explain | `{spec.target_layer}` |",
            f"| fusion of windows | {spec.fusion}{f', temperature {spec.temperature:g}' * (spec.fusion != 'mean')} |",
            f"| licence of the weights | {self.licence} |",
            "",
            "## Data",
            self.data,
            "",
            "## Split",
            self.split,
            "",
            "## Training",
            self.training,
            "",
            "## Results",
            self.evaluation,
            "",
            "| measure | value (95 % interval) | n |",
            "|---|---|---|",
            *(_row(name, value) for name, value in self.results.items()),
            "",
            "## Limits",
            *(f"- {limit}" for limit in self.limits),
            "",
            "## Reproduce",
            "```",
            self.reproduce,
            "```",
            "Seeds are fixed in the recipe; results repeat on the same machine and library versions.",
            "",
        ]
        if self.references:
            lines += ["## References", *(f"- {reference}" for reference in self.references), ""]
        return "\n".join(lines)

    def metadata(self, spec: MedxaiBlock, *, task: str) -> Metadata:
        """Return the content of ``metadata.json``."""
        from importlib.metadata import version

        metrics: dict[str, Any] = {
            name: value.as_dict() if isinstance(value, Interval) else value for name, value in self.results.items()
        }
        return Metadata(
            version=self.version,
            monai_version=version("monai"),
            pytorch_version=version("torch").partition("+")[0],
            task=task,
            description=self.summary,
            authors="The medxai authors",
            copyright="The medxai authors; data: see docs/README.md",
            data_source=self.data,
            network_data_format=data_format(spec),
            eval_metrics=metrics,
            intended_use=INTENDED_USE,
            references=self.references,
            medxai=spec,
        )


def data_format(spec: MedxaiBlock) -> NetworkDataFormat:
    """Return MONAI's ``network_data_format`` for a classifier with our block."""
    preparation = spec.preparation
    limits: tuple[float, ...] = ()
    if isinstance(preparation.intensity, WindowIntensity):
        limits = (0.0, 1.0)
    elif isinstance(preparation.intensity, AffineIntensity):
        mean, std = preparation.intensity.mean[0], preparation.intensity.std[0]
        limits = (-mean / std, (255 - mean) / std)
    single = spec.activation == "sigmoid" and len(spec.labels) == 2
    named = spec.labels[1:] if single else spec.labels
    image = TensorFormat(
        type="image",
        format="hounsfield" if "CT" in spec.modalities else "magnitude",
        modality=spec.modalities[0],
        num_channels=preparation.channels,
        spatial_shape=preparation.window,
        dtype="float32",
        value_range=limits,
        is_patch_data=preparation.spacing_mm is not None,
        channel_def={str(i): "image" for i in range(preparation.channels)},
    )
    pred = TensorFormat(
        type="probabilities",
        format="classes",
        num_channels=len(named),
        spatial_shape=(),
        dtype="float32",
        value_range=(0.0, 1.0),
        channel_def={str(i): label for i, label in enumerate(named)},
    )
    return NetworkDataFormat(inputs={"image": image}, outputs={"pred": pred})


def _row(name: str, value: Interval | str) -> str:
    if isinstance(value, Interval):
        return f"| {name} | {value} | {value.n} in {value.groups} groups |"
    return f"| {name} | {value} | |"
