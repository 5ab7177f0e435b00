"""medxai behind the plug-in point of the peers' benchmark: ``explain(model, x, target_layer, class_idx, method)``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

NAMES = {"gradcam": "gradcam", "gradcam++": "gradcampp", "layercam": "layercam", "eigencam": "eigencam",
         "scorecam": "scorecam", "occlusion": "occlusion"}  # fmt: skip
STORE = Path(".training/prepared_peers")
_PREPARED: dict[int, Any] = {}


def explain(model: Any, x: Any, target_layer: str, class_idx: int, method: str, prepared: Any = None) -> Any:
    """One map on the input's grid, ``[B, *S]``."""
    from medxai.explain import explain as run

    if method not in NAMES:
        raise NotImplementedError
    options: dict[str, Any] = {}
    if method == "occlusion":  # the windows of all engines: side by side, filled with zero
        size = sys.modules["__main__"].OCC
        options = {"occlusion": {"window": size, "stride": size}}
    result = run(
        model,
        x,
        methods=NAMES[method],
        classes=class_idx,
        layers=target_layer,
        options=options or None,
        prepared=prepared,
    )[0]
    return (result.raw if method == "occlusion" else result.map).numpy()


def explain_prepared(model: Any, x: Any, target_layer: str, class_idx: int, method: str) -> Any:
    """The same through the prepared network; preparing is not timed, as it is stored beside the weights."""
    if id(model) not in _PREPARED:
        _PREPARED.clear()
        _PREPARED[id(model)] = _prepared(model, x[:1], target_layer)
    return explain(model, x, target_layer, class_idx, method, _PREPARED[id(model)])


def _prepared(model: Any, x: Any, target_layer: str) -> Any:
    from medxai.explain.preparing import prepare
    from medxai.identity import sha256_file
    from medxai.predict.bundle import AllowList
    from medxai.predict.prepared import MANIFEST, allowed_name, load_prepared, network_sha256

    digest = network_sha256(model)
    folder = STORE / f"{digest[:12]}-{target_layer}"
    if (folder / MANIFEST).exists():
        allow = AllowList({allowed_name("network"): (sha256_file(folder / MANIFEST),)})
        found = load_prepared(folder, allow, name="network", sha256=digest)
        if found is not None:
            return found
    return prepare(model, x, target_layer, folder, batch=8 if x.ndim == 5 else 16)
