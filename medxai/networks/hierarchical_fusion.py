"""Hierarchical fusion of functional and diffusion MRI (HA-HI) for classes such as normal and mild impairment.

After Shen et al. 2024, arXiv:2401.06780: ALFF, static and structural connectivity through one ResNet-10, dynamic
connectivity through a temporal pyramid, 512 numbers each, then interactions between streams of tokens. What differs
from the published code, which does not run, is said in the modules of the parts and in docs/brain_fusion.md.

Published values: ``channels=512, width=512, depth=6, heads=16, head_dim=16, hidden=16, strides=(2, 2, 2)``,
``shared_norms=True``. Two cores train ``channels=64, width=64, depth=2, heads=4``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from medxai.errors import MedxaiError
from medxai.networks.dfc_pyramid import TARGET_LAYER as PYRAMID_LAYER
from medxai.networks.dfc_pyramid import DfcPyramid
from medxai.networks.resnet10_3d import EMBEDDING, PUBLISHED_CHANNELS, STRIDES, ResNet10Encoder3d
from medxai.networks.resnet10_3d import TARGET_LAYER as ENCODER_LAYER
from medxai.networks.token_interactions import TokenInteractions
from medxai.prepare.brain.subject import MODALITIES


class HierarchicalFusion(nn.Module):
    """Classifier of subjects with some of four arrays -> logits ``[B, num_classes]``.

    Inputs by modality: ``alff [B, 1, D, H, W]``, ``dfc [B, 1, N, N, T]``, ``sfc [B, 1, N, N, 1]``,
    ``fa [B, 1, M, M, 1]``. A modality a subject lacks is stood for by a learned embedding; what the array holds in its
    place is never looked at. Whoever reports the result says that it was missing.

    Args:
        num_classes: logits.
        modalities: which the network has, of `MODALITIES`; fewer for an ablation.
        channels: hidden channels of the encoders, a multiple of 8.
        width: features of a token, even.
        depth: blocks of exchange.
        heads: attention heads.
        head_dim: width of a head.
        hidden: of the perceptrons behind an attention.
        strides: of the ResNet's last three layers; smaller ones keep maps of small arrays fine.
        shared_norms: one set of batch statistics for the three modalities of the ResNet, as published. Their mean fits
            none of them in evaluation mode, so that each has its own here.
        dropout: before the classifier.

    Raises:
        ValueError: no modality, or an unknown one.
    """

    def __init__(
        self,
        num_classes: int,
        modalities: Sequence[str] = MODALITIES,
        channels: int = PUBLISHED_CHANNELS,
        width: int = 512,
        depth: int = 6,
        heads: int = 16,
        head_dim: int = 16,
        hidden: int = 16,
        strides: Sequence[int] = STRIDES,
        shared_norms: bool = False,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if not modalities or not set(modalities) <= set(MODALITIES):
            msg = f"modalities {tuple(modalities)} are not some of {MODALITIES}"
            raise ValueError(msg)
        self.modalities = tuple(name for name in MODALITIES if name in modalities)
        volumes = [name for name in self.modalities if name != "dfc"]
        self._domains = {name: 0 if shared_norms else number for number, name in enumerate(volumes)}
        if volumes:
            domains = 1 if shared_norms else len(volumes)
            self.encoder = ResNet10Encoder3d(channels=channels, strides=strides, domains=domains)
        if "dfc" in self.modalities:
            self.pyramid = DfcPyramid(channels)
        self.absent = nn.ParameterDict({name: nn.Parameter(torch.zeros(EMBEDDING)) for name in self.modalities})
        for value in self.absent.values():
            nn.init.normal_(value, std=0.02)
        self.interactions = TokenInteractions(self.modalities, width, depth, heads, head_dim, hidden)
        self.norm = nn.LayerNorm(width)
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.Linear(width, num_classes)

    def forward(self, inputs: Mapping[str, Tensor], present: Tensor | None = None) -> Tensor:
        """Logits ``[B, num_classes]``.

        Args:
            inputs: arrays by modality; a key may be absent for the whole batch.
            present: ``[B, 4]`` bool in the order of `MODALITIES`; all that `inputs` holds if None.

        Raises:
            MedxaiError: a modality is said to be present that `inputs` does not hold, or there is no input at all.
        """
        return self.classify(self.embed(inputs, present))

    def outputs(self, inputs: Mapping[str, Tensor], present: Tensor | None = None) -> tuple[Tensor, dict[str, Tensor]]:
        """Logits and the embeddings of `embed`, for a loss over both; arguments as of `forward`."""
        embeddings = self.embed(inputs, present)
        return self.classify(embeddings), embeddings

    def embed(self, inputs: Mapping[str, Tensor], present: Tensor | None = None) -> dict[str, Tensor]:
        """Embeddings ``[B, 512]`` by modality, the learned one for subjects without it; arguments as of `forward`."""
        known = {name: inputs[name] for name in self.modalities if name in inputs}
        if not known:
            raise MedxaiError(f"the network reads {', '.join(self.modalities)}, and none of them is given")
        first = next(iter(known.values()))
        rows = {name: self._rows(name, name in known, present, len(first), first.device) for name in self.modalities}
        return {name: self._embedding(name, known.get(name), rows[name], len(first)) for name in self.modalities}

    def classify(self, embeddings: Mapping[str, Tensor]) -> Tensor:
        """Logits from embeddings ``[B, 512]`` of every modality of the network."""
        logits: Tensor = self.classifier(self.dropout(self.norm(self.interactions(embeddings))))
        return logits

    def encode(self, name: str, array: Tensor) -> Tensor:
        """Embeddings ``[B, 512]`` of arrays of one modality."""
        if name == "dfc":
            found: Tensor = self.pyramid(array)
        else:
            found = self.encoder(array, self._domains[name])
        return found

    def target_calls(
        self, inputs: Sequence[str] | None = None, encoder: str = ENCODER_LAYER, pyramid: str = PYRAMID_LAYER
    ) -> dict[str, str]:
        """Module call whose activation stands for each modality in a map, as ``layer#call``.

        Args:
            inputs: modalities that are given; the shared encoder is called once for each, in the order of
                `MODALITIES`. All of the network's if None.
            encoder: layer of the ResNet; an earlier one has a finer grid.
            pyramid: layer of the pyramid; ``encoders.0`` has the finest grid, and with it a course.
        """
        given = [name for name in self.modalities if inputs is None or name in inputs]
        volumes = [name for name in given if name != "dfc"]
        return {
            name: f"pyramid.{pyramid}#0" if name == "dfc" else f"encoder.{encoder}#{volumes.index(name)}"
            for name in given
        }

    def _rows(self, name: str, given: bool, present: Tensor | None, batch: int, device: torch.device) -> Tensor:
        """``[B]`` bool, who has the modality."""
        if present is None:
            return torch.full((batch,), given, device=device)
        rows = present[:, MODALITIES.index(name)].to(device=device, dtype=torch.bool)
        if not given and bool(rows.any()):
            raise MedxaiError(f"{name} is said to be present and is not among the inputs")
        return rows

    def _embedding(self, name: str, array: Tensor | None, rows: Tensor, batch: int) -> Tensor:
        learned: Tensor = self.absent[name].expand(batch, -1)
        if array is None or not bool(rows.any()):
            return learned
        if len(array) != batch:
            raise MedxaiError(f"{name} holds {len(array)} subjects where another input holds {batch}")
        if bool(rows.all()):
            return self.encode(name, array)
        # Only who has it is encoded: batch statistics and time are spent on nobody else.
        return learned.to(array).index_copy(0, rows.nonzero()[:, 0], self.encode(name, array[rows]))
