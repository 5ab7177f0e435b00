"""The page on clustering of tiles: commands, what is published and what is ours, figures of every data set."""

from __future__ import annotations

from typing import Any

TITLES = {
    "attention/refined": "attention, step 2 (DCEAC)",
    "attention/kmeans": "attention, k-means after step 1",
    "no_attention/refined": "no attention, step 2 (DCEC with this encoder)",
    "no_attention/kmeans": "no attention, k-means after step 1 (CAE + k-means)",
    "rgb/kmeans": "k-means on mean and deviation of the colours",
    "supervised/network": "same encoder, given the labels (upper bound)",
}
SECTIONS = {
    "textures": "Synthetic textures: known truth",
    "histology": "Lymph node and oral mucosa: a stand-in",
    "own": "Other tiles",
}
#: What the page must show on textures, and whether it does.
ACCURACY, LIFT = 0.9, 2.0

HEAD = """# Patterns in histology tiles without labels (DCEAC)

```
medxai train dceac --report docs                                   # synthetic textures of known truth
medxai train dceac -c configs/dceac_histology.yaml --data DIR/histo_camelyon --data DIR/histo_ocdc --report docs
medxai train dceac --data MY_TILES --clusters 3 --work WORK --report OUT   # your own; --list shows what is done
medxai train dceac --data MY_TILES --work WORK --out BUNDLES --mpp 0.5   # a bundle that grades slides (pathology.md)
python -m sample_cases.synthetic_textures --n 90 --out TILES       # a folder as --data reads it
```

A folder of `--data` holds tiles with `labels.csv` (columns path, label, mask, group), or pictures with `NAME_mask`,
which are cut and labelled by the share of the mask, or pictures alone: then there are clusters and no scores.
Kill the command at any time; the same command goes on from the last epoch. Written by `medxai train dceac`; research,
no diagnosis.

## The method

García et al. 2021 (arXiv:2106.13559) cluster tiles of bladder cancer into non-tumour, mild and infiltrative without
labels. Their data are private and there is no public code: their accuracy of 0.9034 cannot be repeated here. From the
publication come the task, an attention module that refines the latent maps, and the two steps; the arithmetic of step 2
is that of DCEC (Guo et al. 2017).

| part | |
|---|---|
| encoder | 4 blocks: convolution 3, stride 2, batch norm, ReLU; 32, 64, 128, 256 channels at 512 pixels (ours) |
| attention | a = sigmoid(conv1(ReLU(BN(conv1)))), one weight for a position or for each channel; F' = F + a F (ours) |
| embedding | mean of F' over positions, standardised on the training tiles (ours; see below) |
| decoder | from F', four transposed convolutions (ours) |
| step 1 | mean squared error, Adam |
| step 2 | k-means, 20 starts; L = gamma KL(P, Q) + L_r, gamma 0.1; P from all tiles, once a pass; trained centroids |
| ours in it | gamma rises over the first updates; batch statistics stay those of step 1; empty clusters begin anew |
| end | fewer than 0.1 % of the tiles changed cluster since the last update, or the number of updates |
| names | Hungarian matching on tiles of other patients that are neither learnt from nor scored |

Two things decided whether textures or stains became the clusters: each colour is divided by its 80th percentile in
the tile (`data.stain`), and each number of the embedding is standardised; without either, k-means follows brightness.

**Alarm.** Training stops with the reason when a cluster holds under 2 % of the tiles twice in a row, when the
reconstruction error exceeds three times that of step 1, or when the clustering pulls at the latent maps over a
thousand times as hard as the reconstruction. The last one is what stops gamma = 100: Adam is blind to the scale of a
loss, so that neither shares nor error need show it (on textures with gamma = 100 and the alarm off, the clusters stayed
and the error rose to less than twice that of step 1 over 8 updates, one seed).

**Maps** (`medxai.explain.cluster_map`). For cluster k against the runner-up j, M(p) = 2 e(p) . (mu_k - mu_j) with e(p)
what cell p adds to the embedding: the mean of M and a constant are exactly the difference of squared distances that
decides. Beside it the attention and the reconstruction error; confidence is max q, and a tile farther from its
centroid than 99 % of the training tiles is said to be unlike them. In the picture only what is above half is coloured.
"""

