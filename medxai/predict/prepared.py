"""Prepared bundles: a network compiled for this machine, beside its weights, used only when everything fits.

A folder of one precision holds two OpenVINO models, ``stem`` (input -> activation of the target layer and what
the rest of the network needs besides) and ``whole`` (input -> logits), and ``manifest.json``, which names the
bundle, the software, the processor, the SHA-256 of every file and what was measured. A site trusts a prepared
bundle by the SHA-256 of its manifest, under ``<bundle>/prepared`` in the allow-list.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import platform
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from pydantic import Field, ValidationError
from torch import Tensor, nn

from medxai.errors import BundleError
from medxai.files import write_bytes
from medxai.identity import sha256_text
from medxai.predict.arithmetic import Precision
from medxai.predict.blends import Blends, Pair, Sums
from medxai.predict.bundle import SHIPPED
from medxai.predict.local_changes import Boxes, Known, LocalChanges
from medxai.predict.openvino_engine import Engine, openvino, processor_runs
from medxai.predict.short_convolution import VERSION
from medxai.strict import Strict

if TYPE_CHECKING:
    from medxai.predict.bundle import AllowList, Bundle

logger = logging.getLogger(__name__)

MANIFEST = "manifest.json"
#: Raise it when older folders can no longer be read.
FORMAT = 1
_FILES = ("stem.xml", "stem.bin", "whole.xml", "whole.bin")


class Manifest(Strict):
    """Content of ``manifest.json``.

    Attributes:
        format: version of this form.
        name: bundle name, or what the caller calls the network.
        sha256: of the bundle, or `network_sha256`.
        backend: name and version of what runs the models.
        torch: version that exported them and that runs the rest of the network.
        processor: `processor_sha256` of the machine.
        precision: of the computation.
        exact: file -> waist up to which its layers compute in float32 all the same; empty where all are alike.
        layer: target layer of the stem.
        outputs: keys of the stem's outputs, the layer first.
        plan: `ReplayPlan` as JSON.
        shape: ``(C, *S)`` of the input.
        batch: samples run at once.
        files: name -> SHA-256.
        measured: error and speed at preparation.
    """

    format: int = FORMAT
    name: str
    sha256: str
    backend: str
    torch: str
    processor: str
    precision: Precision
    exact: dict[str, str] = Field(default_factory=dict)
    layer: str
    outputs: tuple[str, ...]
    plan: dict[str, Any]
    shape: tuple[int, ...]
    batch: int = Field(ge=1)
    files: dict[str, str]
    measured: dict[str, float]


class Prepared:
    """A prepared network, ready to run on the CPU.

    Args:
        manifest: what it is.
        files: content of the model files by name.
        manifest_sha256: of the manifest file.
    """

    def __init__(self, manifest: Manifest, files: Mapping[str, bytes], manifest_sha256: str = "") -> None:
        self.manifest = manifest
        self.sha256 = manifest_sha256
        self._files = files

    @property
    def layer(self) -> str:
        """Target layer of the stem."""
        return self.manifest.layer

    @property
    def precision(self) -> Precision:
        """Precision of the computation; inputs and outputs are float32."""
        return self.manifest.precision

    @property
    def plan(self) -> dict[str, Any]:
        """Replay plan of the stem, for ``ReplayPlan.from_json``."""
        return self.manifest.plan

    @property
    def most(self) -> int:
        """Images of one call beyond which it gets no faster."""
        return self._whole.many

    def fits(self, x: Tensor) -> bool:
        """True if ``x [B, C, *S]`` is a CPU batch of the prepared size; ask before running, or catch the error."""
        return tuple(x.shape[1:]) == self.manifest.shape and x.device.type == "cpu"

    def stem(self, x: Tensor) -> dict[str, Tensor]:
        """Activation of the layer and of the calls the replay needs, ``[B, ...]`` float32, for any batch size.

        Raises:
            BundleError: `x` has another shape than prepared.
        """
        return dict(zip(self.manifest.outputs, self._stem(x), strict=True))

    def whole(self, x: Tensor) -> Tensor:
        """Logits ``[B, K]`` float32 without a graph, for any batch size.

        Raises:
            BundleError: `x` has another shape than prepared.
        """
        return self._whole(x)[0]

    def clean(self, x: Tensor, known: dict[int, Known]) -> Tensor:
        """As `whole`; keeps on the way what `changed` will need of the images.

        Args:
            x: ``[B, C, *S]``.
            known: by sample, see `changed`.
        """
        if x.dtype != torch.float32 or not self.fits(x):
            return self.whole(x)
        images = x.detach().contiguous()
        return torch.cat([self._local.clean(image, known.setdefault(row, {})) for row, image in enumerate(images)])

    def changed(self, clean: Tensor, images: Tensor, known: Known) -> Tensor:
        """As `whole`, for versions of one image; where they differ from it in a small region, in less time.

        Args:
            clean: ``[C, *S]`` the image.
            images: ``[N, C, *S]`` its versions, any dtype.
            known: what the network makes of the image, kept here from call to call; empty at first.

        Raises:
            BundleError: the images have another shape than prepared.
        """
        if tuple(images.shape[1:]) != self.manifest.shape or len(images) < 2:
            return self.whole(images)
        given = images.detach().to("cpu", torch.float32).contiguous()
        if clean.dtype == torch.float32:
            logits = self._local(clean.detach(), given, self.whole, known)
            if logits is not None:
                return logits
        return self.whole(given)

    def replaced(self, clean: Tensor, base: Tensor, boxes: Boxes, known: Known) -> Tensor | None:
        """As `changed`, for versions that show another image in a box; None where they must be made and run.

        Args:
            clean: ``[C, *S]`` float32 of the prepared size on the CPU.
            base: ``[C, *S]``, what the boxes show.
            boxes: ``[N, axes, 2]`` first and last position of each box, included.
            known: see `changed`.
        """
        if tuple(clean.shape) != self.manifest.shape or clean.dtype != torch.float32:
            return None
        given = base.detach().to(clean)
        return self._local.replaced(clean.detach().contiguous(), given, boxes, self.whole, known)

    def mixing(self, pair: Pair, total: int) -> Pair | Sums:
        """What `mixed` needs to know of two images for so many masks."""
        return self._blends.ready(pair, total)

    def mixed(self, made: Pair | Sums, masks: Tensor) -> Tensor | None:
        """As `whole`, for mixtures of two images by smooth masks; see `medxai.predict.blends.Blends`."""
        return self._blends(made, masks.detach())

    def describe(self) -> dict[str, Any]:
        """JSON-serialisable: what was prepared, for which machine, and what was measured then."""
        described = self.manifest.model_dump(mode="json", exclude={"plan"})
        return described | {"manifest_sha256": self.sha256}

    @cached_property
    def _stem(self) -> Engine:
        return self._engine("stem")

    @cached_property
    def _whole(self) -> Engine:
        return self._engine("whole")

    @cached_property
    def _local(self) -> LocalChanges:
        m = self.manifest
        return LocalChanges(self._whole.read, m.shape, m.batch, self._whole.arithmetic)

    @cached_property
    def _blends(self) -> Blends:
        return Blends(self._whole)

    def _engine(self, kind: str) -> Engine:
        m = self.manifest
        graph, weights = self._files[f"{kind}.xml"], self._files[f"{kind}.bin"]
        return Engine(graph, weights, m.shape, m.batch, m.precision, exact=m.exact.get(kind))

    def exact_until(self, share: float) -> Prepared:
        """The same with its first layers in float32: those of this share of the stem's multiplications."""
        stem = self._stem.waist(share * self._stem.work)
        exact = {"stem": stem.name, "whole": self._whole.waist(stem.work).name}
        return Prepared(self.manifest.model_copy(update={"exact": exact}), self._files)


