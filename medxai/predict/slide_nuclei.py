"""Nuclei of a whole slide, tile by tile: each counted once, also on the seams, and a killed run goes on.

A tile is looked at with a margin, so that nuclei on its border are whole. A nucleus belongs to the tile whose core
holds its middle; where two tiles put the middle of one on either side of the seam, the masks tell that it is the same.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from medxai.errors import IngestError
from medxai.files import arrays_once
from medxai.ingest.slides.level import Slide
from medxai.ingest.slides.tiles import TileGrid, shares_of, stream
from medxai.predict.nuclei import NucleiField
from medxai.predict.nuclei_masks import NucleiMasks, pack
from medxai.predict.nuclei_tiles import NucleiTiles, cores_within, field_pixels, finest_per_wanted, inside

#: Tiles of a shard.
SHARD = 16
#: Share of the smaller of two masks that the other covers from which on both are one nucleus.
_SAME = 0.5
#: Pixels ``[3, H, W]`` in 0..1 -> the nuclei of the field.
Segment = Callable[[npt.NDArray[np.float32]], NucleiField]
Progress = Callable[[int, int], None]


@dataclass(frozen=True, eq=False)
class SlideNuclei:
    """Nuclei of a slide or of a part of it, ordered by tile.

    Attributes:
        masks: of each nucleus, in wanted pixels of the slide (see `TileGrid`).
        scale: ``[2]`` pixels of the finest level on the side of a wanted one, rows and columns.
        pixel_um2: area of a wanted pixel.
        centres: ``[n, 2]`` row and column of the centre of mass in pixels of the finest level, from its outer corner.
        flags: of each nucleus, see `NucleiField`.
        agreement: ``[n]`` of the field it was found in.
        block: ``[n]`` of the field.
        evidence: ``[n]`` mean over the mask, 0..1.
        tiles: ``[n]`` number of the tile.
        numbers: ``[m]`` tiles that were read.
        boxes: ``[m, 4]`` top, left, bottom, right of their cores in pixels of the finest level, within the region.
        tissue_mm2: ``[m]`` tissue of the cores.
        field_agreement: ``[m]``.
        field_block: ``[m]``.
        failed: reasons of the tiles that could not be read.
        planned: tiles that were to be looked at.
    """

    masks: NucleiMasks
    scale: npt.NDArray[np.float64]
    pixel_um2: float
    centres: npt.NDArray[np.float64]
    flags: tuple[str, ...]
    agreement: npt.NDArray[np.float32]
    block: npt.NDArray[np.int64]
    evidence: npt.NDArray[np.float32]
    tiles: npt.NDArray[np.int64]
    numbers: npt.NDArray[np.int64]
    boxes: npt.NDArray[np.float64]
    tissue_mm2: npt.NDArray[np.float64]
    field_agreement: npt.NDArray[np.float32]
    field_block: npt.NDArray[np.int64]
    failed: tuple[str, ...] = ()
    planned: int = 0

    def __len__(self) -> int:
        return len(self.flags)

    @property
    def areas_um2(self) -> npt.NDArray[np.float64]:
        """``[n]`` area of each nucleus."""
        return np.asarray(self.masks.areas * self.pixel_um2, np.float64)

    @property
    def density(self) -> float:
        """Nuclei in a mm2 of the tissue that was looked at; NaN without tissue."""
        area = float(self.tissue_mm2.sum())
        return len(self) / area if area > 0 else float("nan")

    def counts(self, *, doubtful: bool = False) -> npt.NDArray[np.int64]:
        """``[m]`` nuclei of each tile, or the doubtful among them."""
        wanted = np.array([bool(words) for words in self.flags], bool) if doubtful else np.ones(len(self), bool)
        at = np.searchsorted(self.numbers, self.tiles[wanted])
        return np.bincount(at, minlength=len(self.numbers)).astype(np.int64)


def find_nuclei(
    slide: Slide, plan: NucleiTiles, segment: Segment, *, radius: float, work: Path, progress: Progress | None = None
) -> SlideNuclei:
    """Segment every tile and put the nuclei together.

    Args:
        slide: open.
        plan: tiles.
        segment: nuclei of a field at the plan's micrometres per pixel.
        radius: of a nucleus in wanted pixels.
        work: folder for the shards of this slide, network and plan; what is there is not computed again.
        progress: called with (tiles done, tiles in all).

    Raises:
        IngestError: no tile can be read.
    """
    seen = plan.seen
    parts, done = [], 0
    for number, shard in enumerate(seen.shards(max(1, -(-len(seen) // SHARD)))):
        make = partial(_shard, slide, plan, shard, segment, radius)
        parts.append(arrays_once(work / f"{number:05d}.npz", make))
        done += len(shard)
        if progress:
            progress(done, len(seen))
    whole: dict[str, Any] = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    failed = tuple(reason for part in parts for reason in json.loads(part["failed"].tobytes()))
    if not len(whole["numbers"]):
        msg = f"none of {len(seen)} tiles of tissue can be read: {failed[0] if failed else 'no reason is known'}"
        raise IngestError(msg, study=slide.name)
    return _together(slide, plan, whole, failed, radius)


@dataclass(frozen=True, eq=False)
class SeenField:
    """The core of a tile for pictures, without what lies outside slide and region.

    Attributes:
        number: of the tile.
        colours: ``[h, w, 3]`` RGB 0..255.
        labels: ``[h, w]`` instances, 0 between them.
        evidence: ``[h, w]`` 0..1.
        flags: of instance n at position n - 1.
        block: see `NucleiField`.
        agreement: likewise.
    """

    number: int
    colours: npt.NDArray[np.uint8]
    labels: npt.NDArray[np.int32]
    evidence: npt.NDArray[np.float32]
    flags: tuple[str, ...]
    block: int
    agreement: float


def look_again(slide: Slide, plan: NucleiTiles, numbers: npt.NDArray[np.int64], segment: Segment) -> list[SeenField]:
    """Segment some tiles once more, for pictures of them.

    Args:
        slide: open.
        plan: see `find_nuclei`.
        numbers: of the tiles, in the order wanted.
        segment: see `find_nuclei`.
    """
    seen, core = plan.seen, np.array([plan.margin, plan.margin + plan.cores.size])
    grid = seen.take(np.array([int(np.flatnonzero(seen.numbers == number)[0]) for number in numbers], np.int64))
    found = []
    for batch in stream(slide, grid, 1):
        for n, place in enumerate(batch.places):
            pixels = field_pixels(slide, batch, n, grid)
            field = segment(pixels)
            (top, left), (bottom, right) = np.clip(_shown(slide, plan, grid, place), *core)
            part = (slice(top, bottom), slice(left, right))
            colours = np.rint(pixels[:, part[0], part[1]].transpose(1, 2, 0) * 255).astype(np.uint8)
            found.append(
                SeenField(
                    int(batch.numbers[n]), colours, field.labels[part], field.evidence[part], field.flags, field.block,
                    field.agreement,
                )
            )  # fmt: skip
    return found


def _shown(slide: Slide, plan: NucleiTiles, grid: TileGrid, place: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """First and last row and column of a tile that lie on the slide and in the region, in pixels of the tile."""
    (first, last), scale = inside(slide, grid, place), finest_per_wanted(slide, grid)
    if plan.region is not None:
        low, size = np.array(plan.region[:2]), np.array(plan.region[2:])
        first = np.maximum(first, np.floor(low / scale).astype(np.int64) - place)
        last = np.minimum(last, np.ceil((low + size) / scale).astype(np.int64) - place)
    return np.stack([first, last])


def _shard(slide: Slide, plan: NucleiTiles, shard: TileGrid, segment: Segment, radius: float) -> dict[str, Any]:
    from scipy.ndimage import find_objects

    rows: dict[str, list[Any]] = {name: [] for name in ("corners", "sizes", "middles", "evidence", "tiles", "words")}
    fields: dict[str, list[Any]] = {"numbers": [], "field_agreement": [], "field_block": []}
    failed: list[str] = []
    packed: list[npt.NDArray[np.bool_]] = []
    core, reach = plan.cores.size, radius / 2
    for batch in stream(slide, shard, 1):
        failed += [f"tile {tile.number}: {tile.reason}" for tile in batch.failed]
        for n, place in enumerate(batch.places):
            found = segment(field_pixels(slide, batch, n, shard))
            labels = np.zeros_like(found.labels)
            (top, left), (bottom, right) = inside(slide, shard, place)
            labels[top:bottom, left:right] = found.labels[top:bottom, left:right]
            fields["numbers"].append(batch.numbers[n])
            fields["field_agreement"].append(found.agreement)
            fields["field_block"].append(found.block)
            for label, where in enumerate(find_objects(labels), 1):
                if where is None:
                    continue
                mask = labels[where] == label
                corner = np.array([where[0].start, where[1].start])
                middle = np.argwhere(mask).mean(0) + 0.5 + corner
                if (middle < plan.margin - reach).any() or (middle >= plan.margin + core + reach).any():
                    continue
                rows["corners"].append(corner + place)
                rows["sizes"].append(mask.shape)
                rows["middles"].append(middle + place)
                rows["evidence"].append(found.evidence[where][mask].mean())
                rows["tiles"].append(batch.numbers[n])
                rows["words"].append(found.flags[label - 1])
                packed.append(mask)
    masks = pack(rows["corners"], packed)
    return {
        **masks.arrays(),
        "middles": np.array(rows["middles"], np.float64).reshape(-1, 2),
        "evidence": np.array(rows["evidence"], np.float32),
        "tiles": np.array(rows["tiles"], np.int64),
        "words": np.array(rows["words"], "U64"),
        "numbers": np.array(fields["numbers"], np.int64),
        "field_agreement": np.array(fields["field_agreement"], np.float32),
        "field_block": np.array(fields["field_block"], np.int64),
        "failed": np.frombuffer(json.dumps(failed).encode(), np.uint8),
    }


def _together(
    slide: Slide, plan: NucleiTiles, whole: dict[str, Any], failed: tuple[str, ...], radius: float
) -> SlideNuclei:
    masks = NucleiMasks.of(whole)
    cores = plan.cores
    level = slide.levels[cores.choice.level]
    scale = finest_per_wanted(slide, cores)
    first = dict(zip(cores.numbers.tolist(), cores.places.tolist(), strict=True))
    corner = np.array([first[tile] for tile in whole["tiles"].tolist()], np.float64).reshape(-1, 2)
    middles = whole["middles"]
    depth = np.minimum(middles - corner, corner + cores.size - middles).min(1, initial=np.inf)
    # Beyond its core a nucleus counts where the tile that its middle lies in was read as well, and missed it.
    rows, columns = np.floor(middles / cores.size).astype(np.int64).T
    kept = np.isin(rows * cores.shape[1] + columns, whole["numbers"])
    kept &= _once(masks, middles, depth, whole["tiles"], radius)
    centres = middles * scale
    if plan.region is not None:
        top, left, height, width = plan.region
        low, high = np.array([top, left]), np.array([top + height, left + width])
        kept &= ((centres >= low) & (centres < high)).all(1)
    at = np.flatnonzero(kept)
    fields = np.searchsorted(whole["numbers"], whole["tiles"][at])
    read = cores.take(np.searchsorted(cores.numbers, whole["numbers"]))
    boxes = cores_within(slide, read, plan.region)
    per_mask = np.asarray(slide.levels[0].mpp) / plan.tissue.mpp
    shares = shares_of(plan.tissue.mask, boxes[:, :2] * per_mask, boxes[:, 2:] * per_mask)
    area = np.prod((boxes[:, 2:] - boxes[:, :2]) * np.asarray(slide.levels[0].mpp) / 1000, axis=1)
    return SlideNuclei(
        masks=masks.take(at),
        scale=scale,
        pixel_um2=float(np.prod(np.asarray(level.mpp) / np.asarray(cores.choice.factor))),
        centres=centres[at],
        flags=tuple(whole["words"][at].tolist()),
        agreement=whole["field_agreement"][fields],
        block=whole["field_block"][fields],
        evidence=whole["evidence"][at],
        tiles=whole["tiles"][at],
        numbers=whole["numbers"],
        boxes=boxes,
        tissue_mm2=shares * area,
        field_agreement=whole["field_agreement"],
        field_block=whole["field_block"],
        failed=failed,
        planned=len(cores),
    )


def _once(
    masks: NucleiMasks, middles: npt.NDArray[np.float64], depth: npt.NDArray[np.float64],
    tiles: npt.NDArray[np.int64], radius: float,
) -> npt.NDArray[np.bool_]:  # fmt: skip
    """Which nuclei to keep: of those that two tiles saw, the one that lies deeper in the core of its tile.

    Args:
        masks: of all.
        middles: ``[n, 2]`` in wanted pixels.
        depth: ``[n]`` how far a middle lies within the core of its tile; negative outside.
        tiles: ``[n]``.
        radius: in wanted pixels.
    """
    from scipy.spatial import cKDTree

    kept = np.ones(len(masks), bool)
    near = np.flatnonzero(depth < 2 * radius)
    if len(near) < 2:
        return kept
    pairs: Sequence[tuple[int, int]] = sorted(cKDTree(middles[near]).query_pairs(2 * radius))
    for one, other in ((int(near[a]), int(near[b])) for a, b in pairs):
        if tiles[one] == tiles[other] or not (kept[one] and kept[other]):
            continue
        if masks.shared(one, other) >= _SAME * min(masks.areas[one], masks.areas[other]):
            kept[one if depth[one] < depth[other] else other] = False
    return kept
