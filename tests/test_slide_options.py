"""What a run may choose for whole slides: attention over tiles, stains, ICC profile, tiles that are left out."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from medxai.errors import BundleError, IngestError
from medxai.explain.slide_map import explain_slide, middle_report
from medxai.explain.store import load_analysis, save_analysis
from medxai.explain.study_map import ExplainOptions
from medxai.export.slide_attention import compared, tile_evidence
from medxai.ingest.read import read_study
from medxai.ingest.slides.stain import Stains
from medxai.ingest.slides.whitening import Spread
from medxai.networks.gated_attention import GatedAttention
from medxai.predict.bundle import AllowList, load_bundle
from medxai.predict.bundle_spec import SlideColours, SlideSpec
from medxai.predict.slide_pooling import WEIGHTS, load_attention
from medxai.settings import SlideOptions
from medxai.study import Result, SourceFiles, TrustReport
from tests import slides, stained
from tests.studies import command
from tests.test_slide_run import dark_bundle, tile_block

Capture = pytest.CaptureFixture[str]
SPEC = SlideSpec(mpp=2.0, tile=64, least_tissue=0.1)


def with_attention(folder: Path) -> tuple[Path, Path]:
    """The dark bundle with attention that grows with the evidence of a tile, and decides by what it weighs."""
    bundle, allow = dark_bundle(folder, tile_block(SPEC.model_copy(update={"attention": True})))
    network = load_bundle(bundle, AllowList.of(bundle)).network()
    linear = [module for module in network.modules() if isinstance(module, torch.nn.Linear)][-1]
    attention = GatedAttention(linear.in_features, 1)
    cells = linear.in_features // 2
    with torch.no_grad():
        for parameter in attention.parameters():
            parameter.zero_()
        attention.what.weight[0, :cells] = 0.5 / cells
        attention.gate.bias.fill_(20.0)
        attention.weigh.weight.fill_(100.0)
        attention.head.weight[1, :cells] = 1.0
        attention.head.bias[1] = -3.0
    save_file(attention.state_dict(), bundle / WEIGHTS)
    allow.write_text(json.dumps({name: list(found) for name, found in AllowList.of(bundle).hashes.items()}))
    return bundle, allow


def explained(path: Path, folder: Path, work: Path, how: SlideOptions) -> Result:
    bundle = load_bundle(path, AllowList.of(path))
    source = SourceFiles("0123456789ab", "dicom", tuple(sorted(folder.glob("*.dcm"))))
    study = read_study(source, cell_um=16.0)
    found = explain_slide(bundle, bundle.network(), study, source.files, ExplainOptions(batch_size=16, slide=how), work)
    return Result(study, found[0], found[1], "", "", None, found[2])


def test_attention_is_the_sum_it_says() -> None:
    """Attention sums to one, the decision is the head of the weighted mean, and tiles have no order."""
    torch.manual_seed(0)
    network, bags = GatedAttention(7, 5, 3).eval(), torch.randn(4, 11, 7)
    logits, attention = network(bags)
    torch.testing.assert_close(attention.sum(-1), torch.ones(4))
    torch.testing.assert_close(logits, network.head((attention[..., None] * bags).sum(1)))
    score = (torch.tanh(network.what(bags)) * torch.sigmoid(network.gate(bags))) @ network.weigh.weight[0]
    torch.testing.assert_close(attention, score.softmax(-1))
    order = torch.randperm(11)
    torch.testing.assert_close(network(bags[:, order])[0], logits)
    torch.testing.assert_close(network(bags[0])[0], logits[0])


def test_attention_decides_and_is_compared_with_the_map(tmp_path: Path, capfd: Capture) -> None:
    bundle, allow = with_attention(tmp_path)
    slides.save(slides.pyramid(syntax="jpeg"), tmp_path / "in")
    words = ("run", tmp_path / "in", "-b", bundle, "-o", tmp_path / "out", "--allow", allow, "--send-withheld")
    done = command(capfd, *words, "--slide-pooling", "attention")
    assert (done.code, done.err) == (0, "")
    (folder,) = [path.parent for path in (tmp_path / "out").glob("*/manifest.json")]
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["decided"] == "dark"
    assert manifest["explanations"][0]["parameters"]["fusion"] == "attention"
    rows = [line.split("\t") for line in (folder / "slide_tiles.tsv").read_text().splitlines()]
    table = {name: np.array([float(row[n]) for row in rows[1:]]) for n, name in enumerate(rows[0][:-1])}
    assert table["attention"].sum() == pytest.approx(1, abs=1e-3)
    assert table["attention"].argmax() == table["evidence_gradcam"].argmax()
    page = (folder / "case.html").read_text()
    assert "Attention of the decision beside the evidence of the map" in page
    assert "learnt on bags of tiles" in page
    judged = [line.split("\t") for line in (folder / "slide_tiles_trust.tsv").read_text().splitlines()]
    assert len(judged) == 1 + 5
    margin = table["p_dark"] - table["p_pale"]
    assert margin[table["tile"] == float(judged[1][0])] == margin.max()
    assert {row[1] for row in judged[1:]} == {"limited"}  # no thresholds
    assert ", map limited" in page


def test_the_comparison_counts_right(tmp_path: Path) -> None:
    """Ranks, shared tiles and the picture against attention that is turned around by hand; it survives storing."""
    bundle_path, _ = with_attention(tmp_path)
    slides.save(slides.pyramid(), tmp_path / "in")
    found = explained(bundle_path, tmp_path / "in", tmp_path / "work", SlideOptions(pooling="attention"))
    tiles, bundle = found.prediction.tiles, load_bundle(bundle_path, AllowList.of(bundle_path))
    features_first = load_attention(bundle)
    assert features_first.training is False
    evidence = tile_evidence(found.explanations[0])
    order = np.argsort(np.argsort(evidence))
    ranked = ((order + 1) / (order + 1).sum()).astype(np.float32)

    def against(attention: np.ndarray) -> dict[str, object]:
        prediction = replace(found.prediction, tiles=replace(tiles, attention=attention))
        return compared(replace(found, prediction=prediction))

    distinct = replace(found.explanations[0], raw=(order + 1.0)[:, None, None].astype(np.float32))
    found = replace(found, explanations=(distinct,))
    top = round(0.1 * len(order))
    same, other = against(ranked), against(ranked[::-1].copy())
    assert (same["correlation"], same["shared"], same["top"]) == (pytest.approx(1), top, top)
    first, second = np.argsort(-ranked[::-1])[:top], np.argsort(-order)[:top]
    assert other["shared"] == len(set(first.tolist()) & set(second.tolist()))
    turned = against(((len(order) - order) / len(order)).astype(np.float32))
    assert (turned["correlation"], turned["shared"]) == (pytest.approx(-1), 0)
    assert compared(replace(found, prediction=replace(found.prediction, tiles=replace(tiles, attention=None)))) is None
    again = load_analysis(save_analysis(tmp_path / "a.npz", found.prediction, found.explanations), found.study, bundle)
    np.testing.assert_array_equal(again[0].tiles.attention, tiles.attention)


def test_a_bundle_without_attention_is_refused_before_the_first_slide(tmp_path: Path, capfd: Capture) -> None:
    bundle, allow = dark_bundle(tmp_path, tile_block(SPEC))
    slides.save(slides.pyramid(), tmp_path / "in")
    done = command(
        capfd, "run", tmp_path / "in", "-b", bundle, "-o", tmp_path / "out", "--allow", allow,
        "--slide-pooling", "attention",
    )  # fmt: skip
    assert done.code == 2
    assert "has no attention over tiles" in done.err
    assert not (tmp_path / "out" / "quarantine").exists()


def test_attention_of_other_labels_or_damaged_is_refused(tmp_path: Path) -> None:
    path, _ = with_attention(tmp_path)
    save_file(GatedAttention(8, 2, 3).state_dict(), path / WEIGHTS)
    with pytest.raises(BundleError, match="gives 3 logits, the bundle has 2 labels"):
        load_attention(load_bundle(path, AllowList.of(path)))
    (path / WEIGHTS).write_bytes(b"nothing")
    with pytest.raises(BundleError, match="damaged"):
        load_attention(load_bundle(path, AllowList.of(path)))


def colours(stains: Stains, spread: Spread) -> SlideColours:
    return SlideColours(
        vectors=stains.vectors.T.tolist(), strongest=stains.strongest.tolist(), variances=spread.variances.tolist(),
        directions=spread.directions.T.tolist(), white=stains.white.tolist(),
    )  # fmt: skip


def stained_slide(folder: Path, vectors: np.ndarray, ink: bool = False) -> Path:
    """A DICOM slide of synthetic tissue in a stain; the same tissue for all stains."""
    pixels = stained.colours(stained.amounts((512, 640), seed=3), vectors)
    if ink:
        pixels[250:262, 300:500] = (30, 120, 60)
    slides.save([slides.level(pixels)], folder)
    return folder


@pytest.mark.parametrize("stain", ["macenko", "whitening"])
def test_stains_are_brought_to_those_of_training(tmp_path: Path, stain: str) -> None:
    """Two stainings of one tissue are decided nearly alike after it, and not before."""
    from medxai.ingest.slides.stain import estimate_stains
    from medxai.ingest.slides.whitening import estimate_spread

    pixels = stained.colours(stained.amounts((512, 640), seed=3), stained.HE)
    known = colours(estimate_stains(pixels, 244.0), estimate_spread(pixels, 244.0))
    path, _ = dark_bundle(tmp_path, tile_block(SPEC.model_copy(update={"colours": known})))
    home = stained_slide(tmp_path / "home", stained.HE)
    away = stained_slide(tmp_path / "away", stained.OTHER_HE)
    work = tmp_path / "work"
    wanted = explained(path, home, work, SlideOptions()).prediction.window_logits
    as_is = explained(path, away, work, SlideOptions()).prediction.window_logits
    brought = explained(path, away, work, SlideOptions(stain=stain)).prediction.window_logits
    before, after = (float(np.abs(found - wanted).mean()) for found in (as_is, brought))
    assert after < 0.35 * before, (before, after)


def test_whitening_needs_the_colours_of_training(tmp_path: Path) -> None:
    path, _ = dark_bundle(tmp_path, tile_block(SPEC))
    folder = stained_slide(tmp_path / "in", stained.HE)
    with pytest.raises(IngestError, match="does not state the colours of its training tiles"):
        explained(path, folder, tmp_path / "work", SlideOptions(stain="whitening"))
    explained(path, folder, tmp_path / "work", SlideOptions(stain="macenko"))


def test_a_slide_without_a_profile_is_refused_when_one_is_asked_for(tmp_path: Path) -> None:
    path, _ = dark_bundle(tmp_path, tile_block(SPEC))
    (level,) = slides.pyramid(levels=1)
    slides.save([level], tmp_path / "in")
    plain = explained(path, tmp_path / "in", tmp_path / "work", SlideOptions()).prediction.window_logits
    managed = explained(path, tmp_path / "in", tmp_path / "work", SlideOptions(icc=True)).prediction.window_logits
    np.testing.assert_allclose(managed, plain, atol=0.5)  # its profile is sRGB
    del level.OpticalPathSequence[0].ICCProfile
    slides.save([level], tmp_path / "bare")
    with pytest.raises(IngestError, match="carries no ICC profile"):
        explained(path, tmp_path / "bare", tmp_path / "work", SlideOptions(icc=True))


def test_flagged_tiles_are_left_out_when_asked(tmp_path: Path) -> None:
    """Those under ink, and no other; they are told of, and the map is empty there."""
    path, _ = dark_bundle(tmp_path, tile_block(SPEC))
    folder = stained_slide(tmp_path / "in", stained.HE, ink=True)
    kept = explained(path, folder, tmp_path / "work", SlideOptions()).prediction
    inked = {int(n) for n, words in zip(kept.tiles.numbers, kept.tiles.flags, strict=True) if words}
    # Rows 250 to 262 are in the tiles of rows 3 and 4, columns 300 to 500 in those of columns 4 to 7.
    assert inked >= {3 * 10 + column for column in (5, 6)}
    assert inked <= {row * 10 + column for row in (3, 4) for column in (4, 5, 6, 7)}
    found = explained(path, folder, tmp_path / "work", SlideOptions(flagged="leave_out"))
    tiles = found.prediction.tiles
    assert set(tiles.numbers.tolist()) == set(kept.tiles.numbers.tolist()) - inked
    assert len(tiles.failed) == len(inked)
    assert all("left out: pen" in reason for reason in tiles.failed)
    same = np.isin(kept.tiles.numbers, tiles.numbers)
    np.testing.assert_array_equal(found.prediction.window_logits, kept.window_logits[same])
    cells = found.explanations[0].input_map.reshape(
        tiles.shape[0], -1, tiles.shape[1], found.explanations[0].raw.shape[2]
    )
    assert not cells[3, :, 5].any()


@pytest.mark.parametrize(
    ("verdicts", "middle"),
    [("ssswl", "supported"), ("slwlw", "limited"), ("wwwss", "withheld"), ("sw", "withheld"), ("l", "limited")],
)
def test_the_middle_verdict_of_several_tiles_counts(verdicts: str, middle: str) -> None:
    names = {"s": "supported", "l": "limited", "w": "withheld"}
    each = [
        TrustReport(names[letter], () if letter == "s" else (names[letter],), {"drop": float(n)}, forwards=3)
        for n, letter in enumerate(verdicts)
    ]
    found = middle_report(each)
    assert (found.verdict, found.figures, found.forwards) == (middle, {"drop": 0.0}, 3 * len(verdicts))
    assert (found.reasons == ()) == (middle == "supported")
    if middle != "supported":
        assert found.reasons[0] == middle
        assert f"{verdicts.count(middle[0])} {middle}" in found.reasons[-1]
