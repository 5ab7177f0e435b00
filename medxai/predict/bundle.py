"""Model bundles: found by name or folder, identified by a hash, loaded without running foreign code."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Self

from medxai.errors import BundleError
from medxai.files import write_text
from medxai.identity import sha256_file, sha256_text
from medxai.predict.bundle_spec import MedxaiBlock, Metadata, read_metadata

if TYPE_CHECKING:
    from torch import nn

#: Folder of the bundles that come with the package, with ``allow.json`` beside them.
SHIPPED = Path(__file__).resolve().parent.parent / "bundles"


@dataclass(frozen=True)
class AllowList:
    """Which bundles a site trusts: name -> accepted hashes.

    Attributes:
        hashes: lower-case hex SHA-256 of `bundle_sha256`, one per accepted version.
    """

    hashes: Mapping[str, tuple[str, ...]]

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read ``{"name": ["sha256", ...]}``.

        Raises:
            BundleError: absent or of another form.
        """
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            hashes = {str(name): tuple(str(h).lower() for h in _strings(listed)) for name, listed in content.items()}
        except (OSError, ValueError, AttributeError) as error:
            msg = f"allow-list {path.name} is not a readable JSON object of name -> [sha256]: {error}"
            raise BundleError(msg) from error
        return cls(hashes)

    @classmethod
    def shipped(cls) -> Self:
        """Hashes of the bundles that come with the package."""
        return cls.read(SHIPPED / "allow.json")

    @classmethod
    def of(cls, *paths: Path) -> Self:
        """Trust these folders as they are now: for a model that was just trained or inspected."""
        return cls({path.name: (bundle_sha256(path),) for path in map(Path.resolve, paths)})

    @staticmethod
    def add(path: Path, name: str, sha256: str) -> None:
        """Accept one more hash in the file at `path`, which is created when it is absent.

        Raises:
            BundleError: the file holds something else than an allow-list.
        """
        listed = dict(AllowList.read(path).hashes) if path.exists() else {}
        listed[name] = tuple(dict.fromkeys((*listed.get(name, ()), sha256)))
        write_text(path, json.dumps(listed, indent=2, sort_keys=True) + "\n")

    def joined(self, other: AllowList) -> AllowList:
        """Return a list that accepts what either accepts."""
        names = {*self.hashes, *other.hashes}
        return AllowList({n: (*self.hashes.get(n, ()), *other.hashes.get(n, ())) for n in sorted(names)})

    def check(self, name: str, sha256: str) -> None:
        """Accept or refuse.

        Raises:
            BundleError: the name is not listed, or listed with other hashes.
        """
        listed = self.hashes.get(name)
        if not listed:
            msg = f"bundle {name} is not on the allow-list; after review add its hash {sha256}"
            raise BundleError(msg)
        if sha256 not in listed:
            known = ", ".join(f"{h[:12]}..." for h in listed)
            msg = f"bundle {name} has hash {sha256[:12]}..., the allow-list has {known}: changed or damaged, not loaded"
            raise BundleError(msg)


@dataclass(frozen=True, eq=False)
class Bundle:
    """A checked MONAI Bundle on disk; nothing of the network is in memory yet.

    Attributes:
        name: folder name.
        version: of the metadata.
        path: folder.
        sha256: of configs and models, see `bundle_sha256`.
        metadata: the whole ``metadata.json``.
        allow_code: the site allows expressions and classes of other packages in the network definition.
    """

    name: str
    version: str
    path: Path
    sha256: str
    metadata: Metadata
    allow_code: bool = False

    @property
    def spec(self) -> MedxaiBlock:
        """Labels, preparation, fusion: what inference needs."""
        return self.metadata.medxai

    def network(self, device: str = "cpu") -> nn.Module:
        """Build the network with its weights, in eval mode, parameters not requiring gradients.

        Raises:
            BundleError: the definition or the weights are refused or do not fit.
        """
        from medxai.predict.build import build_network

        return build_network(self.path, allow_code=self.allow_code).to(device)


def load_bundle(name_or_path: str | Path, allow: AllowList | None = None, *, allow_code: bool = False) -> Bundle:
    """Find a bundle, check its metadata and its hash.

    Args:
        name_or_path: name of a shipped bundle, or a folder; a `Path` or a string with a separator is a folder.
        allow: trusted hashes; None for those of the shipped bundles.
        allow_code: let the network definition run expressions. Only for bundles that the site reviewed.

    Raises:
        BundleError: not found, malformed, or not on the allow-list.
    """
    path = locate_bundle(name_or_path)
    metadata = _about(path)
    sha256 = bundle_sha256(path)
    (AllowList.shipped() if allow is None else allow).check(path.name, sha256)
    return Bundle(path.name, metadata.version, path, sha256, metadata, allow_code)


def find_bundles(folders: Iterable[Path] = (SHIPPED,)) -> dict[str, Path]:
    """Return name -> folder of every bundle directly below `folders`; the first of a name wins."""
    found: dict[str, Path] = {}
    for folder in folders:
        for path in sorted(folder.iterdir()) if folder.is_dir() else ():
            if (path / "configs" / "metadata.json").is_file():
                found.setdefault(path.name, path)
    return found


def bundle_sha256(path: Path) -> str:
    """Hash names and bytes of all files below ``configs`` and ``models``; documentation does not count.

    Raises:
        BundleError: there are no such files, or one is a link that leads out of the bundle.
    """
    root = path.resolve()
    parts: list[str] = []
    for folder in ("configs", "models"):
        for file in sorted(p for p in (root / folder).rglob("*") if p.is_file()):
            if not file.resolve().is_relative_to(root):
                msg = f"bundle {path.name}: {file.relative_to(root)} is a link out of the bundle"
                raise BundleError(msg)
            parts += [file.relative_to(root).as_posix(), sha256_file(file)]
    if not parts:
        msg = f"bundle {path.name} has no configs and models"
        raise BundleError(msg)
    return sha256_text(*parts)


def locate_bundle(name_or_path: str | Path) -> Path:
    """Folder of a bundle given by shipped name or path.

    Raises:
        BundleError: neither.
    """
    as_path = Path(name_or_path)
    shipped = find_bundles()
    if isinstance(name_or_path, str) and name_or_path in shipped:
        return shipped[name_or_path]
    if isinstance(name_or_path, Path) or len(as_path.parts) > 1 or as_path.is_dir():
        if as_path.is_dir():
            return as_path.resolve()
        msg = f"bundle folder {as_path.name} not found"
        raise BundleError(msg)
    msg = f"there is no bundle {name_or_path}; shipped are {', '.join(shipped) or 'none'}, or give a folder"
    raise BundleError(msg)


def _about(path: Path) -> Metadata:
    try:
        return read_metadata(path / "configs" / "metadata.json")
    except BundleError as error:
        raise error.about(f"bundle {path.name}") from error


def _strings(listed: object) -> list[str]:
    if not isinstance(listed, list) or not all(isinstance(h, str) for h in listed):
        msg = "hashes must be a list of strings"
        raise ValueError(msg)
    return listed
