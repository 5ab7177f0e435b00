"""Rank architectures without training: how like a teacher they relate samples and classes at random weights.

DisWOT (Dong et al., CVPR 2023). Relation: the Gram matrix of the samples by the features before pooling. Semantics:
per class the Gram matrix of the channels by the gradient of the classifier's weights. Both with rows
of unit length; the score is minus the squared distances, 0 for a network against itself, the larger the better.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from medxai.networks.covidnet3d import Architecture, CovidNet3d, initialise


@dataclass(frozen=True, eq=False)
class Signature:
    """What a network at random weights makes of a batch.

    Attributes:
        relation: ``[B, B]`` Gram matrix of the samples, rows of unit length.
        semantics: ``[K, C]`` gradient of the classifier's weights.
    """

    relation: Tensor
    semantics: Tensor


def signature(network: CovidNet3d, inputs: Tensor, labels: Tensor) -> Signature:
    """One forward and the gradient of the last layer; batch normalisation by the batch, no dropout."""
    network.train()
    with torch.no_grad():
        features = network.tail(network.stages(network.stem(inputs)))
        pooled = network.pool(features).flatten(1)
    weight = network.classifier.weight.detach().requires_grad_()
    loss = functional.cross_entropy(functional.linear(pooled, weight, network.classifier.bias.detach()), labels)
    (gradient,) = torch.autograd.grad(loss, [weight])
    flat = features.flatten(1)
    return Signature(functional.normalize(flat @ flat.T, dim=1), gradient)


def score(teacher: Signature, student: Signature) -> float:
    """Likeness of two signatures of the same batch, at most 0.

    The channel matrix of a class is of rank one: its row ``i`` is ``sign(w_i) w / |w|``, so that the distance of two of
    them follows from the cosine of the vectors and the signs alone.
    """
    relation = -float((teacher.relation - student.relation).square().sum()) / len(teacher.relation) ** 2
    t, s = teacher.semantics.double(), student.semantics.double()
    cosine = functional.cosine_similarity(t, s, dim=1)
    signs_t, signs_s = t.sign(), s.sign()
    rows = signs_t.square().sum(1) + signs_s.square().sum(1)
    distance = rows - 2 * cosine * (signs_t * signs_s).sum(1)
    return relation - float(distance.clamp_min(0).sum()) / t.numel()


def random_network(architecture: Architecture, num_classes: int, seed: int) -> CovidNet3d:
    """A network with Gaussian weights that depend on the seed alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = CovidNet3d.of(architecture, num_classes)
        initialise(network, share=1.0)  # shortcuts that begin alone would hide the operations
        for module in network.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, 0, module.in_features**-0.5)
    return network


def rank(
    architectures: Sequence[Architecture],
    teacher: Architecture,
    inputs: Tensor,
    labels: Tensor,
    num_classes: int,
    seeds: Sequence[int] = (0,),
) -> list[float]:
    """Mean score of each architecture over seeds; teacher and students have other random weights.

    Args:
        architectures: candidates.
        teacher: a large one of the same space.
        inputs: one batch ``[B, C, D, H, W]``.
        labels: its classes.
        num_classes: logits.
        seeds: of the random weights.
    """
    totals = [0.0] * len(architectures)
    for seed in seeds:
        reference = signature(random_network(teacher, num_classes, 1000 + seed), inputs, labels)
        for number, architecture in enumerate(architectures):
            totals[number] += score(
                reference, signature(random_network(architecture, num_classes, seed), inputs, labels)
            )
    return [total / len(seeds) for total in totals]
