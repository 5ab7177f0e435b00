"""Bundles of other kinds than classifiers of images: a MONAI Bundle with a block of its own in place of ``medxai``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from medxai.errors import BundleError

Block = TypeVar("Block", bound=BaseModel)


def has_block(path: Path, name: str) -> bool:
    """Whether the metadata of the bundle at `path` have a block of this name."""
    try:
        return name in _metadata(path)
    except (OSError, ValueError, TypeError):
        return False


def read_block(path: Path, name: str, model: type[Block], what: str) -> tuple[Block, dict[str, Any]]:
    """Read a block, and all metadata.

    Args:
        path: of the bundle.
        name: of the block.
        model: that it must fit.
        what: the bundle should do, in words that follow its name.

    Raises:
        BundleError: there is no such block, or a field of it is wrong; one line that names the first.
    """
    if not has_block(path, name):
        msg = f"bundle {path.name} {what}: its metadata has no block {name!r}"
        raise BundleError(msg)
    content = _metadata(path)
    try:
        return model.model_validate(content[name]), content
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        msg = f"bundle {path.name}: configs/metadata.json: {name}.{where}: {first['msg']}"
        raise BundleError(msg) from error


def _metadata(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((path / "configs" / "metadata.json").read_text(encoding="utf-8"))
    return content
