"""The page on nuclei from points: commands, what is published and what is ours, figures."""

from __future__ import annotations

from typing import Any

TITLES = {
    "fixed": "labels from points, loss of Qu et al. (`fixed`)",
    "kept": "labels from points, our loss to the end (`kept`)",
    "block": "map of one block for all fields (`block`)",
    "dcs": "block chosen by field (`dcs`)",
    "dcs_ccl": "with the contrastive term (`dcs_ccl`)",
    "full": "with the detection branch (`full`, the method)",
    "fixed_jitter": "`fixed`, points that miss by more",
    "full_jitter": "`full`, points that miss by more",
    "supervised": "given the masks (`supervised`, upper bound)",
}
FIGURES = ("dice", "aji", "object_dice", "pq", "dq", "sq", "detection_f1")

HEAD = """# Nuclei from one point each (DoNuSeg)

```
medxai train nuclei --report docs                        # synthetic fields of known truth; again to resume
medxai train nuclei --list                               # what is done
medxai train nuclei --out medxai/bundles                 # the network of the first seed as a bundle
python -m flows.nuclei configs/nuclei.yaml               # the same pieces as a Prefect flow
python -m sample_cases.synthetic_nuclei --n 32 --seed 0 --out FIELDS
```

Training reads pictures and `points.csv` (image, row, column) and nothing else; masks lie in a folder of their own,
which a test takes away before it trains. Fields of your own: `data.train` is a folder of pictures with `points.csv`,
`data.test` one of pictures with `masks/` (a number for each nucleus). Written by `medxai train nuclei`; research, no
diagnosis.

```python
from medxai.predict.nuclei import load_nuclei, segment_field

field = segment_field(load_nuclei("nuclei"), pixels, mpp=0.25)  # [3, H, W] in 0..1 -> labels, seeds, evidence, flags
```

## The method

Wang et al., MICCAI 2024 (arXiv:2406.16427), learn from one point in each nucleus and choose the label anew while they
learn. Their repository holds a README and no code, and their result tables were not at hand: nothing of them is
repeated here. From the abstract come dynamic CAM selection, the contrastive term and the separate detection branch;
labels from points follow Qu et al. (IEEE TMI 2020), written anew; formulas and constants are ours.

| part | |
|---|---|
| labels | Voronoi cells (borders tissue, discs nucleus); k-means, 3 clusters of colour and distance, cleaned by cell |
| M | nuclei of the clusters and discs about points; the third cluster ignored; lengths in proportion to the radius |
| network | ResNet-34 encoder (strides 4 to 32), decoder through the blocks alone, three heads; from random weights |
| map | LayerCAM of each block, eval mode; score: foreground logits about the points |
| choice | agreement of each thresholded map with M on pixels that are not ignored; the best, of equals the deeper |
| P | what map and M agree on; the map where M says nothing; the rest ignored, and a band about the threshold |
| P, too | discs nucleus, borders tissue; maps averaged over refreshes |
| guards | agreement below 0.3, or more than three times the area of M: the field keeps its former label |
| losses | cross-entropy and Dice on P, half a cross-entropy on cells; detection; contrast of sure pixels |
| objects | watershed in the foreground on the mean of detection and depth (distance transform), from its peaks |

Ours beyond the constants, since maps as published in words did not carry (development fields, block 1):

- **No way around the blocks.** With skips from the stem and the image the decoder hardly used the blocks, and no map
  overlapped the nuclei by more than chance.
- **Four quarter turns.** A map has a cell for 4 pixels. The mean over four turns, whose grids lie differently, raised
  its overlap with the true nuclei from 0.68 to 0.77 at the best threshold.
- **Scaled by cell of the nearest point**, by LayerCAM's `tanh(2 M / max)`, so that a dark nucleus does not set the
  scale for a pale one. The score is taken over discs of half a radius.
- **Placed where cells look**: cell i of stride s lies on pixel i s, half a cell before the middle of its share.
- **The threshold from the points.** Maps grow narrower while a network learns, so that one threshold for all moved the
  outlines. Each field takes the middle of those thresholds at which its map agrees with M nearly as well as it can.
- **Map and points together.** A label from the map alone, as published, was no better than M (Dice 0.857, AJI 0.709
  against 0.858, 0.729 of `fixed` and 0.873, 0.735 of `kept`; one seed, 24 fields that were scored before): where the
  two contradict, one of them is wrong, and neither is taken.
- **32 shared channels** for the heads at any width: with 8 the branches disturbed each other (AJI of touching nuclei).
- **Seeds from detection and depth.** Detection alone split and missed nuclei (AJI 0.706 against 0.724, same network).
- **Development fields** (seeds 11, 12, 101 to 302) decided on all of this and on the band, with their masks in
  view. The fields scored here have other seeds, and nothing was chosen on their masks; but a user who has points alone
  could not have made these choices.
"""

