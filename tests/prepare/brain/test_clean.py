"""Band-pass and nuisance regression against closed forms; refusals with their numbers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from medxai.errors import IngestError, MismatchError
from medxai.prepare.brain.bold import Bold
from medxai.prepare.brain.clean import clean
from medxai.prepare.brain.confounds import choose, motion_columns, read_confounds, tissue_means
from medxai.prepare.brain.settings import BandOptions, NuisanceOptions

BAND = BandOptions()
TIME = np.arange(240) * 2.0


def sine(hz: float) -> np.ndarray:
    return np.sin(2 * np.pi * hz * TIME)


def middle_ratio(cleaned: np.ndarray, wave: np.ndarray) -> float:
    return float(cleaned[60:180] @ wave[60:180] / (wave[60:180] @ wave[60:180]))


@pytest.mark.parametrize(("hz", "kept"), [(0.03, 1.0), (0.05, 1.0), (0.002, 0.0), (0.15, 0.0), (0.2, 0.0)])
def test_the_band_passes_and_the_rest_does_not(hz: float, kept: float) -> None:
    found = clean(sine(hz)[:, None], {}, 2.0, 0, BAND, "x")[:, 0]
    assert middle_ratio(found, sine(hz)) == pytest.approx(kept, abs=0.02)


@pytest.mark.parametrize("degree", [0, 1, 2])
def test_trends_go_to_their_degree_and_no_further(degree: int) -> None:
    scaled = np.linspace(-1, 1, 240)
    series = np.stack([1000 + 50 * scaled**n for n in range(4)], 1)
    left = clean(series, {}, 2.0, degree, None, "x").std(0)
    assert (left[: degree + 1] < 1e-9 + 1e-10 * 1000).all()
    assert (left[degree + 1 :] > 1).all()


def test_what_a_confound_explains_goes() -> None:
    generator = np.random.default_rng(0)
    noise = generator.normal(size=240)
    signal = sine(0.04)
    mixed = (5000 + 3 * signal + 20 * noise + 0.5 * np.arange(240))[:, None]
    for band in (None, BAND):
        found = clean(mixed, {"noise": noise}, 2.0, 2, band, "x")[:, 0]
        assert middle_ratio(found, signal) == pytest.approx(3, rel=0.15)
        assert found.std() == pytest.approx(3 / np.sqrt(2), rel=0.15)


def test_without_a_band_it_is_least_squares() -> None:
    generator = np.random.default_rng(1)
    series, table = generator.normal(size=(50, 7)), generator.normal(size=(50, 3))
    design = np.column_stack([np.ones(50), np.arange(50), table])
    expected = series - design @ np.linalg.lstsq(design, series, rcond=None)[0]
    found = clean(series, {str(n): table[:, n] for n in range(3)}, 2.0, 1, None, "x")
    assert np.allclose(found, expected, atol=1e-5)


def test_constant_and_trend_confounds_do_no_harm() -> None:
    series = np.random.default_rng(2).normal(size=(60, 4))
    plain = clean(series, {}, 2.0, 1, BAND, "x")
    assert np.allclose(clean(series, {"one": np.ones(60), "line": np.arange(60.0)}, 2.0, 1, BAND, "x"), plain)


@pytest.mark.parametrize(
    ("volumes", "seconds", "confounds", "band", "words"),
    [
        (49, 2.0, 0, BAND, "49 volumes of 2 s are too few for 0.01 to 0.08 Hz.* need 50"),
        (30, 5.0, 0, BandOptions(low=0.01, high=0.05), "30 volumes .* need 34"),
        (200, 7.0, 0, BAND, "less than 6.25 s apart; these are 7 s"),
        (60, 2.0, 15, BAND, "18 degrees of freedom and 15 confounds|16 degrees of freedom and 15 confounds"),
        (10, 2.0, 8, None, "10 volumes are too few for 8 confounds .* at least 12"),
    ],
)
def test_too_short(volumes: int, seconds: float, confounds: int, band: BandOptions | None, words: str) -> None:
    table = {str(n): np.random.default_rng(n).normal(size=volumes) for n in range(confounds)}
    with pytest.raises(MismatchError, match=words):
        clean(np.zeros((volumes, 2)), table, seconds, 1, band, "x")


def test_fifty_volumes_of_two_seconds_are_enough() -> None:
    assert clean(np.random.default_rng(0).normal(size=(50, 2)), {}, 2.0, 1, BAND, "x").shape == (50, 2)


def table(path: Path, rows: int = 5, **more: list[str]) -> Path:
    columns = {f"{k}_{a}{e}": ["n/a" if "deriv" in e and n == 0 else f"{n + 0.5}" for n in range(rows)]
               for k in ("trans", "rot") for a in "xyz"
               for e in ("", "_derivative1", "_power2", "_derivative1_power2")}  # fmt: skip
    columns |= {"white_matter": ["1.0"] * rows, "csf": ["2.0"] * rows, "global_signal": ["3"] * rows, **more}
    lines = ["\t".join(columns), *("\t".join(values[n] for values in columns.values()) for n in range(rows))]
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.mark.parametrize(("motion", "count"), [("none", 0), ("6", 6), ("12", 12), ("24", 24)])
def test_columns_of_fmriprep(tmp_path: Path, motion: str, count: int) -> None:
    found = read_confounds(table(tmp_path / "a.tsv", motion_outlier00=["1", "0", "0", "0", "0"]), 5)
    options = NuisanceOptions(motion=motion, tissues=False)  # type: ignore[arg-type]
    assert len(choose(found, options, "x")) == count
    everything = NuisanceOptions(motion=motion, global_signal=True, outliers=True)  # type: ignore[arg-type]
    assert len(choose(found, everything, "x")) == count + 4
    assert found["trans_x_derivative1"][0] == 0


def test_bad_tables(tmp_path: Path) -> None:
    path = table(tmp_path / "a.tsv")
    with pytest.raises(IngestError, match="5 rows and the series 6 volumes"):
        read_confounds(path, 6)
    with pytest.raises(IngestError, match="cannot be read"):
        read_confounds(tmp_path / "none.tsv", 6)
    with pytest.raises(IngestError, match="column csf of the confounds has no number in row 4"):
        read_confounds(table(path, csf=["1", "2", "3", "n/a", "1"]), 5)
    with pytest.raises(IngestError, match="has no white_matter, csf"):
        choose({"trans_x": np.zeros(5)}, NuisanceOptions(motion="none"), "x")


def test_means_of_tissues() -> None:
    data = np.random.default_rng(0).normal(size=(3, 4, 5, 6)).astype(np.float32)
    bold = Bold(data, np.eye(4), 2.0, "x")
    mask = np.zeros((3, 4, 5), bool)
    mask[1, 2, 3] = mask[0, 0, 0] = True
    assert np.allclose(tissue_means(bold, {"csf": mask})["csf"], (data[1, 2, 3] + data[0, 0, 0]) / 2, atol=1e-6)
    with pytest.raises(IngestError, match="csf is empty"):
        tissue_means(bold, {"csf": np.zeros((3, 4, 5), bool)})
    with pytest.raises(IngestError, match="csf has shape"):
        tissue_means(bold, {"csf": np.zeros((3, 4, 4), bool)})


def test_expansion_of_motion() -> None:
    found = motion_columns(np.arange(18.0).reshape(3, 6), "24")
    assert len(found) == 24
    assert found["rot_z_derivative1_power2"].tolist() == [0, 36, 36]
