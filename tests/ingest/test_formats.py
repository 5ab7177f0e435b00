"""NIfTI, pictures, video and ultrasound."""

from __future__ import annotations

from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK
from PIL import Image
from pydicom.dataset import Dataset

from medxai.errors import GeometryError, IngestError
from medxai.ingest.nifti import read_nifti
from medxai.ingest.picture import read_picture
from medxai.ingest.ultrasound import read_image
from medxai.ingest.video import read_video
from tests.export.build import rotation, save_sources, ultrasound

SHAPE = (9, 7, 5)  # i, j, k


def _affine() -> np.ndarray:
    affine = np.eye(4)
    affine[:3, :3] = rotation(20, 30) @ np.diag([0.7, 1.1, 3.0])
    affine[:3, 3] = [10, -20, 30]
    return affine


@pytest.mark.parametrize("kind", [nibabel.Nifti1Image, nibabel.Nifti2Image])
@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_nifti_lies_where_simpleitk_puts_it(tmp_path: Path, kind: type, suffix: str) -> None:
    """LPS positions and values agree with an independent reader."""
    data = np.random.default_rng(0).normal(size=SHAPE).astype(np.float32)
    path = tmp_path / f"v{suffix}"
    nibabel.save(kind(data, _affine()), path)
    volume = read_nifti(path)
    if kind is nibabel.Nifti1Image:
        image = SimpleITK.ReadImage(str(path))
        for index in [(0, 0, 0), (8, 6, 4), (3, 5, 1)]:
            i, j, k = index
            assert np.allclose(
                (volume.affine @ [k, j, i, 1])[:3], image.TransformIndexToPhysicalPoint(index), atol=1e-4
            )
            assert volume.pixels[0, k, j, i] == pytest.approx(image[index])
    assert np.array_equal(volume.pixels[0], data.transpose(2, 1, 0))