LIMITS = """## Limits

- Synthetic nuclei are ellipses; no annotated real nucleus was ever scored. Figures say that the method works where its
  assumptions hold, not how well it does on tissue.
- The network is narrow and learnt from random weights in minutes on one core; no ImageNet weights of a ResNet-34 come
  with an installed library. The published recipe is 100 epochs from ImageNet weights at full width.
- `fixed` has the loss of Qu et al., half a cross-entropy on each of the two labels, without their dense CRF. `kept`
  is the warm-up continued (cross-entropy and Dice on M, half a cross-entropy on cells): what the chosen labels add is
  their difference from it.
- What the labels carry, measured on development fields: M was right in 97 % of what it calls nucleus and 99 % of what
  it calls tissue and silent on 34 %. The map of block 1 overlapped the true nuclei by 0.77 (intersection over union, at
  the best threshold, four turns) after a warm-up; the network's own mask reached 0.78 on later fields whose map
  reached 0.75. A label from the map alone is therefore no better than what the network already says, and the gain of
  the method is in the pixels on which M is silent; finer grids (eight turns, shifts) added 0.01 or nothing.
- Which parts gain, on the shipped settings (table above): the label from map and points, then the contrastive term.
  Block 1 is chosen for nearly every field, so that a choice by field gains nothing over one block; the detection
  branch gains nothing over `dcs_ccl` in these figures.
- Evidence is scaled about every seed: it compares pixels of a nucleus, not nuclei. The map is of the network, not of
  the truth; where mask and evidence disagree, look.
- Agreement at inference is with discs about the network's own seeds, so that it says which block is sharpest there,
  not whether it is right.
- Another magnification than the network's is resampled by the stated micrometres per pixel; without them none is.
"""


def page(found: dict[str, Any]) -> str:
    """Markdown of the figures, see `medxai.learn.nuclei.report.summary`."""
    return "\n".join([HEAD, *_results(found), *_gains(found), *_choices(found), *_shown(found), LIMITS])


