"""The encoder of Models Genesis with a classifier: short ultrasound clips as volumes.

Zhou et al. 2021 (Medical Image Analysis 67:101840, arXiv:2004.07882); the head for lung ultrasound is that of
Born et al. 2021 (arXiv:2009.06116). Modules of the encoder are named as in the authors' PyTorch code, so that the
encoder of ``Genesis_Chest_CT.pt`` fits. That file is for research only, on request from its authors, and no package
carries it; without it the network starts at random, as a card must say.

The authors' PyTorch code normalises by the statistics of the batch even at inference; here inference uses the
running statistics, as in their Keras code, so that one case does not depend on its neighbours.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import nn

from medxai.errors import BundleError

#: Last ReLU of the encoder: ``[N, 512, T/8, H/8, W/8]``, non-negative.
TARGET_LAYER = "down_tr512.ops.1.activation"
#: Input of the publication in the order of medxai's axes (frames, rows, columns).
INPUT_SHAPE = (32, 64, 64)


class _Convolution(nn.Module):
    """3x3x3 convolution, batch normalisation, ReLU; names of the published state."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv3d(inputs, outputs, kernel_size=3, padding=1)
        self.bn1 = nn.BatchNorm3d(outputs, eps=1e-3, momentum=0.01)
        self.activation = nn.ReLU()
        nn.init.kaiming_normal_(self.conv1.weight, nonlinearity="relu")
        nn.init.zeros_(self.conv1.bias)  # type: ignore[arg-type]

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        normal: torch.Tensor = self.activation(self.bn1(self.conv1(inputs)))
        return normal


class _Down(nn.Module):
    """Two convolutions, the second twice as wide."""

    def __init__(self, inputs: int, width: int) -> None:
        super().__init__()
        self.ops = nn.Sequential(_Convolution(inputs, width), _Convolution(width, 2 * width))

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        features: torch.Tensor = self.ops(inputs)
        return features


class GenesisClassifier(nn.Module):
    """Clip classifier: ``[N, 1, T, H, W]`` in 0..1 (32 x 64 x 64) -> logits ``[N, num_classes]``.

    7,556,163 parameters for 3 classes, 7,559,043 with the running statistics that Keras counts.

    Args:
        num_classes: number of logits.
        hidden: units of the layer before the last.
        dropout: probability before the last layer; 0 in the publication, more allows Monte-Carlo dropout.
    """

    def __init__(self, num_classes: int, hidden: int = 1024, dropout: float = 0.0) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.down_tr64 = _Down(1, 32)
        self.down_tr128 = _Down(64, 64)
        self.down_tr256 = _Down(128, 128)
        self.down_tr512 = _Down(256, 256)
        self.pool = nn.MaxPool3d(2)
        first = nn.Linear(512, hidden)
        self.head = nn.Sequential(nn.AdaptiveAvgPool3d(1), nn.Flatten(), first, nn.ReLU(), nn.Dropout(dropout))
        self.classifier = nn.Linear(hidden, num_classes)
        for layer in (first, self.classifier):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)
        for module in self.modules():
            # Without it, signals die out over eight layers where statistics are not trained.
            if isinstance(module, nn.Conv3d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def encode(self, inputs: torch.Tensor) -> torch.Tensor:
        """Return the features ``[N, 512, T/8, H/8, W/8]`` of the deepest level."""
        # One pooling module would run three times per forward; the target layer behind it still runs once.
        x = self.pool(self.down_tr64(inputs))
        x = self.pool(self.down_tr128(x))
        x = self.pool(self.down_tr256(x))
        features: torch.Tensor = self.down_tr512(x)
        return features

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Return logits ``[N, num_classes]``."""
        logits: torch.Tensor = self.classifier(self.head(self.encode(inputs)))
        return logits


def freeze_encoder(network: GenesisClassifier) -> None:
    """Train the head alone, as published: 528,387 parameters for 3 classes."""
    for name in ("down_tr64", "down_tr128", "down_tr256", "down_tr512"):
        network.get_submodule(name).requires_grad_(False)


def read_genesis(path: Path) -> dict[str, torch.Tensor]:
    """Read a published file of Models Genesis, whose tensors lie under ``state_dict``; tensors only.

    Raises:
        BundleError: absent, or it holds something else.
    """
    try:
        kept = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds for absent and damaged files
        msg = f"{path.name} is no file of weights ({type(error).__name__}); it must hold tensors and nothing else"
        raise BundleError(msg) from error
    state = kept.get("state_dict", kept) if isinstance(kept, dict) else None
    if not isinstance(state, dict):
        msg = f"{path.name} holds no state_dict"
        raise BundleError(msg)
    return state


def load_genesis(network: GenesisClassifier, state: Mapping[str, torch.Tensor]) -> None:
    """Copy the encoder of a published Models Genesis state into `network`; its decoder is left aside.

    The published kernels have the axes (x, y, z) of a CT cube ``[N, 1, x, y, z]``, depth last; here depth (time)
    comes first, so each kernel is turned to (z, x, y). ``module.`` before the names is dropped.

    Args:
        network: filled in place; its head stays as it is.
        state: tensors by name, ``state_dict`` of the published file.

    Raises:
        BundleError: a tensor of the encoder is missing or of another shape.
    """
    own = {name: tensor for name, tensor in network.state_dict().items() if name.startswith("down_tr")}
    given = {}
    for name, tensor in state.items():
        short = name.removeprefix("module.")
        if short in own:
            given[short] = tensor.permute(0, 1, 4, 2, 3) if tensor.ndim == 5 else tensor
    missing = sorted(own.keys() - given.keys())
    wrong = sorted(name for name, tensor in given.items() if tensor.shape != own[name].shape)
    # A counter of batches is no weight, and old files lack it.
    missing = [name for name in missing if not name.endswith("num_batches_tracked")]
    if missing or wrong:
        msg = f"this is no encoder of Models Genesis: missing {missing[:3]}, of another shape {wrong[:3]}"
        raise BundleError(msg)
    network.load_state_dict(given, strict=False)
