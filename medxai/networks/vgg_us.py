"""VGG-16 with the two heads of the lung ultrasound publication, and its ImageNet weights from a local file.

Born et al. 2021 (Applied Sciences 11(2):672, arXiv:2009.06116) on VGG-16 (Simonyan and Zisserman 2015,
arXiv:1409.1556, configuration D). The trunk has the module names of torchvision, so that its published state fits.

`VggCam` averages the whole 7x7 grid: its class activation map is exact. `VggBase` reads only the first four rows
and columns of that grid, because pooling 4x4 with stride 4 without padding leaves the last three out: evidence in
the lower right of the picture counts as far as its receptive field reaches, which a map should not hide.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import nn

from medxai.errors import BundleError
from medxai.identity import sha256_file

#: Output widths of the 3x3 convolutions per block; a 2x2 maximum follows each block.
_BLOCKS = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))

#: ``block5_pool``: ``[N, 512, H/32, W/32]``, non-negative; what the heads read. CAM of `VggCam` is exact here.
TARGET_LAYER = "features.30"
#: ``block5_conv3`` after its ReLU: ``[N, 512, H/16, W/16]``, the finer grid on which the publication shows its maps.
FINE_LAYER = "features.29"
#: Index of ``block5_conv3``: what comes before keeps its ImageNet weights in the publication.
LAST_CONVOLUTION = 28
#: File that torchvision publishes; the digits are the start of its SHA-256.
IMAGENET_FILE = "vgg16-397923af.pth"


class _Vgg16(nn.Module):
    """Trunk ``features``: ``[N, 3, H, W]`` -> ``[N, 512, H/32, W/32]``; 14,714,688 parameters."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.num_classes = num_classes
        layers: list[nn.Module] = []
        width = 3
        for block in _BLOCKS:
            for wider in block:
                layers += [nn.Conv2d(width, wider, kernel_size=3, padding=1), nn.ReLU()]
                width = wider
            layers.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*layers)
        for module in self.features:
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
                nn.init.zeros_(module.bias)  # type: ignore[arg-type]


class VggCam(_Vgg16):
    """``vgg_cam``: trunk, mean over all positions, dropout, one linear layer; 14,716,227 parameters for 3 classes.

    Maps ``[N, 3, H, W]`` in 0..1 (224 in the publication, any multiple of 32) to logits ``[N, num_classes]``.

    Args:
        num_classes: number of logits.
        dropout: probability before the linear layer.
    """

    def __init__(self, num_classes: int, dropout: float = 0.5) -> None:
        super().__init__(num_classes)
        self.head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(dropout))
        self.classifier = _linear(512, num_classes)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Return logits ``[N, num_classes]``."""
        logits: torch.Tensor = self.classifier(self.head(self.features(inputs)))
        return logits


class VggBase(_Vgg16):
    """``vgg_base``: trunk, 4x4 means, 64 hidden units with batch normalisation; 14,747,843 parameters for 3 classes.

    Maps ``[N, 3, 224, 224]`` in 0..1 to logits ``[N, num_classes]``. Batch normalisation has Keras' constants
    (eps 0.001, PyTorch momentum 0.01).

    Args:
        num_classes: number of logits.
        dropout: probability before the last layer.
    """

    def __init__(self, num_classes: int, dropout: float = 0.5) -> None:
        super().__init__(num_classes)
        self.head, self.classifier = published_head(512, num_classes, dropout)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Return logits ``[N, num_classes]``."""
        logits: torch.Tensor = self.classifier(self.head(self.features(inputs)))
        return logits


def published_head(channels: int, num_classes: int, dropout: float = 0.5) -> tuple[nn.Sequential, nn.Linear]:
    """Return the head of ``vgg_base`` in two parts: a grid ``[N, channels, 7, 7]`` -> 64 values -> logits."""
    head = nn.Sequential(
        nn.AvgPool2d(4, stride=4),
        nn.Flatten(),
        _linear(channels, 64),
        nn.BatchNorm1d(64, eps=1e-3, momentum=0.01),
        nn.ReLU(),
        nn.Dropout(dropout),
    )
    return head, _linear(64, num_classes)


def freeze_trunk(network: VggCam | VggBase, open_convolutions: int = 1) -> None:
    """Keep all of the trunk but its last `open_convolutions` as it is; heads always train.

    With 1, as published: 2,392,963 trainable parameters for `VggBase`, 2,361,347 for `VggCam` (3 classes).
    """
    convolutions = [module for module in network.features if isinstance(module, nn.Conv2d)]
    for number, module in enumerate(convolutions):
        module.requires_grad_(number >= len(convolutions) - open_convolutions)


def imagenet_state(
    path: Path | None = None, published: str = IMAGENET_FILE, network: str = "VGG-16"
) -> dict[str, torch.Tensor]:
    """Read torchvision's ImageNet weights from a file; nothing is downloaded.

    Args:
        path: the file (``.pth`` with tensors only, or ``.safetensors``). None looks for `published` in torch's own
            cache, where torchvision puts it.
        published: name that torchvision gives the file.
        network: what it is for, in messages.

    Raises:
        BundleError: no such file, not readable, or its bytes are not those that its name promises.
    """
    file = path or Path(torch.hub.get_dir()) / "checkpoints" / published
    if not file.is_file():
        msg = (
            f"ImageNet weights of {network} are not there: no Python package carries them; put torchvision's "
            f"{published} into torch's cache (checkpoints below TORCH_HOME/hub) or pass its path, "
            "or train from a random start and say so in the card"
        )
        raise BundleError(msg)
    promised = re.search(r"-([0-9a-f]{8,64})$", file.stem)
    if promised and not sha256_file(file).startswith(promised.group(1)):
        msg = f"{file.name} is damaged: its SHA-256 does not start with {promised.group(1)}; fetch it again"
        raise BundleError(msg)
    try:
        if file.suffix == ".safetensors":
            from safetensors.torch import load_file

            kept: dict[str, torch.Tensor] = load_file(file)
        else:
            kept = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # torch and safetensors raise many kinds for damaged files
        msg = f"{file.name} is no file of weights ({type(error).__name__}); it must hold tensors and nothing else"
        raise BundleError(msg) from error
    return kept


def load_imagenet(network: VggCam | VggBase, state: Mapping[str, torch.Tensor]) -> None:
    """Copy the trunk's published weights into `network`; the published classifier is left aside.

    Raises:
        BundleError: a tensor of the trunk is missing, left over, or of another shape.
    """
    own = network.features.state_dict()
    given = {name.removeprefix("features."): t for name, t in state.items() if name.startswith("features.")}
    wrong = sorted(name for name in given if name not in own or own[name].shape != given[name].shape)
    missing = sorted(own.keys() - given.keys())
    if wrong or missing:
        msg = f"ImageNet weights do not fit VGG-16: unusable {wrong[:3]}, missing {missing[:3]}"
        raise BundleError(msg)
    network.features.load_state_dict(given)


def _linear(inputs: int, outputs: int) -> nn.Linear:
    """Return a linear layer that starts as Keras' does: Glorot uniform, no bias."""
    layer = nn.Linear(inputs, outputs)
    nn.init.xavier_uniform_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer
