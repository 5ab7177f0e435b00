"""What one process shares between studies: settings, model, worklist; and the hash of what decides outputs."""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from medxai import __version__
from medxai.errors import MedxaiError, SettingsError
from medxai.identity import sha256_json
from medxai.records.database import open_database, sqlite_url
from medxai.records.outbox import Outbox
from medxai.records.worklist import JobIdentity, Worklist
from medxai.settings import RunSettings
from medxai.study import Study

if TYPE_CHECKING:
    from torch import nn

    from medxai.predict.bundle import Bundle
    from medxai.predict.prepared import Prepared

#: Part of every cache key and configuration hash: raise it when the same settings give other results.
ALGORITHM_VERSION = "3"
#: Settings that decide where and how fast work happens, but not what comes out; a bundle counts by its own hash.
_NEUTRAL = {
    "inputs", "output", "workers", "database", "batch_size", "destinations", "fail_above", "allow", "bundle",
    "delivery_retries", "delivery_retry_seconds", "delivery_retry_cap_seconds", "sources", "listen",
}  # fmt: skip


@dataclass(eq=False)
class Session:
    """What one process shares between studies: settings, model, worklist.

    The network is used by one thread at a time: the split at the target layer hooks it.
    """

    settings: RunSettings
    bundle: Bundle
    network: nn.Module
    device: str
    worklist: Worklist
    outbox: Outbox
    config_sha256: str
    prepared: Prepared | None = None
    lock: threading.Lock = field(default_factory=threading.Lock)
    decoded: dict[str, Study] = field(default_factory=dict)
    archives: Mapping[Path, Path] = field(default_factory=dict)

    def work_path(self, key: str, identity: JobIdentity) -> Path:
        """Where the analysis of a job is stored between stages."""
        name = sha256_json(asdict(identity))[:16]
        return self.settings.output / ".medxai" / "work" / f"{key}-{name}.npz"

    def folder(self, key: str) -> Path:
        """Output folder of a study."""
        return self.settings.output / key

    def origin(self, path: Path) -> str:
        """What a user calls a source file: its path, or ``archive.zip!member`` when it was unpacked."""
        for folder, archive in self.archives.items():
            if path.is_relative_to(folder):
                return f"{archive}!{path.relative_to(folder)}"
        return str(path)


def open_session(settings: RunSettings) -> Session:
    """Load the bundle and the network, open the worklist.

    Raises:
        MedxaiError: bundle, device or database cannot be used, or a method, option, layer or class does not exist.
    """
    import torch

    from medxai.explain.engine import check_dims, load_methods
    from medxai.explain.masking.registry import get_operator
    from medxai.explain.split import check_layer
    from medxai.predict.bundle import AllowList, load_bundle

    quiet_libraries()
    allow = AllowList.shipped()
    if settings.allow:
        allow = allow.joined(AllowList.read(settings.allow))
    bundle = load_bundle(settings.bundle, allow)
    get_operator(settings.masking)
    for method, _ in load_methods(settings.methods, settings.method_options):
        check_dims(method, len(bundle.spec.preparation.window))
    if settings.explain_class is not None and settings.explain_class not in bundle.spec.labels:
        msg = f"{bundle.name} has no class {settings.explain_class!r}; it has {', '.join(bundle.spec.labels)}"
        raise SettingsError(msg)
    device = settings.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda" and not torch.cuda.is_available():
        msg = "device is cuda, but torch finds none; use device: auto"
        raise MedxaiError(msg)
    network = bundle.network(device)
    if settings.slide.pooling == "attention":
        from medxai.predict.slide_pooling import load_attention

        load_attention(bundle)
        if settings.prepared != "no":
            msg = "--slide-pooling attention reads features that a compiled network does not give; use prepared: no"
            raise SettingsError(msg)
    if settings.layer is not None:
        check_layer(network, settings.layer)
    url = settings.database or sqlite_url(settings.output / ".medxai" / "worklist.sqlite")
    compiled = None
    if settings.prepared != "no":
        from medxai.predict.prepared import load_prepared, prepared_folder

        folder = prepared_folder(bundle, settings.prepared)
        compiled = load_prepared(folder, allow, name=bundle.name, sha256=bundle.sha256)
    engine = open_database(url)
    worklist, outbox = Worklist(engine), Outbox(engine)
    return Session(settings, bundle, network, device, worklist, outbox, config_hash(settings), compiled)


def config_hash(settings: RunSettings) -> str:
    """Hash of the settings that influence outputs, of the algorithm version and of the exporters."""
    values = {k: v for k, v in settings.model_dump(mode="json").items() if k not in _NEUTRAL}
    return sha256_json({"settings": values, "algorithm": ALGORITHM_VERSION, "software": __version__})


def quiet_libraries() -> None:
    """Keep header values (which may be names) that libraries quote in warnings out of every log."""
    import warnings

    warnings.filterwarnings("ignore", module=r"(pydicom|highdicom|monai|pynetdicom)(\..*)?")
    for name in ("pydicom", "highdicom", "pynetdicom"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
