"""A bundle's network from its configuration and weights, without running code that came with it.

The network definition may only name `nn.Module` classes of ``monai.networks`` and ``medxai.networks``;
expressions, references and MONAI's execution modes are refused unless the site allows code. Weights are
safetensors, or a ``.pt`` file that holds tensors and nothing else.
"""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from pydoc import locate
from typing import Any

import torch
from torch import nn

from medxai.errors import BundleError

_ROOTS = ("monai.networks.", "medxai.networks.")
#: Keys with a leading underscore that carry no behaviour.
_HARMLESS_KEYS = frozenset({"_target_", "_desc_"})


def build_network(path: Path, *, allow_code: bool = False) -> nn.Module:
    """Return the network of the bundle at `path` with its weights: eval mode, no gradients for parameters.

    Args:
        path: bundle folder.
        allow_code: hand the definition to MONAI's parser without restrictions.

    Raises:
        BundleError: the definition or the weights are refused or do not fit, in one line.
    """
    name = f"bundle {path.name}"
    try:
        network = _define(path, allow_code=allow_code)
        state = read_weights(path)
        try:
            network.load_state_dict(state)
        except RuntimeError as error:
            line = str(error).replace("\n", " ")
            msg = f"weights do not fit the network definition: {line[:200]}"
            raise BundleError(msg) from error
    except BundleError as error:
        raise error.about(name) from error
    return network.requires_grad_(False).eval()


def read_config(path: Path) -> dict[str, Any]:
    """Read ``configs/inference.json`` of the bundle at `path`.

    Raises:
        BundleError: absent, not JSON, or without ``network_def``.
    """
    file = path / "configs" / "inference.json"
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        msg = "has no configs/inference.json"
        raise BundleError(msg) from error
    except (OSError, ValueError) as error:
        msg = f"configs/inference.json is not readable JSON ({error})"
        raise BundleError(msg) from error
    if not isinstance(config, dict) or not isinstance(config.get("network_def"), dict):
        msg = "configs/inference.json defines no network_def with a _target_"
        raise BundleError(msg)
    return config


def check_definition(definition: Any) -> None:
    """Refuse a network definition that could do more than construct known modules.

    Raises:
        BundleError: naming the first offending value.
    """
    if isinstance(definition, dict):
        for key, value in definition.items():
            if key == "_target_":
                _check_target(value)
            elif str(key).startswith("_") and key not in _HARMLESS_KEYS:
                msg = f"network_def uses {key}, which needs code to be allowed"
                raise BundleError(msg)
            elif key == "pretrained" and value:
                msg = "network_def asks for pretrained weights, which would be downloaded; weights belong in models/"
                raise BundleError(msg)
            check_definition(value)
    elif isinstance(definition, list):
        for value in definition:
            check_definition(value)
    elif isinstance(definition, str) and definition[:1] in {"$", "@", "%"}:
        msg = f"network_def holds the expression {definition[:40]!r}, which needs code to be allowed"
        raise BundleError(msg)


def read_weights(path: Path) -> dict[str, torch.Tensor]:
    """Read ``models/model.safetensors``, or else ``models/model.pt`` with tensors alone.

    Raises:
        BundleError: no weights, damaged, or a pickle that holds more than tensors.
    """
    safe, pickled = path / "models" / "model.safetensors", path / "models" / "model.pt"
    if safe.is_file():
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            return load_file(safe)
        except (SafetensorError, OSError, ValueError) as error:
            msg = f"models/{safe.name} is damaged ({error})"
            raise BundleError(msg) from error
    if not pickled.is_file():
        msg = "has neither models/model.safetensors nor models/model.pt"
        raise BundleError(msg)
    try:
        state = torch.load(pickled, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        msg = f"models/{pickled.name} holds code besides tensors and is refused; save its state_dict as safetensors"
        raise BundleError(msg) from error
    except (OSError, RuntimeError, EOFError, ValueError) as error:
        msg = f"models/{pickled.name} is damaged or not a PyTorch file"
        raise BundleError(msg) from error
    for key in ("state_dict", "model", "network"):
        if isinstance(state, dict) and isinstance(state.get(key), dict):
            state = state[key]
    if not isinstance(state, dict) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        msg = f"models/{pickled.name} is not a state_dict"
        raise BundleError(msg)
    return state


def _define(path: Path, *, allow_code: bool) -> nn.Module:
    from monai.bundle import ConfigParser

    config = read_config(path)
    if not allow_code:
        check_definition(config["network_def"])
        config = {"network_def": config["network_def"]}
    parser = ConfigParser(config)
    try:
        network = parser.get_parsed_content("network_def", instantiate=True)
    except Exception as error:
        line = " ".join(str(error.__cause__ or error).split())
        msg = f"network_def cannot be built: {line[:200]}"
        raise BundleError(msg) from error
    if not isinstance(network, nn.Module):
        msg = f"network_def gives {type(network).__name__}, not a network"
        raise BundleError(msg)
    return network


def _check_target(target: Any) -> None:
    """Accept only a class that lives in the allowed packages: a prefix alone reaches what they import."""
    if not isinstance(target, str) or not target.startswith(_ROOTS):
        msg = f"network_def targets {target!r}; allowed are classes of {' and '.join(r + '*' for r in _ROOTS)}"
        raise BundleError(msg)
    found = locate(target)
    if not isinstance(found, type) or not issubclass(found, nn.Module) or not found.__module__.startswith(_ROOTS):
        msg = f"network_def targets {target!r}, which is not a network class of the allowed packages"
        raise BundleError(msg)