LIMITS = """## Limits

- The number of clusters is given, not found. With another number the method answers just as readily.
- Clusters are what differs most in these tiles, which may be stain, thickness or blank space: look at the mean colours
  and at the nearest tiles before a name is believed.
- Synthetic textures are far easier than tissue. They show that the arithmetic and the maps work, nothing more.
- The evening of stains, the standardised embedding, rate and lengths of training were chosen on textures of seeds 0 and
  1 with their labels in view; the tiles scored above are of seed 2, on which nothing was chosen. The limit of the
  third alarm was set between gamma 0.1 (3 to 25 times) and the thousandfold of it that 100 gives (from 6000).
  For lymph node and oral mucosa the settings are those of the textures.
- A cell of the map is 16 pixels: dots within a cell are not told apart. Maps are placed where the cells look, which is
  half a cell before the middle of their sixteenth; the general engine on the layer `refined` does not know that.
- Tiles of 512 pixels with the wide network were tried once: 45 textures to learn from are too few, k-means is right in
  8 of 15, and step 2 is stopped by its alarm after three updates (error 3.1 times that of step 1).
"""


def page(sections: dict[str, Any]) -> str:
    """Markdown of all sections, see `medxai.learn.clustering.report.summary`."""
    lines = [HEAD]
    for name, title in SECTIONS.items():
        if name in sections:
            lines += _section(name, title, sections[name])
    return "\n".join([*lines, LIMITS])


def _section(name: str, title: str, found: dict[str, Any]) -> list[str]:
    tiles, settings = found["tiles"], found["settings"]
    classes = ", ".join(f"{n} {label}" for label, n in tiles["classes"].items()) or "no labels"
    sets = ", ".join(f"{n} of {label}" for label, n in tiles["sets"].items())
    lines = [
        f"## {title}",
        "",
        f"{tiles['n']} tiles of {settings['data']['size']} pixels ({sets}) from {tiles['groups']} "
        f"{'patients' if name == 'textures' else 'patients or pictures'}: {classes}.",
        f"{settings['data']['folds']} folds by {'patient' if name == 'textures' else 'picture'}; for every seed one is "
        "scored, one names the clusters, the others are learnt from without labels.",
        f"{found['cpu_seconds'] / 60:.0f} minutes of CPU.",
        "",
    ]
    if name == "histology":
        lines += [
            "The publication's data are private; these patches are of other organs, of another stain (haematoxylin and",
            "eosin), and have masks of tumour and no grades. All patches of oral mucosa (OCDC) are of one slide.",
            "Intervals resample whole patches.",
            "",
        ]
    if not tiles["classes"]:
        return [*lines, *_unlabelled(found), *_picture(name)]
    return [
        *lines,
        *_scores(found),
        *_verdict(name, found),
        *_classes(found),
        *_maps(found),
        *_steps(found),
        *_colours(found),
        *_picture(name),
    ]


