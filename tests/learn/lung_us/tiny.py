"""A data folder as the training reads it, of a few small clips and pictures whose stripes tell the class."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from medxai.learn.lung_us.cohort import CLASSES, FINDINGS

_SIDE = 40


def stripes(kind: int, random: np.random.Generator) -> np.ndarray:
    pixels = random.integers(0, 60, (_SIDE, _SIDE + 8)).astype(np.uint8)
    pixels[:, :: kind + 2] += 150
    return pixels


def data_folder(folder: Path, patients: int = 12, frames: int = 4) -> Path:
    """Write clips of `patients` patients, a still of every fourth, a viral clip, and pictures of something else."""
    random = np.random.default_rng(0)
    lines = ["path,label,kind,source_group,licence,frames,width,height,patient,framerate," + ",".join(FINDINGS)]
    (folder / "us_lung").mkdir(parents=True)

    def clip(name: str, kind: int) -> None:
        pictures = [Image.fromarray(stripes(kind, random)) for _ in range(frames)]
        pictures[0].save(folder / "us_lung" / name, save_all=True, append_images=pictures[1:], duration=500, loop=0)

    for i in range(patients):
        label = CLASSES[i % 3]
        clip(f"{i}.gif", i % 3)
        flags = ",".join("1" if (i // 3) % 2 == f % 2 else "0" for f in range(len(FINDINGS)))
        lines.append(f"{i}.gif,{label},video,clinic{i % 2},CC BY 4.0,{frames},48,40,{i},2,{flags}")
        if i % 4 == 0:
            Image.fromarray(stripes(i % 3, random)).save(folder / "us_lung" / f"{i}.png")
            lines.append(f"{i}.png,{label},image,atlas,CC BY-NC -SA 4.0,1,48,40,{i},,,,,,")
    clip("viral.gif", 1)
    lines.append(f"viral.gif,viral_pneumonia,video,atlas,CC BY 4.0,{frames},48,40,v,2,,,,,")
    (folder / "us_lung" / "labels.csv").write_text("\n".join(lines) + "\n")

    manifest = ["path,format,licence"]
    for name in ("mr_brain_tumor_brisc", "histo_ocdc"):
        (folder / name).mkdir()
        Image.fromarray(random.integers(0, 255, (_SIDE, _SIDE), dtype=np.uint8)).save(folder / name / "a.png")
        manifest.append(f"{name}/a.png,png,CC BY 4.0")
    (folder / "MANIFEST.csv").write_text("\n".join(manifest) + "\n")
    (folder / "us_breast_busi").mkdir()
    rows = ["path,duplicate_group,width,height"]
    for i in range(4):
        Image.fromarray(random.integers(100, 255, (_SIDE, _SIDE), dtype=np.uint8)).save(
            folder / "us_breast_busi" / f"{i}.png"
        )
        rows.append(f"{i}.png,{i},40,40")
    (folder / "us_breast_busi" / "labels.csv").write_text("\n".join(rows) + "\n")
    return folder
