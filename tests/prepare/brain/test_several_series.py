"""Several functional series of one subject: listed without the patient, chosen by number, description or UID."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from medxai.prepare.brain.derivatives import read_subject
from medxai.prepare.brain.image import Image, as_nifti
from medxai.prepare.brain.scanner import Series, chosen, scans_in
from medxai.study import SourceFiles
from tests.prepare.brain import mosaics
from tests.prepare.brain.test_cohort import VOLUMES, band_noise
from tests.studies import Done, command


def labels() -> np.ndarray:
    found = np.zeros(mosaics.SHAPE, np.int32)
    found[1:9, 1:6, 1:7], found[1:9, 1:6, 7:13], found[1:9, 6:11, 1:7], found[1:9, 6:11, 7:13] = 1, 2, 3, 4
    return found


def recording(seed: int, volumes: int = VOLUMES) -> np.ndarray:
    """``[D, H, W, T]``: regions 1 and 2 go together, 3 varies twice as much as 4; air around them."""
    generator = np.random.default_rng(seed)
    courses = [band_noise(generator) for _ in range(4)]
    courses[1] = 0.9 * courses[0] + np.sqrt(1 - 0.81) * courses[1]
    data = np.full((*mosaics.SHAPE, VOLUMES), 5.0)
    data[labels() > 0] = 1000 + generator.normal(0, 1, (int((labels() > 0).sum()), VOLUMES))
    for n, course in enumerate(courses):
        data[labels() == n + 1] += (40 if n == 2 else 20) * course
    return data[..., :volumes].astype(np.float32)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A mosaic series of 120 volumes, a classic one of three, one whose description names the patient; an atlas."""
    root = tmp_path_factory.mktemp("several")
    mosaics.write_mosaics(root / "dicom" / "a", recording(1), 3, "EPI rest", "rest")
    mosaics.write_slices(root / "dicom" / "b", recording(2, 3), 5, "EPI check", "check")
    mosaics.write_mosaics(root / "dicom" / "c", recording(3, 2), 11, "EPI secret", "named")
    as_nifti(Image(labels(), mosaics.affine())).to_filename(root / "atlas.nii.gz")
    # Four boxes that change in brightness look as if they moved.
    (root / "plain.yaml").write_text("nuisance: {motion: none}\n")
    return root


def features(capfd: pytest.CaptureFixture[str], folder: Path, out: Path, *more: str) -> Done:
    given = ("--atlas", folder / "atlas.nii.gz", "--out", out, "--config", folder / "plain.yaml")
    return command(capfd, "brain", "features", folder / "dicom", *given, *more)


def test_the_candidates_are_listed_without_the_patient(folder: Path, capfd, tmp_path: Path) -> None:
    done = features(capfd, folder, tmp_path / "out")
    assert done.code == 2
    said = (tmp_path / "out" / "failures.tsv").read_text()
    assert "several functional series" in said
    listed = "series 3 'EPI rest' with 120 volumes, series 5 'EPI check' with 3 volumes, series 11 with 2 volumes"
    assert listed in said
    assert "--series" in said
    for text in (said, done.out, *done.errors):
        assert "secret" not in text.lower()
        assert "HOSPITAL" not in text
    assert features(capfd, folder, tmp_path / "out", "--series", "task").code == 2
    said = (tmp_path / "out" / "failures.tsv").read_text()
    assert f"no functional series 'task', but {listed}" in said


def test_a_mosaic_series_is_chosen_and_read_at_its_place(folder: Path, capfd, tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = features(capfd, folder, out, "--series", "rest")
    assert done.code == 0, (out / "failures.tsv").read_text()
    (subject,) = (path.name for path in out.glob("sub-*"))
    found = read_subject(out, subject)
    assert found.alff is not None
    assert found.sfc is not None
    assert found.alff.shape == mosaics.SHAPE
    np.testing.assert_allclose(found.affine, mosaics.affine(), atol=1e-3)
    assert np.tanh(found.sfc[0, 1]) > 0.8
    assert np.tanh(np.abs(found.sfc[2:, :2])).max() < 0.7
    assert found.alff[labels() == 3].mean() > 1.5 * found.alff[labels() == 4].mean()
    assert not found.alff[labels() == 0].any()
    assert features(capfd, folder, out, "--series", "rest").code == 0
    assert features(capfd, folder, tmp_path / "other", "--task", "5").code == 2
    assert "3 volumes" in (tmp_path / "other" / "failures.tsv").read_text()


@pytest.mark.parametrize(("wanted", "volumes"), [("3", 120), ("epi REST", 120), ("Check", 3), ("11", 2), ("uid", 3)])
def test_number_description_part_and_uid_choose(folder: Path, wanted: str, volumes: int) -> None:
    uid = mosaics.build.ct_series(mosaics.affine(), np.zeros(mosaics.SHAPE, np.float32), "check")[0].SeriesInstanceUID
    (scans,) = scans_in(folder / "dicom", str(uid) if wanted == "uid" else wanted).values()
    assert scans.fault == ""
    assert len(scans.bold_volumes) == volumes


def test_the_closest_meaning_wins_and_an_open_one_stays_open() -> None:
    def series(uid: str, number: str, description: str) -> Series:
        return Series(uid, number, description, False, (SourceFiles(uid, "dicom", (Path(uid),)),) * 2)

    everything = [series("1.2", "3", "rest"), series("1.3", "4", "Rest 2"), series("1.4", "12", "run 3"),
                  series("1.5", "", "")]  # fmt: skip
    assert [s.uid for s in chosen(everything, "rest")] == ["1.2"]  # the whole before a part
    assert [s.uid for s in chosen(everything, "res")] == ["1.2", "1.3"]
    assert [s.uid for s in chosen(everything, "3")] == ["1.2"]  # the number before a part of a description
    assert [s.uid for s in chosen(everything, "1.5")] == ["1.5"]
    assert chosen(everything, " ") == ()
