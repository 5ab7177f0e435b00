"""ImageNet weights for a new question: early stages frozen and run once, the later ones trained on their output."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from medxai.learn.breast_us import FROZEN_STAGES, SIZE, Tail
from medxai.learn.loop import Recipe, fit, settle_norms
from medxai.networks.efficientnet_lite import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    EfficientNetLite0,
    imagenet_state,
    load_imagenet,
)
from medxai.predict.augment import Augmentation, augment

Say = Callable[[str], None]
FloatArray = npt.NDArray[np.float32]
HalfArray = npt.NDArray[np.float16]


@dataclass(frozen=True)
class Transfer:
    """How a network is made from ImageNet weights.

    Attributes:
        classes: logits.
        recipe: of the trained stages.
        augmentation: of the images, before the frozen stages.
        copies: augmented copies of every image.
        fill: prepared value of what augmentation brings in.
    """

    classes: int
    recipe: Recipe
    augmentation: Augmentation
    copies: int = 4
    fill: float = -IMAGENET_MEAN / IMAGENET_STD


def fresh_network(classes: int, seed: int) -> EfficientNetLite0:
    """A network with ImageNet weights but for its last layer, in eval mode."""
    torch.manual_seed(seed)
    network = EfficientNetLite0(classes, image_size=SIZE)
    load_imagenet(network, imagenet_state())
    return network.to(memory_format=torch.channels_last).eval()  # type: ignore[no-any-return]


def early_features(images: FloatArray, how: Transfer) -> HalfArray:
    """Outputs ``[copies, N, 40, 28, 28]`` of the frozen stages for augmented copies of ``images [N, 3, 224, 224]``."""
    network = fresh_network(how.classes, how.recipe.seed)
    found = np.empty((how.copies, len(images), 40, SIZE // 8, SIZE // 8), dtype=np.float16)
    for copy in range(how.copies):
        generator = torch.Generator().manual_seed(how.recipe.seed * 1000 + copy)
        for start in range(0, len(images), 32):
            batch = augment(torch.tensor(images[start : start + 32]), how.augmentation, generator, fill=how.fill)
            with torch.inference_mode():
                x = network._conv_stem_padding(batch.contiguous(memory_format=torch.channels_last))
                x = network._swish(network._bn0(network._conv_stem(x)))
                for stage in list(network._blocks)[:FROZEN_STAGES]:
                    x = stage(x)
            found[copy, start : start + 32] = x.numpy()
    return found


def train_tail(
    features: HalfArray, labels: Sequence[int], how: Transfer, checkpoint: Path, say: Say
) -> EfficientNetLite0:
    """Train the later stages and return the whole network in eval mode; resumable.

    Args:
        features: ``[copies, N, 40, 28, 28]`` of `early_features`.
        labels: class of each image.
        how: classes and recipe.
        checkpoint: file that is resumed from.
        say: told after every epoch.
    """
    network = fresh_network(how.classes, how.recipe.seed)

    def sample(positions: Sequence[int], generator: torch.Generator) -> torch.Tensor:
        copies = torch.randint(0, len(features), (len(positions),), generator=generator).numpy()
        picked = torch.from_numpy(features[copies, list(positions)].astype(np.float32))
        return picked.contiguous(memory_format=torch.channels_last)

    def settling() -> Iterator[torch.Tensor]:
        generator = torch.Generator().manual_seed(how.recipe.seed)
        for _ in range(2):
            order = torch.randperm(len(labels), generator=generator).tolist()
            for start in range(0, len(labels) - how.recipe.batch_size + 1, how.recipe.batch_size):
                yield sample(order[start : start + how.recipe.batch_size], generator)

    tail = Tail(network)
    fit(
        tail,
        sample,
        labels,
        how.recipe,
        checkpoint=checkpoint,
        progress=lambda epoch, epochs, loss: say(f"{checkpoint.stem}: epoch {epoch}/{epochs} loss {loss:.3f}"),
    )
    settle_norms(tail, settling())
    network.eval()
    return network


def logits_of(network: EfficientNetLite0, images: FloatArray) -> FloatArray:
    """Logits ``[N, K]`` of prepared images."""
    rows = []
    with torch.inference_mode():
        for start in range(0, len(images), 32):
            batch = torch.tensor(images[start : start + 32]).contiguous(memory_format=torch.channels_last)
            rows.append(network(batch).numpy())
    found: FloatArray = np.concatenate(rows)
    return found
