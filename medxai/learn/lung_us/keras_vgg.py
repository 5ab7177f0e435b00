"""VGG-16's ImageNet weights out of a Keras model: ``python -m medxai.learn.lung_us.keras_vgg MODEL.onnx OUT``.

The publication starts from Keras' weights, which the usual packages download. Whoever has a model that was built on
them, exported to ONNX, has them too. Whether its later layers were trained further only its authors can say; the
first convolution is compared with the published one, so that a trunk that was trained as a whole is noticed.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from medxai.errors import BundleError
from medxai.files import atomic_path
from medxai.networks.vgg_us import VggCam

#: Upper left corner of the first filter for the three colours in Keras' published weights.
_FIRST = (0.42947057, 0.55037946, 0.4800154)


def read_onnx(path: Path) -> dict[str, torch.Tensor]:
    """Return ``features.N.weight`` and ``features.N.bias`` of the thirteen convolutions.

    Args:
        path: of the model; read by OpenVINO, which is in the extra ``prepared``.

    Raises:
        BundleError: not thirteen convolutions of VGG-16, or others than the published first one.
    """
    import openvino

    model = openvino.Core().read_model(str(path))
    convolutions = [op for op in model.get_ordered_ops() if op.get_type_name() == "Convolution"]
    layers = [(i, m) for i, m in enumerate(VggCam(2).features) if isinstance(m, torch.nn.Conv2d)]
    state: dict[str, torch.Tensor] = {}
    for op, (index, layer) in zip(convolutions, layers, strict=False):
        weight = op.input_value(1).get_node()
        added = [t.get_node() for t in op.output(0).get_target_inputs() if t.get_node().get_type_name() == "Add"]
        bias = _constant(added[0].input_value(1).get_node()) if len(added) == 1 else None
        if weight.get_type_name() != "Constant" or bias is None:
            break
        found = np.asarray(weight.get_data(), np.float32), bias
        if found[0].shape != tuple(layer.weight.shape) or found[1].shape != (layer.out_channels,):
            break
        state[f"features.{index}.weight"], state[f"features.{index}.bias"] = map(torch.from_numpy, map(np.copy, found))
    if len(convolutions) != len(layers) or len(state) != 2 * len(layers):
        msg = f"{path.name} is not made of the {len(layers)} convolutions of VGG-16 with their biases"
        raise BundleError(msg)
    if not np.allclose(state["features.0.weight"][0, :, 0, 0], _FIRST, atol=1e-6):
        msg = f"{path.name}: the first convolution is not that of Keras' ImageNet weights"
        raise BundleError(msg)
    return state


def _constant(node: Any) -> npt.NDArray[np.float32] | None:
    """Values ``[N]`` behind reshapes of a constant; None where there is something else."""
    while node.get_type_name() in ("Reshape", "Unsqueeze", "Convert"):
        node = node.input_value(0).get_node()
    return np.asarray(node.get_data(), np.float32).ravel() if node.get_type_name() == "Constant" else None


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the weights for ``--weights`` of the training."""
    from safetensors.torch import save_file

    parser = argparse.ArgumentParser(prog="python -m medxai.learn.lung_us.keras_vgg", description=__doc__)
    parser.add_argument("model", type=Path, help="ONNX file")
    parser.add_argument("out", type=Path, help="safetensors file to write")
    options = parser.parse_args(arguments)
    state = read_onnx(options.model)
    with atomic_path(options.out) as temporary:
        save_file(state, temporary)
    print(f"{options.out}: {sum(tensor.numel() for tensor in state.values()):,} parameters of the trunk")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
