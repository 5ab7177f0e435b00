"""Brain tumours on eleven T1 images: tiles with or without tumour, and how far the kind of tumour can be told.

Eleven images are too few to train a classifier of kinds on. What can be asked is whether a tile shows tumour, with
whole images held out; and, image by image, whether a linear rule on ImageNet features tells the kind.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from medxai.errors import SettingsError
from medxai.files import write_text
from medxai.ingest.picture import read_picture
from medxai.learn.breast_us import SPEC
from medxai.learn.loop import Recipe
from medxai.learn.tile_folds import Question, cross_validate
from medxai.learn.tiles import Cut, tiles_of
from medxai.learn.transfer import Transfer, fresh_network
from medxai.predict.augment import Augmentation
from medxai.prepare.prepare import prepare

FOLDER = "mr_brain_tumor_brisc"
#: Colour channel of the mask -> kind.
KINDS = ("pituitary", "glioma", "meningioma")
CUT = Cut(size=128, step=64, tumour_from=0.06, clean_below=0.0, darkest=25)
QUESTION = Question(
    name="brain_tumour",
    modality="MR",
    body_part="BRAIN",
    data="11 T1 images of BRISC 2025 (CC BY 4.0), in tiles of 128 pixels.",
    licence="CC-BY-4.0",
    how=Transfer(
        classes=2,
        recipe=Recipe(epochs=5, batch_size=32, learning_rate=1e-3, label_smoothing=0.05, average=0.97, seed=61),
        augmentation=Augmentation(flip_axes=(1,), rotate_degrees=20, scale=0.15, gain=0.2, offset=0.1),
        copies=2,
    ),
    folds=2,
)


def train(data: Path, work: Path, say: Callable[[str], None]) -> list[Path]:
    """Train the folds of tiles and leave one image out for the kind; see `medxai.learn.tile_folds`."""
    folders = cross_validate(QUESTION, tiles_of(data / FOLDER, CUT), work, say)
    right, count, most = kinds_left_out(data)
    say(f"kind of tumour, one image left out: {right} of {count} right; the commonest kind alone gives {most}")
    words = {"right": right, "images": count, "commonest": most}
    write_text(work / QUESTION.name / "kinds.json", json.dumps(words, indent=2) + "\n")
    return folders


def kinds_left_out(data: Path) -> tuple[int, int, int]:
    """Images whose kind is told by a linear rule that was fitted without them.

    Logistic regression on the averaged last features of the ImageNet network.

    Returns:
        How many are right, images, and images of the commonest kind.

    Raises:
        SettingsError: the folder holds no images with masks.
    """
    from PIL import Image
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    network = fresh_network(2, QUESTION.how.recipe.seed)
    features, kinds = [], []
    for mask in sorted((data / FOLDER).glob("*_mask.png")):
        with Image.open(mask) as image:
            kinds.append(int(np.asarray(image.convert("RGB")).reshape(-1, 3).sum(0).argmax()))
        x = torch.from_numpy(prepare(read_picture(mask.with_name(mask.name.replace("_mask", "")), "MR"), SPEC).pixels)
        with torch.inference_mode():
            x = network._swish(network._bn0(network._conv_stem(network._conv_stem_padding(x[None]))))
            x = network._act_head(network._bn1(network._conv_head(network._conv_head_padding(network._blocks(x)))))
        features.append(x.mean((2, 3))[0].numpy())
    if not kinds:
        msg = f"no image with a mask in {FOLDER}; --data must hold it"
        raise SettingsError(msg)
    x_all, y = np.stack(features), np.array(kinds)
    right = 0
    for number in range(len(y)):
        kept = np.arange(len(y)) != number
        rule = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=1000))
        right += int(rule.fit(x_all[kept], y[kept]).predict(x_all[number : number + 1])[0] == y[number])
    return right, len(y), int(np.bincount(y).max())