class _Unfit(Exception):
    """Why a prepared folder is not used."""


def load_prepared(folder: Path, allow: AllowList, *, name: str, sha256: str) -> Prepared | None:
    """Load a prepared network, or None with a logged reason, so that the caller runs the network itself.

    Files are read once and checked before anything interprets them.

    Args:
        folder: of one precision.
        allow: trusted hashes; the manifest's counts under ``<name>/prepared``.
        name: of the bundle or network.
        sha256: of the bundle, or `network_sha256`.
    """
    try:
        content = _read(folder / MANIFEST)
        digest = hashlib.sha256(content).hexdigest()
        try:
            allow.check(allowed_name(name), digest)
        except BundleError as error:
            raise _Unfit(error.reason) from error
        manifest = _parse(content)
        _check(manifest, name, sha256)
        files = {}
        for file in _FILES:
            files[file] = _read(folder / file)
            if hashlib.sha256(files[file]).hexdigest() != manifest.files.get(file):
                msg = f"{file} was changed or damaged"
                raise _Unfit(msg)
        prepared = Prepared(manifest, files, digest)
        _try(prepared)
    except FileNotFoundError:
        logger.info("%s is not prepared in this folder; the network runs as it is", name)
        return None
    except _Unfit as reason:
        logger.warning("prepared %s is not used: %s", name, reason)
        return None
    return prepared


