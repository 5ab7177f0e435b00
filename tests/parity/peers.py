"""Other explanation libraries, where they are installed (`make parity`); tests are skipped with a reason elsewhere."""

from __future__ import annotations

import contextlib
import importlib
import os
import re
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

_KEPT: list[Any] = []


def peer(name: str) -> Any:
    """Import a peer, or skip."""
    try:
        _torchvision()
        return importlib.import_module(name)
    except ImportError as error:
        if os.environ.get("MEDXAI_REQUIRE_PEERS"):
            raise
        pytest.skip(f"{error}; run `make parity`")


def _torchvision() -> None:
    """Import torchvision also where its compiled operators do not match this build of torch.

    The peers import it for its Python parts; operators that are missing get a declaration and no kernel.
    """
    for _ in range(40):
        try:
            importlib.import_module("torchvision")
        except RuntimeError as error:
            found = re.search(r"operator torchvision::(\w+) does not exist", str(error))
            if found is None:
                raise
            library = torch.library.Library("torchvision", "FRAGMENT")
            library.define(f"{found[1]}() -> ()")
            _KEPT.append(library)
            for module in [m for m in sys.modules if m.split(".")[0] == "torchvision"]:
                del sys.modules[module]
        else:
            return


def grad_cam_raw(
    name: str,
    network: nn.Module,
    x: torch.Tensor,
    layer: str,
    target: Callable[[torch.Tensor], torch.Tensor],
    **keys: Any,
) -> np.ndarray:
    """Low-resolution map of a method of the grad-cam package before its ReLU and scaling, ``[B, *s]``."""
    package = peer("pytorch_grad_cam")
    cam = getattr(package, name)(network, [network.get_submodule(layer)], **keys)
    seen: list[np.ndarray] = []
    inner = cam.get_cam_image

    def record(*args: Any, **kwargs: Any) -> np.ndarray:
        seen.append(np.asarray(inner(*args, **kwargs)))
        return seen[-1]

    cam.get_cam_image = record
    try:
        # Its own scaling to the input's size is not compared: it places 3D maps half a cell off.
        with contextlib.redirect_stderr(sys.stdout):
            cam(input_tensor=x, targets=[target] * len(x))
    finally:
        cam.activations_and_grads.release()
        network.zero_grad()
        for parameter in network.parameters():
            parameter.grad = None
    return seen[0]


def torchcam_raw(name: str, network: nn.Module, x: torch.Tensor, layer: str, index: int, **keys: Any) -> np.ndarray:
    """Low-resolution map of a method of TorchCAM after its ReLU, not normalised."""
    methods = peer("torchcam.methods")
    with getattr(methods, name)(network, layer, input_shape=tuple(x.shape[1:]), **keys) as extractor:
        scores = network(x)
        maps = extractor(index, scores, normalized=False)
    return maps[0].detach().numpy()


def correlation(a: Any, b: Any) -> float:
    """Pearson correlation of two arrays."""
    return float(np.corrcoef(np.asarray(a).ravel(), np.asarray(b).ravel())[0, 1])
