"""Bundles of fusion networks: what they read is a subject's features, not an image.

A MONAI Bundle like the others, with a block ``medxai_fusion`` in place of ``medxai`` and more files: ``scaling``, mean
and deviation of the training subjects, ``baseline``, the mean embedding of those of the first class, which stands for
not seeing a modality, and ``reference``, the mean of their inputs, which maps are inserted into.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from medxai.errors import BundleError, MismatchError
from medxai.predict.bundle import AllowList, bundle_sha256, locate_bundle
from medxai.predict.bundle_kind import read_block
from medxai.prepare.brain.scaling import Scaling
from medxai.prepare.brain.subject import SubjectFeatures
from medxai.strict import Strict

if TYPE_CHECKING:
    import torch

    from medxai.networks.hierarchical_fusion import HierarchicalFusion

#: Of the metadata.
BLOCK = "medxai_fusion"


class FusionBlock(Strict):
    """What inference and explanation need.

    Attributes:
        labels: class names in the order of the logits.
        positive: the class that is explained.
        regions: names of the regions of functional connectivity, in order.
        networks: of each of them, "" for none.
        fa_regions: regions of structural connectivity.
        encoder: layer of the ResNet whose channels mark the inputs.
        pyramid: layer of the pyramid.
        marker: see `medxai.explain.synergistic.SynergisticOptions`.
        gamma: likewise.
        weights: likewise.
        licence: SPDX name.
        caution: what whoever reads a result must know of the training.
    """

    labels: Annotated[tuple[str, ...], Field(min_length=2)]
    positive: str
    regions: tuple[str, ...] = ()
    networks: tuple[str, ...] = ()
    fa_regions: tuple[str, ...] = ()
    encoder: str = "layer4"
    pyramid: str = "encoders.4"
    marker: Literal["relative", "absolute", "mask", "insert"] = "relative"
    gamma: Annotated[float, Field(gt=0)] = 1.0
    weights: Literal["joint", "single"] = "joint"
    licence: Annotated[str, Field(min_length=1)]
    caution: Annotated[str, Field(min_length=1)]


@dataclass(frozen=True, eq=False)
class FusionBundle:
    """A checked bundle on disk; what was read once stays in memory.

    Attributes:
        name: folder name.
        version: of the metadata.
        path: folder.
        sha256: of configs and models, see `medxai.predict.bundle.bundle_sha256`.
        spec: labels, regions, kind of map.
    """

    name: str
    version: str
    path: Path
    sha256: str
    spec: FusionBlock

    @property
    def labels(self) -> tuple[str, ...]:
        """Class names."""
        return self.spec.labels

    @property
    def positive(self) -> int:
        """Index of the class that is explained."""
        return self.spec.labels.index(self.spec.positive)

    @property
    def layers(self) -> dict[str, str]:
        """Keyword arguments of `HierarchicalFusion.target_calls`."""
        return {"encoder": self.spec.encoder, "pyramid": self.spec.pyramid}

    @property
    def marking(self) -> dict[str, Any]:
        """Keyword arguments of `medxai.explain.synergistic.SynergisticOptions`."""
        return self.spec.model_dump(include={"marker", "gamma", "weights"})

    def network(self) -> HierarchicalFusion:
        """The network with its weights, in eval mode, parameters not requiring gradients.

        Raises:
            BundleError: the definition or the weights are refused or do not fit.
        """
        return self._network

    def scaling(self) -> Scaling:
        """Mean and deviation of the training subjects."""
        return self._scaling

    def baseline(self) -> dict[str, torch.Tensor]:
        """``[1, 512]`` by modality: the mean embedding of the training subjects of the first class."""
        return self._baseline

    def reference(self) -> dict[str, torch.Tensor]:
        """``[1, 1, ...]`` by modality: the mean input of the training subjects of the first class."""
        return self._reference

    def check(self, subject: SubjectFeatures) -> None:
        """Refuse regions of another atlas than the bundle's.

        Raises:
            MismatchError: their numbers, or the first region that differs.
        """
        spec = self.spec
        pairs = (("sfc and dfc", subject.regions, spec.regions), ("fa", subject.fa_regions, spec.fa_regions))
        for what, has, wants in pairs:
            if not wants or not has or has == wants:
                continue
            if len(has) != len(wants):
                words = f"{what}: the features have {len(has)} regions and the bundle {self.name} {len(wants)}"
            else:
                first = next(n for n, (a, b) in enumerate(zip(has, wants, strict=True)) if a != b)
                words = f"{what}: region {first + 1} of {len(has)} is {has[first]}, in the bundle {self.name} it is "
                words += wants[first]
            raise MismatchError(f"{words}; compute the features with the bundle's atlas", study=subject.subject)

    @cached_property
    def _network(self) -> HierarchicalFusion:
        from medxai.networks.hierarchical_fusion import HierarchicalFusion
        from medxai.predict.build import build_network

        network = build_network(self.path)
        if not isinstance(network, HierarchicalFusion):
            msg = f"bundle {self.name}: network_def is a {type(network).__name__}, not a HierarchicalFusion"
            raise BundleError(msg)
        return network

    @cached_property
    def _scaling(self) -> Scaling:
        return Scaling.read(self.path / "models" / "scaling.safetensors")

    @cached_property
    def _baseline(self) -> dict[str, torch.Tensor]:
        return self._tensors("baseline")

    @cached_property
    def _reference(self) -> dict[str, torch.Tensor]:
        return self._tensors("reference")

    def _tensors(self, part: str) -> dict[str, torch.Tensor]:
        from safetensors.torch import load_file

        return load_file(self.path / "models" / f"{part}.safetensors")


def load_fusion(name_or_path: str | Path, allow: AllowList | None = None) -> FusionBundle:
    """Find a fusion bundle, check its block and its hash.

    Args:
        name_or_path: name of a shipped bundle, or a folder.
        allow: trusted hashes; None for those of the shipped bundles.

    Raises:
        BundleError: not found, of another kind, malformed, or not on the allow-list.
    """
    path = locate_bundle(name_or_path)
    spec, content = read_block(path, BLOCK, FusionBlock, "is not one of brain features")
    if spec.positive not in spec.labels:
        msg = f"bundle {path.name}: positive names {spec.positive!r}, which is not among the labels"
        raise BundleError(msg)
    for part in ("scaling", "baseline", "reference"):
        if not (path / "models" / f"{part}.safetensors").is_file():
            msg = f"bundle {path.name} has no models/{part}.safetensors"
            raise BundleError(msg)
    sha256 = bundle_sha256(path)
    (AllowList.shipped() if allow is None else allow).check(path.name, sha256)
    return FusionBundle(path.name, str(content.get("version", "")), path, sha256, spec)