def store_prepared(folder: Path, manifest: Manifest, files: Mapping[str, bytes]) -> str:
    """Write the models, then the manifest, each atomically; returns the SHA-256 of the manifest."""
    for name in _FILES:
        write_bytes(folder / name, files[name])
    content = (json.dumps(manifest.model_dump(mode="json"), indent=1, sort_keys=True) + "\n").encode()
    write_bytes(folder / MANIFEST, content)
    return hashlib.sha256(content).hexdigest()


def allowed_name(name: str) -> str:
    """Key of a prepared bundle in the allow-list."""
    return f"{name}/prepared"


def prepared_folder(bundle: Bundle, precision: Precision = "float32") -> Path:
    """Where the prepared form of a bundle lies: beside its weights, or in the user's cache.

    The cache serves bundles that come with the package and those in a folder that cannot be written.
    """
    inside = bundle.path / "prepared" / precision
    if inside.is_dir() or (os.access(bundle.path, os.W_OK) and not bundle.path.is_relative_to(SHIPPED)):
        return inside
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return cache / "medxai" / "prepared" / f"{bundle.name}-{bundle.sha256[:12]}" / precision


def network_sha256(network: nn.Module) -> str:
    """Identity of a network that is no bundle: its class, and the names, shapes and bytes of its state."""
    parts = [f"{type(network).__module__}.{type(network).__qualname__}"]
    for name, tensor in network.state_dict().items():
        raw = tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy()
        parts += [name, str(tuple(tensor.shape)), str(tensor.dtype), hashlib.sha256(raw).hexdigest()]
    return sha256_text(*parts)


def processor_sha256() -> str:
    """Hash of the instruction sets of this machine: what was verified on one need not hold on another."""
    flags = platform.processor()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        named = (line.partition(":") for line in cpuinfo.read_text(errors="replace").splitlines())
        flags = next((value for key, _, value in named if key.strip().lower() in {"flags", "features"}), flags)
    return sha256_text(platform.machine(), *sorted(set(flags.split())))


def backend_version() -> str:
    """``openvino`` and its version, and that of the products put in place of its convolutions.

    Raises:
        BundleError: it is not installed.
    """
    return f"openvino {openvino().__version__.split('-')[0]}, short convolutions {VERSION}"


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError as error:
        if path.name == MANIFEST:
            raise
        msg = f"{path.name} is missing"
        raise _Unfit(msg) from error
    except OSError as error:
        msg = f"{path.name} cannot be read ({error.strerror})"
        raise _Unfit(msg) from error


def _parse(content: bytes) -> Manifest:
    try:
        stated = json.loads(content)
        if stated.get("format") != FORMAT:
            msg = f"format {stated.get('format')}, this version reads {FORMAT}; prepare it again"
            raise _Unfit(msg)
        return Manifest.model_validate(stated)
    except (ValueError, AttributeError, ValidationError) as error:
        msg = "its manifest is not readable; prepare it again"
        raise _Unfit(msg) from error


def _check(manifest: Manifest, name: str, sha256: str) -> None:
    """Compare with what is here.

    Raises:
        _Unfit: anything differs.
    """
    if (manifest.name, manifest.sha256) != (name, sha256):
        msg = "it was made from another version of the bundle; prepare it again"
        raise _Unfit(msg)
    try:
        backend = backend_version()
    except BundleError as error:
        raise _Unfit(error.reason) from error
    for what, made, here in (("torch", manifest.torch, torch.__version__), ("backend", manifest.backend, backend)):
        if made != here:
            msg = f"it was made with {what} {made}, here is {here}; prepare it again"
            raise _Unfit(msg)
    if manifest.processor != processor_sha256() or not processor_runs(manifest.precision):
        msg = "it was made on another kind of processor; prepare it again"
        raise _Unfit(msg)


def _try(prepared: Prepared) -> None:
    """Run both models once: the compilation must not fail later, in the middle of a study.

    Raises:
        _Unfit: a model cannot be compiled or returns something else than stated.
    """
    zeros = torch.zeros(1, *prepared.manifest.shape)
    try:
        stem, logits = prepared.stem(zeros), prepared.whole(zeros)
    except Exception as error:  # whatever the backend raises means the same here
        msg = f"it does not run here: {' '.join(str(error).split())[:160]}"
        raise _Unfit(msg) from error
    if logits.ndim != 2 or not torch.isfinite(logits).all() or any(len(value) != 1 for value in stem.values()):
        msg = "it returns something else than logits for an empty input"
        raise _Unfit(msg)