def _results(found: dict[str, Any]) -> list[str]:
    fields, settings = found["fields"], found["settings"]
    where = "synthetic fields" if settings["data"]["train"] is None else "fields"
    lines = [
        "## Figures",
        "",
        f"Learnt from {fields['train']} {where} with {fields['points']} points, scored on {fields['test']} others with "
        f"{fields['nuclei']} nuclei; {found['cpu_seconds'] / 60:.0f} minutes of CPU.",
        "Mean (standard deviation over seeds); in brackets the 95 % interval of Dice and AJI, bootstrap over fields.",
        "Intervals do not hold what another seed would change: one network of an arm is an anecdote.",
        "",
        "| arm | networks | Dice | AJI | object Dice | PQ | DQ | SQ | detection F1 |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for arm, title in TITLES.items():
        if arm in found["arms"]:
            row = found["arms"][arm]
            cells = [_spread(row[name]) for name in FIGURES]
            for place in (0, 1):
                span = row[FIGURES[place]]["interval"]
                cells[place] += f" [{span['low']:.3f}-{span['high']:.3f}]"
            lines.append(f"| {title} | {row['seeds']} | {' | '.join(cells)} |")
    if unfinished := _unfinished(found):
        lines += ["", f"Not trained yet: {unfinished}. `medxai train nuclei` goes on with them."]
    return [*lines, ""]


def _unfinished(found: dict[str, Any]) -> str:
    """Arms with fewer networks than the settings ask for, in words."""
    settings = found["settings"]
    wanted = len(settings["seeds"])
    missing = {arm: wanted - found["arms"].get(arm, {"seeds": 0})["seeds"] for arm in settings["arms"]}
    if settings["data"]["train"] is not None:
        missing = {arm: n for arm, n in missing.items() if not arm.endswith("_jitter")}
    return ", ".join(f"{n} of {wanted} of {arm}" for arm, n in missing.items() if n)


def _gains(found: dict[str, Any]) -> list[str]:
    """Differences in pairs, and whether the method beats fixed labels."""
    lines = [
        "Differences on the same fields and seeds, 95 % interval over fields:",
        "",
        "| | Dice | AJI | PQ |",
        "|---|---|---|---|",
    ]
    for name, row in found["gains"].items():
        lines.append(f"| {name} | {' | '.join(_signed(row[figure]) for figure in ('dice', 'aji', 'pq'))} |")
    if "full over fixed" in found["gains"]:
        row = found["gains"]["full over fixed"]
        words = [f"{title}: {_verdict(row[figure])}" for figure, title in (("dice", "Dice"), ("aji", "AJI"))]
        lines += ["", f"Does the full method beat fixed labels? {'; '.join(words)}."]
    return [*lines, ""]


def _verdict(row: dict[str, Any]) -> str:
    won = sum(value > 0 for value in row["by_seed"])
    seeds = f"better for {won} of {len(row['by_seed'])} seeds"
    if row["low"] > 0:
        return f"yes, {seeds}"
    return f"no, it is worse; {seeds}" if row["high"] < 0 else f"not shown, {seeds}"


def _choices(found: dict[str, Any]) -> list[str]:
    """What was chosen while learning, by arm, as an audit."""
    if not found["history"]:
        return []
    lines = [
        "## What was chosen",
        "",
        "| arm | fields by block 1 to 4, first and last choice | agreement of the best | area of P over M | kept |",
        "|---|---|---|---|---|",
    ]
    for arm, histories in found["history"].items():
        first, last = [one[0] for one in histories], [one[-1] for one in histories]
        blocks = [[sum(row["blocks"][n] for row in rows) for n in range(4)] for rows in (first, last)]
        counts = " -> ".join(" / ".join(str(n) for n in row) for row in blocks)
        alpha = " -> ".join(f"{_mean(rows, 'chosen_alpha'):.2f}" for rows in (first, last))
        area = " -> ".join(f"{_mean(rows, 'area'):.2f}" for rows in (first, last))
        kept = sum(row["guarded"] + row["capped"] for one in histories for row in one)
        lines.append(f"| {arm} | {counts} | {alpha} | {area} | {kept} |")
    blocks = [block for arm in ("block",) if arm in found["arms"] for block in found["arms"][arm]["fixed_block"]]
    if blocks:
        lines += ["", f"The one block of `block`, by agreement after the warm-up: {', '.join(map(str, blocks))}."]
    return [*lines, "", "![training](images/nuclei_training.png)", "", "![labels](images/nuclei_labels.png)", ""]


def _shown(found: dict[str, Any]) -> list[str]:
    """What a reader is told of the first fields."""
    if "shown" not in found:
        return []
    rows = found["shown"]["fields"]
    lines = [
        "## What a pathologist gets",
        "",
        f"Fields of the test, network `{found['shown']['arm']}` of the first seed.",
        "",
        "| field | nuclei | per mm² | block | agreement | unseeded | uncertain | merged? | split? |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for number, row in enumerate(rows[:4], 1):
        flags = " | ".join(str(row["flags"][word]) for word in ("unseeded", "uncertain", "merged?", "split?"))
        lines.append(
            f"| {number} | {row['count']} | {row['per_mm2']:.0f} | {row['block']} | {row['agreement']:.2f} | {flags} |"
        )
    total = {word: sum(row["flags"][word] for row in rows) for word in rows[0]["flags"]}
    words = ", ".join(f"{n} {word}" for word, n in total.items())
    lines += [
        "",
        f"All {len(rows)} fields: {sum(row['count'] for row in rows)} nuclei, of them {words}.",
        "Uncertain: the evidence covers under a quarter of the mask. Merged or split: more than twice the median area, "
        "or under two fifths of it beside another.",
        "",
        "![fields](images/nuclei.png)",
        "",
    ]
    return lines


def _spread(row: dict[str, Any]) -> str:
    return f"{row['mean']:.3f}" + ("" if row["sd"] is None else f" ({row['sd']:.3f})")


def _signed(row: dict[str, Any]) -> str:
    return f"{row['value']:+.3f} ({row['low']:+.3f} to {row['high']:+.3f})"


def _mean(rows: list[dict[str, Any]], key: str) -> float:
    return sum(float(row[key]) for row in rows) / len(rows)
