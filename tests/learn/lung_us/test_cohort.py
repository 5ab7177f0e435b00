from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from medxai.errors import SettingsError
from medxai.learn.lung_us.cohort import (
    CLASSES,
    FINDINGS,
    UNINFORMATIVE,
    class_indices,
    read_negatives,
    read_recordings,
)
from tests.tools import require_data

HEADER = "path,label,kind,source_group,licence,frames,width,height,patient,framerate," + ",".join(FINDINGS)


def table(folder: Path, *rows: str, header: str = HEADER) -> Path:
    (folder / "us_lung").mkdir()
    (folder / "us_lung" / "labels.csv").write_text("\n".join([header, *rows]) + "\n")
    return folder


def test_a_row_becomes_a_recording(tmp_path: Path) -> None:
    data = table(
        tmp_path,
        "covid/a.mp4,covid,video,clinic,CC BY 4.0,40,320,240,7,29.97,0,1,,0,1",
        "v/b.gif,viral_pneumonia,video,atlas,CC BY 4.0,5,64,64,8,10,,,,,",
        "c/c.jpg,healthy,image,atlas,CC BY 4.0,1,64,64,9,25,,,,,",
    )
    clip, viral, still = read_recordings(data)
    assert (clip.path, clip.patient, clip.size, clip.frame_rate) == (
        "us_lung/covid/a.mp4",
        "us_lung:7",
        (240, 320),
        29.97,
    )
    # What nobody filled in is unknown, not absent.
    assert clip.findings == {
        "effusion": False,
        "consolidations": True,
        "a_lines": False,
        "pleural_irregularities": True,
    }
    assert still.frame_rate is None
    assert class_indices([clip, viral, still]) == [0, -1, 2]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("a.mp4,flu,video,c,l,4,64,64,7,10,,,,,", "line 2: class 'flu'"),
        ("a.mp4,covid,video,c,l,4,64,64, ,10,,,,,", "line 2: needs a kind .* and a patient"),
        ("a.mp4,covid,film,c,l,4,64,64,7,10,,,,,", "line 2: needs a kind"),
        ("a.mp4,covid,video,c,l,4,64,64,7,fast,,,,,", "line 2: frames, width, height and framerate"),
        ("a.mp4,covid,video,c,l,4,64,64,7,0,,,,,", "frame rate above 0"),
        ("a.mp4,covid,video,c,l,0,64,64,7,10,,,,,", "at least one frame"),
    ],
)
def test_a_row_that_cannot_be_used_is_named(tmp_path: Path, row: str, message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        read_recordings(table(tmp_path, row))


def test_tables_that_are_absent_incomplete_or_repeat_a_file_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"us_lung/labels\.csv not found"):
        read_recordings(tmp_path)
    row = "a.mp4,covid,video,c,l,4,64,64,7,10,,,,,"
    data = table(tmp_path, row, row)
    with pytest.raises(SettingsError, match="a file twice"):
        read_recordings(data)
    (data / "us_lung" / "labels.csv").write_text("path,label\n")
    with pytest.raises(SettingsError, match=r"lacks the columns .*'patient'"):
        read_recordings(data)


def test_negatives_need_an_output_of_their_own(tmp_path: Path) -> None:
    (tmp_path / "us_breast_busi").mkdir()
    (tmp_path / "MANIFEST.csv").write_text(
        "path,format,licence\nhisto_ocdc/1_r2c3.jpg,jpg,x\nhisto_ocdc/1_r9c9.jpg,jpg,x\n"
        "ct_covid_infection_2d/images_1.png,png,x\nct_covid_infection_2d/masks_1.png,png,x\nus_dicom/a.dcm,dicom,x\n"
    )
    rows = "".join(f"benign/{i}.png,{i // 2},64,48\n" for i in range(20))
    (tmp_path / "us_breast_busi" / "labels.csv").write_text("path,duplicate_group,width,height\n" + rows)
    found = read_negatives(tmp_path, breast=4)
    assert found == read_negatives(tmp_path, breast=4)
    assert found != read_negatives(tmp_path, breast=4, seed=1)
    breast = [r for r in found if r.source_group == "us_breast_busi"]
    assert len(breast) == len({r.patient for r in breast}) == 4
    # A source without patients is one group; masks and the images kept for rejection are no negatives.
    assert Counter(r.patient for r in found if r not in breast) == {"histo_ocdc": 2, "ct_covid_infection_2d": 1}
    assert class_indices(found, uninformative=True) == [3] * len(found)
    with pytest.raises(SettingsError, match="uninformative is none of"):
        class_indices(found)


@pytest.mark.data
def test_the_real_table_has_the_stated_counts() -> None:
    data = require_data("us_lung").parent
    recordings = read_recordings(data)
    assert len(recordings) == 136
    assert Counter(r.kind for r in recordings) == {"video": 108, "image": 28}
    assert Counter(r.label for r in recordings) == {
        "healthy": 65,
        "bacterial_pneumonia": 49,
        "covid": 20,
        "viral_pneumonia": 2,
    }
    assert len({r.patient for r in recordings}) == 95
    # Twenty-four clips of four healthy people: a split by file would leak.
    few = [r for r in recordings if r.source_group in {"pat1", "pat2", "pat3", "pat4"}]
    assert len(few) == 24
    assert len({r.patient for r in few}) == 4
    assert all((data / r.path).is_file() for r in recordings)
    assert sum(not r.findings for r in recordings) == 4
    assert set(class_indices(recordings)) == {-1, *range(len(CLASSES))}


@pytest.mark.data
def test_real_negatives_exist_and_share_no_patient_with_the_lungs() -> None:
    data = require_data("us_breast_busi").parent
    negatives = read_negatives(data)
    assert Counter(r.source_group for r in negatives) == {
        "us_breast_busi": 60,
        "mr_brain_tumor_brisc": 11,
        "ct_covid_infection_2d": 4,
        "histo_camelyon": 16,
        "histo_ocdc": 10,
    }
    assert all((data / r.path).is_file() for r in negatives)
    assert not {r.patient for r in negatives} & {r.patient for r in read_recordings(data)}
    assert {r.label for r in negatives} == {UNINFORMATIVE}
