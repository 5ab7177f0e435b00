"""An atlas that the site gives: labels or probabilities, names and networks of its regions, and its place on a grid."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from medxai.errors import IngestError, MismatchError
from medxai.prepare.brain.bold import sidecar, space_of
from medxai.prepare.brain.image import Image, nearest, read_image
from medxai.prepare.brain.networks import canonical, network_of_name, networks_by_overlap
from medxai.prepare.brain.settings import AtlasOptions
from medxai.study import Affine

_INDEX = ("index", "label_id", "labelid", "id", "roi", "value", "label_index")
_NAME = ("name", "region", "label", "roi_name", "region_name", "abbreviation")
_NETWORK = ("network", "yeo7", "yeo_7", "yeo_networks7", "networks7", "network_label", "yeo17", "yeo_17")
#: A region of which less lies in the brain and the field of view is missing.
_LEAST_COVERAGE = 0.1
#: Less of the whole atlas inside the brain means another space.
_LEAST_OVERLAP = 0.3


@dataclass(frozen=True, eq=False)
class Atlas:
    """Regions on the atlas's own grid.

    Attributes:
        image: ``[D, H, W]`` int32 labels, or ``[D, H, W, N]`` weights of a probabilistic atlas.
        labels: index of each region; of a probabilistic one its place on the fourth axis, from 0.
        names: of the regions, in order.
        networks: functional network of each, "" for none.
        space: template it is in, "" where that is not stated.
        key: name for messages: the file's.
    """

    image: Image
    labels: tuple[int, ...]
    names: tuple[str, ...]
    networks: tuple[str, ...]
    space: str
    key: str

    @property
    def probabilistic(self) -> bool:
        """True for weights instead of labels."""
        return self.image.data.ndim == 4


@dataclass(frozen=True, eq=False)
class Placed:
    """An atlas on the grid of a scan.

    Attributes:
        labels: ``[D, H, W]`` int32: 0 outside, n for the nth region, counted from 1; or ``[D, H, W, N]`` weights.
        coverage: of each region the share of its volume that lies in the brain mask.
        missing: indices of regions of which under a tenth does.
        atlas: what was placed.
    """

    labels: npt.NDArray[np.int32] | npt.NDArray[np.float32]
    coverage: npt.NDArray[np.float64]
    missing: tuple[int, ...]
    atlas: Atlas


def read_atlas(options: AtlasOptions) -> Atlas:
    """Read image and table.

    The networks come from the table's column, else from an image of networks, else from the regions' names.

    Raises:
        IngestError: unreadable, no labels, labels that are no whole numbers, or a table that does not fit.
    """
    path = options.image
    import nibabel

    axes = 3
    if path.is_file():
        try:
            shape = nibabel.load(path).shape
            axes = 4 if len(shape) == 4 and shape[3] > 1 else 3
        except Exception:  # noqa: S110 - read_image says what is wrong
            pass
    image = read_image(path, axes)
    if axes == 3:
        rounded = np.rint(image.data)
        if np.abs(rounded - image.data).max(initial=0) > 1e-3 or rounded.min(initial=0) < 0:
            words = "holds values that are no labels (whole numbers from 0); resample it by nearest neighbour"
            raise IngestError(words, study=path.name)
        image = replace(image, data=rounded.astype(np.int32))
        labels: tuple[int, ...] = tuple(int(v) for v in np.unique(rounded) if v > 0)
    else:
        if image.data.min() < 0:
            raise IngestError("holds negative weights", study=path.name)
        labels = tuple(range(image.data.shape[3]))
    if len(labels) < 2:
        raise IngestError(f"has {len(labels)} regions; connectivity needs two", study=path.name)
    names: tuple[str, ...] = tuple(f"region_{label}" for label in labels)
    networks: tuple[str, ...] = ("",) * len(labels)
    if options.table is not None:
        names, networks = _table(options.table, labels, axes == 4, options.network_column)
    elif options.network_column:
        raise IngestError("network_column needs a table", study=path.name)
    if options.network_image is not None and not any(networks):
        other = read_image(options.network_image, 3)
        onto = nearest(replace(other, data=np.rint(other.data).astype(np.int32)), image.grid, image.affine)
        if axes == 4:
            winner = np.where(image.data.max(-1) > 0, image.data.argmax(-1) + 1, 0)
            networks = networks_by_overlap(winner, tuple(label + 1 for label in labels), onto)
        else:
            networks = networks_by_overlap(image.data, labels, onto)
    elif not any(networks):
        networks = tuple(network_of_name(name) for name in names)
    return Atlas(image, labels, names, networks, space_of(path, sidecar(path)), path.name)


def place_atlas(
    atlas: Atlas,
    mask: npt.NDArray[np.bool_],
    affine: Affine,
    space: str,
    options: AtlasOptions,
    study: str,
) -> Placed:
    """Bring an atlas onto the grid of a scan, by nearest neighbour through the affines, and check that it fits.

    Args:
        atlas: in the space of the scan.
        mask: ``[D, H, W]`` brain on the scan's grid.
        affine: of that grid, index -> LPS mm.
        space: template of the scan, "" for unknown.
        options: what may be missing.
        study: name for messages.

    Raises:
        MismatchError: the declared spaces differ, atlas and brain hardly overlap, or regions lie outside; lists them.
    """
    if not options.trust_space and atlas.space and space and atlas.space != space:
        words = f"the scan is in {space} and the atlas {atlas.key} in {atlas.space}"
        raise MismatchError(f"{words}; give the atlas in {space}, or state trust_space", study=study)
    grid = (int(mask.shape[0]), int(mask.shape[1]), int(mask.shape[2]))
    cell, own = abs(np.linalg.det(affine[:3, :3])), abs(np.linalg.det(atlas.image.affine[:3, :3]))
    labels: npt.NDArray[np.int32] | npt.NDArray[np.float32]
    if atlas.probabilistic:
        parts = [
            nearest(Image(atlas.image.data[..., n], atlas.image.affine), grid, affine) for n in range(len(atlas.labels))
        ]
        labels = np.stack(parts, -1).astype(np.float32)
        found = labels[mask].sum(0, dtype=np.float64)
        whole = atlas.image.data.sum((0, 1, 2), dtype=np.float64)
    else:
        order = np.zeros(max(atlas.labels) + 1, np.int32)
        order[list(atlas.labels)] = np.arange(1, len(atlas.labels) + 1)
        onto = nearest(Image(order[atlas.image.data], atlas.image.affine), grid, affine)
        labels = np.where(mask, onto, 0).astype(np.int32)
        found = np.bincount(labels.ravel(), minlength=len(atlas.labels) + 1)[1:].astype(np.float64)
        whole = np.bincount(order[atlas.image.data].ravel(), minlength=len(atlas.labels) + 1)[1:].astype(np.float64)
    coverage = np.minimum(found * cell / np.maximum(whole * own, 1e-12), 1.0)
    overlap = float(found.sum() * cell / (whole.sum() * own))
    if overlap < _LEAST_OVERLAP:
        words = f"{overlap:.0%} of the atlas {atlas.key} lies in the brain of the scan: they are not in one space"
        raise MismatchError(f"{words}; register the scan to the atlas's template first", study=study)
    missing = tuple(int(n) for n in np.flatnonzero((coverage < _LEAST_COVERAGE) | (found == 0)))
    if missing:
        share = len(missing) / len(atlas.labels)
        listed = ", ".join(atlas.names[n] for n in missing[:8]) + (" ..." if len(missing) > 8 else "")
        words = f"{len(missing)} of {len(atlas.labels)} regions lie outside the brain or the field of view ({listed})"
        if share > options.most_missing:
            raise MismatchError(f"{words}; at most {options.most_missing:.0%} may", study=study)
        if not options.allow_missing:
            raise MismatchError(f"{words}; allow_missing makes them zeros", study=study)
    return Placed(labels, coverage, missing, atlas)


def _table(
    path: Path, labels: Sequence[int], probabilistic: bool, network_column: str | None
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise IngestError("the table of regions cannot be read", study=path.name) from error
    delimiter = "\t" if "\t" in text.partition("\n")[0] else ","
    rows = list(csv.DictReader(text.splitlines(), delimiter=delimiter))
    columns = {str(name).strip().lower(): name for name in (rows[0] if rows else {}) if name}
    name_column = next((columns[c] for c in _NAME if c in columns), None)
    index_column = next((columns[c] for c in _INDEX if c in columns), None)
    if name_column is None:
        words = f"the table has no column of names ({', '.join(_NAME)}); it has {', '.join(columns) or 'none'}"
        raise IngestError(words, study=path.name)
    if network_column is not None and network_column.lower() not in columns:
        words = f"the table has no column {network_column}; it has {', '.join(columns)}"
        raise IngestError(words, study=path.name)
    wanted = (network_column.lower(),) if network_column else _NETWORK
    networks = next((columns[c] for c in wanted if c in columns), None)
    if index_column is None:
        if len(rows) != len(labels):
            words = f"the table has {len(rows)} rows and no column of indices ({', '.join(_INDEX)})"
            raise IngestError(f"{words}; the image has {len(labels)} regions", study=path.name)
        by_index = dict(zip(labels, rows, strict=True))
    else:
        try:
            by_index = {int(float(row[index_column])): row for row in rows}
        except (TypeError, ValueError) as error:
            raise IngestError(f"column {index_column} of the table is no number everywhere", study=path.name) from error
        if probabilistic and 0 not in by_index and len(rows) == len(labels):  # tables count maps from 0 or from 1
            by_index = {index - 1: row for index, row in by_index.items()}
        absent = [label for label in labels if label not in by_index]
        if absent:
            words = f"{len(absent)} of {len(labels)} labels of the image are not in the table ({absent[:5]} ...)"
            raise IngestError(words, study=path.name)
    ordered = [by_index[label] for label in labels]
    names = tuple(str(row[name_column]).strip() for row in ordered)
    if len(set(names)) != len(names):
        twice = sorted({name for name in names if names.count(name) > 1})
        raise IngestError(f"regions have the same name ({', '.join(twice[:5])})", study=path.name)
    return names, tuple(canonical(str(row[networks] or "")) for row in ordered) if networks else ("",) * len(names)