def _scores(found: dict[str, Any]) -> list[str]:
    lines = [
        "| | seeds | accuracy | all scored tiles, 95 % interval | mean sensitivity | NMI | ARI | chance, 95th perc. |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for key, row in found["rows"].items():
        pooled, by_chance = row["pooled_accuracy"], row.get("chance")
        cells = [TITLES[key], str(row["seeds"]), stated(row["accuracy"])]
        cells.append(f"{pooled['value']:.3f} ({pooled['low']:.3f} to {pooled['high']:.3f}), n = {pooled['n']}")
        cells += [stated(row[figure]) for figure in ("balanced_accuracy", "nmi", "ari")]
        cells.append(f"{by_chance['mean']:.3f}, {by_chance['p95']:.3f}" if by_chance else "-")
        lines.append("| " + " | ".join(cells) + " |")
    first = next(iter(found["rows"].values()))["pooled_accuracy"]
    lines += [
        "",
        f"Mean (standard deviation) over seeds. Intervals: bootstrap over {first['groups']} groups. Chance: clusters",
        "and labels permuted, named and scored anew.",
        "",
    ]
    sets = found["tiles"]["sets"]
    if len(sets) > 1:
        for key, row in found["rows"].items():
            said = "; ".join(
                f"{label} {r['value']:.3f} ({r['low']:.3f} to {r['high']:.3f}, {r['groups']} pictures)"
                for label, r in row["sets"].items()
            )
            follows = f"; NMI of what was decided with the data set, not the class: {_plain(row.get('set_nmi'))}"
            lines.append(f"- {TITLES[key]}: {said}{follows}.")
        lines.append("")
    return lines


def _verdict(name: str, found: dict[str, Any]) -> list[str]:
    """Plainly what came out, against what was asked for."""
    rows = found["rows"]
    main = rows.get("attention/refined")
    if main is None:
        return []
    pooled = main["pooled_accuracy"]
    lines = []
    if name == "textures":
        word = "reached" if main["accuracy"]["mean"] >= ACCURACY else "missed"
        lines.append(f"Accuracy of at least {ACCURACY} with attention and step 2: {word} ({stated(main['accuracy'])}).")
    else:
        chance = main["chance"]["p95"]
        word = "above" if pooled["low"] > chance else "not above"
        lines.append(
            f"Accuracy with attention and step 2 is {pooled['value']:.3f} "
            f"({pooled['low']:.3f} to {pooled['high']:.3f}), {word} "
            f"what chance reaches in one of twenty ({chance:.3f}); the most frequent class alone has "
            f"{max(found['tiles']['classes'].values()) / found['tiles']['n']:.3f}."
        )
    for key, what in (
        ("attention/kmeans", "Step 2 with attention"),
        ("no_attention/kmeans", "Step 2 without attention"),
    ):
        after = rows.get(key.replace("kmeans", "refined"))
        if key in rows and after:
            lines.append(_paired(what, "before", after, rows[key]))
    if "no_attention/refined" in rows:
        lines.append(_paired("Attention (after step 2)", "without", main, rows["no_attention/refined"]))
    if "rgb/kmeans" in rows:
        lines.append(_paired("DCEAC", "colours alone", main, rows["rgb/kmeans"]))
    return [*(f"- {line}" for line in lines), ""]


def _paired(what: str, other: str, after: dict[str, Any], before: dict[str, Any]) -> str:
    pairs = list(zip(after["accuracy"]["values"], before["accuracy"]["values"], strict=False))
    better = sum(a > b for a, b in pairs)
    gain = sum(a - b for a, b in pairs) / len(pairs)
    return f"{what}: {gain:+.3f} accuracy against {other}, better in {better} of {len(pairs)} seeds."


def _classes(found: dict[str, Any]) -> list[str]:
    row = found["rows"].get("attention/refined")
    if row is None:
        return []
    figures = ("sensitivity", "specificity", "ppv", "npv", "f1", "auc")
    lines = [
        f"By class, {TITLES['attention/refined']}:",
        "",
        "| class | sensitivity | specificity | PPV | NPV | F1 | AUC |",
        "|---|---|---|---|---|---|---|",
    ]
    for label, values in row["classes"].items():
        lines.append(f"| {label} | " + " | ".join(stated(values[figure]) for figure in figures) + " |")
    return [*lines, ""]


def _maps(found: dict[str, Any]) -> list[str]:
    rows = {key: row["maps"] for key, row in found["rows"].items() if "maps" in row}
    if not rows:
        return []
    lines = [
        "Where the maps lie, for tiles in the right cluster: the map's share inside the mask over the mask's share of",
        "the tile (*lift*, 1 by chance), and how many maps have their peak inside.",
        "",
        "| | class | n | mask's share | lift of the map | peak inside | lift of the attention | lift of the error |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for key, maps in rows.items():
        for label in found["tiles"]["classes"]:
            if label in maps:
                row = maps[label]
                cells = [TITLES[key], label, str(row["n"]), f"{row['share']:.3f}"]
                cells += [_plain(row[figure]) for figure in ("lift", "peak", "attention", "error")]
                lines.append("| " + " | ".join(cells) + " |")
    lines.append("")
    main = rows.get("attention/refined", {})
    dots = main.get("infiltrative")
    if dots:
        word = "reached" if dots["lift"] is not None and dots["lift"] >= LIFT else "missed"
        seeds = ", ".join(_plain(value) for value in dots["by_seed"])
        lines.append(f"Mass on dots of at least {LIFT:g} times their share: {word} (by seed {seeds}).")
    seen = {label: main.get(label, {}).get("attention") for label in found["tiles"]["classes"]}
    avoided = [label for label, lift in seen.items() if lift is not None and lift < 0.9]
    if avoided:
        lines.append(
            f"The attention itself is weaker inside the masks of {' and '.join(avoided)} than outside (lift below 1): "
            "it does not say what made the cluster; the map does."
        )
    largest = max(maps["identity"] for maps in rows.values())
    return [*lines, f"Map and margin differ by at most {largest:.1e} (relative to a margin above 1).", ""]


def _steps(found: dict[str, Any]) -> list[str]:
    lines = []
    for arm, row in found["refinement"].items():
        title = "with attention" if arm == "attention" else "without attention"
        ratios = row["error_over_step_1"]
        lines.append(
            f"- Step 2 {title}: {', '.join(map(str, row['updates'])) or 'no'} updates by seed, "
            f"{row['stopped_by_tolerance']} of {len(row['updates'])} ended by the tolerance, {row['revived']} empty "
            + "clusters"
            + (f"; error over step 1 {min(ratios):.2f} to {max(ratios):.2f}" if ratios else "")
            + "".join(f"; stopped by the alarm: {reason}" for reason in row["collapsed"])
            + "."
        )
    return [*lines, ""]


def _colours(found: dict[str, Any]) -> list[str]:
    """What of the clusters may be stain."""
    row = found["rows"].get("attention/refined") or found["rows"].get("no_attention/refined")
    if row is None:
        return []
    said = []
    for number, values in enumerate(row["colours"][0], start=1):
        if values is not None:
            colours = ", ".join(f"{mean:.0f} ({sd:.0f})" for mean, sd in zip(values[:3], values[3:], strict=True))
            said.append(f"cluster {number}: {colours}")
    return [
        "Red, green and blue of the tiles as they were, mean (deviation between tiles), first seed: "
        + "; ".join(said)
        + ".",
        "",
    ]


def _unlabelled(found: dict[str, Any]) -> list[str]:
    lines = ["| | seed | tiles by cluster, of those that were not learnt from |", "|---|---|---|"]
    for key, row in found["rows"].items():
        for seed, shares in zip(found["settings"]["seeds"], row["shares"], strict=False):
            lines.append(f"| {TITLES[key]} | {seed} | {', '.join(map(str, shares))} |")
    return [*lines, "", *_steps(found), *_colours(found)]


def _picture(name: str) -> list[str]:
    file = "dceac.png" if name == "textures" else f"dceac_{name}.png"
    if name == "histology":
        words = f"The command draws its clusters into `images/{file}`; made of the data's tiles, it is not kept here."
        return [words, ""]
    return [f"![clusters](images/{file})", "", "First seed, scored tiles.", ""]


def stated(row: dict[str, Any]) -> str:
    """Mean (standard deviation)."""
    if row["mean"] is None:
        return "-"
    return f"{row['mean']:.3f}" + (f" ({row['sd']:.3f})" if row["sd"] is not None else "")


def _plain(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"
