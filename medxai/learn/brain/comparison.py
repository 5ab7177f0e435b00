"""A fusion network on the simulated cohort, beside itself without each loss, without each modality, and shuffled.

Subjects are split by carrier: who is tested, who chooses the epoch and who is learnt from share nobody's recording.
Scaling is fitted on those that are learnt from.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from medxai.errors import SettingsError
from medxai.files import atomic_path, write_bytes
from medxai.learn.brain.settings import Arm, BrainSettings
from medxai.learn.pieces import finished, piece
from medxai.prepare.brain.scaling import Scaling
from medxai.prepare.brain.subject import MODALITIES

if TYPE_CHECKING:
    from medxai.learn.brain.train import Cases
    from medxai.networks.hierarchical_fusion import HierarchicalFusion
    from sample_cases.synthetic_brain import Planted, Simulated

Say = Callable[[str], None]
#: Weights of cross-entropy, functional-structural and dynamic-static alignment by arm; published in all others.
LOSSES = {
    "no_alignment": (0.8, 0.0, 0.0),
    "no_functional_structural": (0.8, 0.0, 0.1),
    "no_dynamic_static": (0.8, 0.1, 0.0),
}
#: Arms whose maps are measured.
EXPLAINED: tuple[Literal["full"], Literal["shuffled"]] = ("full", "shuffled")


@dataclass(frozen=True, eq=False)
class Cohort:
    """Simulated subjects of one seed, split and scaled.

    Attributes:
        subjects: all.
        planted: what is where.
        scaling: of those that are learnt from.
        rows: indices by ``train``, ``validation``, ``test``.
    """

    subjects: Sequence[Simulated]
    planted: Planted
    scaling: Scaling
    rows: dict[str, npt.NDArray[np.int64]]

    def cases(self, part: str, labels: npt.NDArray[np.int64] | None = None) -> Cases:
        """Inputs and labels of a part; `labels` of all subjects stand in for the true ones."""
        import torch

        from medxai.learn.brain.train import Cases

        rows = self.rows[part]
        inputs, present = self.scaling.inputs([self.subjects[i].features for i in rows])
        known = self.labels if labels is None else labels
        return Cases(inputs, present, torch.from_numpy(known[rows]))

    @property
    def labels(self) -> npt.NDArray[np.int64]:
        """``[N]`` 0 control, 1 patient."""
        return np.array([subject.label for subject in self.subjects])


def cohort(settings: BrainSettings, seed: int) -> Cohort:
    """Draw the subjects and split them; each seed tests other carriers.

    Raises:
        SettingsError: too few carriers for the three parts.
    """
    from sample_cases.synthetic_brain import Planted, hcp_carriers, simulate, synthetic_carriers

    options = settings.cohort
    carriers = hcp_carriers(options.carriers) if options.carriers else synthetic_carriers(options.synthetic)
    if len(carriers) < options.test + 3:
        msg = f"{len(carriers)} carriers are too few for {options.test} that are tested, one that chooses and two more"
        raise SettingsError(msg, study=str(options.carriers or "synthetic"))
    planted = Planted()
    subjects = simulate(carriers, options.subjects, options.seed, planted)
    names = [carrier.name for carrier in carriers]
    index = np.array([names.index(subject.carrier) for subject in subjects])
    place = (index - options.test * seed) % len(carriers)
    parts = np.where(place < options.test, "test", np.where(place == options.test, "validation", "train"))
    rows = {part: np.flatnonzero(parts == part) for part in ("train", "validation", "test")}
    scaling = Scaling.fit([subjects[i].features for i in rows["train"]], by=settings.cohort.scaling)
    return Cohort(subjects, planted, scaling, rows)


def modalities(arm: Arm) -> tuple[str, ...]:
    """What the network of an arm sees."""
    return tuple(name for name in MODALITIES if arm != f"without_{name}")


def folder(settings: BrainSettings, arm: Arm, seed: int) -> Path:
    """Where a training keeps its files."""
    return settings.output / f"seed_{seed}" / arm


def relevant(settings: BrainSettings, arm: Arm) -> dict[str, Any]:
    """Settings on which a training depends."""
    stated = settings.model_dump(mode="json")
    names = ["cohort", "network", "training", *(["maps"] if arm in EXPLAINED else [])]
    return {name: stated[name] for name in names}


def result(settings: BrainSettings, arm: Arm, seed: int) -> dict[str, Any] | None:
    """What a finished training found; None before.

    Raises:
        SettingsError: it was made with other settings.
    """
    return finished(folder(settings, arm, seed), relevant(settings, arm))


def build(settings: BrainSettings, arm: Arm) -> HierarchicalFusion:
    """The untrained network of an arm."""
    from medxai.networks.hierarchical_fusion import HierarchicalFusion

    return HierarchicalFusion(2, modalities(arm), **settings.network.model_dump())


def evidence(settings: BrainSettings, arm: Arm, seed: int, say: Say) -> dict[str, Any] | None:
    """Evidence by effect of a trained arm, or what was found before; None while another process is at it."""

    def do() -> dict[str, Any]:
        from safetensors.torch import load_file

        from medxai.learn.brain.planted import evidence_by_effect

        network = build(settings, arm)
        network.load_state_dict(load_file(folder(settings, arm, seed) / "model.safetensors"))
        return {"evidence": evidence_by_effect(network.eval(), cohort(settings, seed))}

    return piece(folder(settings, arm, seed) / "evidence", relevant(settings, arm), do, say)


def run(settings: BrainSettings, arm: Arm, seed: int, say: Say) -> dict[str, Any] | None:
    """Train and measure one arm, or return what was found before; None while another process is at it."""
    made = piece(folder(settings, arm, seed), relevant(settings, arm), lambda: _train(settings, arm, seed, say), say)
    if made is not None and arm in EXPLAINED:
        evidence(settings, arm, seed, say)
    return made


def _train(settings: BrainSettings, arm: Arm, seed: int, say: Say) -> dict[str, Any]:
    import torch
    from safetensors.torch import save

    from medxai.learn.brain.planted import measure
    from medxai.learn.brain.train import FusionRecipe, fit_fusion, predict

    drawn = cohort(settings, seed)
    labels = drawn.labels
    if arm == "shuffled":
        labels = shuffled(drawn, seed)
    target = folder(settings, arm, seed)
    torch.manual_seed(seed)
    network = build(settings, arm)
    weights = LOSSES.get(arm, (0.8, 0.1, 0.1))
    recipe = FusionRecipe(**settings.training.model_dump(), weights=weights, seed=seed)
    fit_fusion(
        network,
        drawn.cases("train", labels),
        drawn.cases("validation", labels),
        recipe,
        checkpoint=target / "train.ckpt",
        progress=lambda epoch, epochs, loss, held: say(
            f"seed_{seed}/{arm}: epoch {epoch}/{epochs} loss {loss:.3f}, validation {held:.3f}"
        ),
    )
    test = drawn.cases("test")
    logits = predict(network, test)
    write_bytes(target / "model.safetensors", save({k: v.contiguous() for k, v in network.state_dict().items()}))
    drawn.scaling.write(target / "scaling.safetensors")
    with atomic_path(target / "logits.npy") as temporary:
        np.save(temporary, logits)
    found: dict[str, Any] = score(test.labels.numpy(), logits) | {"arm": arm, "seed": seed, "subjects": len(test)}
    if arm in EXPLAINED:
        found["maps"] = measure(network, drawn, settings.maps, target, say)
    (target / "train.ckpt").unlink(missing_ok=True)
    return found


def shuffled(drawn: Cohort, seed: int) -> npt.NDArray[np.int64]:
    """``[N]`` labels that say nothing of the true ones: of each class of each carrier half are called patients.

    A plain permutation of few subjects agrees with the truth a little by chance, and effects that separate perfectly
    are then learnt all the same.
    """
    random, labels = np.random.default_rng([seed, 53]), drawn.labels
    carriers = np.array([subject.carrier for subject in drawn.subjects])
    found = np.zeros_like(labels)
    for carrier in np.unique(carriers):
        for label in np.unique(labels):
            mine = np.flatnonzero((carriers == carrier) & (labels == label))
            found[random.permutation(mine)[: len(mine) // 2]] = 1
    return found


def score(labels: npt.NDArray[np.int64], logits: npt.NDArray[np.float32]) -> dict[str, float]:
    """AUROC, accuracy, sensitivity, specificity and F1 of two classes; the larger logit decides."""
    from sklearn.metrics import f1_score, roc_auc_score

    margin = logits[:, 1] - logits[:, 0]
    said = (margin > 0).astype(int)
    return {
        "auroc": float(roc_auc_score(labels, margin)),
        "accuracy": float((said == labels).mean()),
        "sensitivity": float(said[labels == 1].mean()),
        "specificity": float(1 - said[labels == 0].mean()),
        "f1": float(f1_score(labels, said)),
    }