def test_nifti_refusals(tmp_path: Path) -> None:
    """NaN, contradicting or absent orientation, four axes and damage, each with its own words."""
    data = np.zeros(SHAPE, dtype=np.float32)
    image = nibabel.Nifti1Image(data, _affine())
    moved = _affine()
    moved[0, 3] += 2
    image.set_sform(_affine(), 1)
    image.set_qform(moved, 1)
    nibabel.save(image, tmp_path / "disagree.nii")
    with pytest.raises(GeometryError, match=r"sform and qform disagree by up to 2.0 mm"):
        read_nifti(tmp_path / "disagree.nii")

    image = nibabel.Nifti1Image(data, _affine())
    image.set_sform(None, 0)
    image.set_qform(None, 0)
    nibabel.save(image, tmp_path / "nowhere.nii")
    with pytest.raises(GeometryError, match="neither sform nor qform"):
        read_nifti(tmp_path / "nowhere.nii")

    data[2, 3, 4] = np.nan
    nibabel.save(nibabel.Nifti1Image(data, _affine()), tmp_path / "nan.nii.gz")
    with pytest.raises(IngestError, match="1 NaN or infinite voxels"):
        read_nifti(tmp_path / "nan.nii.gz")

    nibabel.save(nibabel.Nifti1Image(np.zeros((3, 3, 3, 2), np.float32), _affine()), tmp_path / "four.nii")
    with pytest.raises(IngestError, match="one 3D volume"):
        read_nifti(tmp_path / "four.nii")

    whole = (tmp_path / "nan.nii.gz").read_bytes()
    (tmp_path / "cut.nii.gz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(IngestError, match="damaged"):
        read_nifti(tmp_path / "cut.nii.gz")
    (tmp_path / "text.nii").write_text("hello")
    with pytest.raises(IngestError, match="damaged"):
        read_nifti(tmp_path / "text.nii")


def test_pictures(tmp_path: Path) -> None:
    """Grey stays one channel, grey stored as colour becomes one, colour stays three, 16 bits are scaled."""
    grey = (np.arange(30 * 20) % 251).astype(np.uint8).reshape(30, 20)
    Image.fromarray(grey).save(tmp_path / "g.png")
    Image.fromarray(np.stack([grey] * 3, -1)).save(tmp_path / "rgb_grey.png")
    colour = np.stack([grey, grey[::-1], grey], -1)
    Image.fromarray(colour).save(tmp_path / "c.png")
    Image.fromarray(grey.astype(np.uint16) * 257).save(tmp_path / "deep.png")
    assert np.array_equal(read_picture(tmp_path / "g.png").pixels[0], grey)
    assert np.array_equal(read_picture(tmp_path / "rgb_grey.png").pixels, grey[None])
    assert np.array_equal(read_picture(tmp_path / "c.png").pixels, colour.transpose(2, 0, 1))
    assert np.allclose(read_picture(tmp_path / "deep.png").pixels[0], grey)
    (tmp_path / "broken.png").write_bytes((tmp_path / "c.png").read_bytes()[:60])
    with pytest.raises(IngestError, match="damaged"):
        read_picture(tmp_path / "broken.png")


@pytest.mark.parametrize(
    ("suffix", "codec"), [("mp4", "mpeg4"), ("avi", "mjpeg"), ("mov", "mpeg4"), ("mpeg", "mpeg2video")]
)
def test_video_frames(tmp_path: Path, suffix: str, codec: str) -> None:
    """Frame count, rate and brightness of a written clip come back."""
    av = pytest.importorskip("av", reason="PyAV (extra video) is not installed")
    path = tmp_path / f"clip.{suffix}"
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=25)
        stream.width, stream.height = 64, 48
        stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
        stream.bit_rate = 4_000_000
        for number in range(10):
            picture = np.full((48, 64, 3), 20 * number + 20, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    volume = read_video(path)
    assert volume.axes == "THW"
    assert volume.pixels.shape == (1, 10, 48, 64)
    assert volume.frame_seconds == pytest.approx(0.04)
    assert np.allclose(volume.pixels.mean((0, 2, 3)), 20 * np.arange(10) + 20, atol=4)
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(IngestError, match="damaged"):
        read_video(path)


def test_gif(tmp_path: Path) -> None:
    """Animated GIF is a cine."""
    pytest.importorskip("av", reason="PyAV (extra video) is not installed")
    frames = [Image.fromarray(np.full((20, 30), v, np.uint8)) for v in (0, 120, 240)]
    frames[0].save(tmp_path / "c.gif", save_all=True, append_images=frames[1:], duration=100)
    volume = read_video(tmp_path / "c.gif")
    assert volume.pixels.shape == (1, 3, 20, 30)


def test_ultrasound_regions_give_millimetres(tmp_path: Path) -> None:
    """The largest region in centimetres calibrates; without regions the image is uncalibrated and says so."""
    pixels = np.random.default_rng(0).integers(0, 255, (40, 50)).astype(np.float32)
    source = ultrasound(pixels)
    (path,) = save_sources([source], tmp_path)
    volume, notes = read_image(path, "s")
    assert not volume.calibrated
    assert any("pixels" in note for note in notes)
    region = Dataset()
    region.RegionLocationMinX0, region.RegionLocationMinY0 = 0, 0
    region.RegionLocationMaxX1, region.RegionLocationMaxY1 = 49, 39
    region.PhysicalUnitsXDirection = region.PhysicalUnitsYDirection = 3
    region.PhysicalDeltaX, region.PhysicalDeltaY = 0.02, 0.03
    source.SequenceOfUltrasoundRegions = [region]
    (path,) = save_sources([source], tmp_path)
    volume, _ = read_image(path, "s")
    assert volume.calibrated
    assert volume.spacing == pytest.approx((0, 0.3, 0.2))
    assert volume.axes == "HW"
    assert np.array_equal(volume.pixels[0], pixels)


def test_ultrasound_cine(tmp_path: Path) -> None:
    """Frames stay in order, with their time."""
    pixels = np.random.default_rng(0).integers(0, 255, (4, 20, 30)).astype(np.float32)
    (path,) = save_sources([ultrasound(pixels)], tmp_path)
    volume, _ = read_image(path, "s")
    assert volume.axes == "THW"
    assert np.array_equal(volume.pixels[0], pixels)
    assert volume.frame_seconds == pytest.approx(0.04)
    assert volume.frame_numbers == (1, 2, 3, 4)
