from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from medxai.errors import BundleError, MismatchError
from medxai.predict.bundle import AllowList, Bundle, load_bundle
from medxai.predict.infer import activate, check_fit, fuse_logits, make_prediction, predict
from medxai.prepare.prepare import prepare
from medxai.study import Volume
from tests.predict.build import BLOCK, tiny_bundle


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    path, _ = tiny_bundle(tmp_path_factory.mktemp("bundle"))
    return load_bundle(path, AllowList.of(path))


def volume(shape: tuple[int, int, int] = (12, 24, 20), modality: str = "CT", body_part: str = "CHEST") -> Volume:
    hu = np.random.default_rng(1).uniform(-1000, 400, size=(1, *shape)).astype(np.float32)
    affine = np.array([[0, 0, 3.0, 0], [0, 3.0, 0, 0], [3.0, 0, 0, 0], [0, 0, 0, 1]])
    return Volume(hu, "DHW", affine, modality, body_part=body_part)


LSE = BLOCK.model_copy(update={"labels": ("a", "b", "c"), "positive": (), "activation": "softmax", "temperature": 0.7})
MEAN = LSE.model_copy(update={"fusion": "mean"})


@pytest.mark.parametrize("spec", [LSE, MEAN], ids=["lse", "mean"])
@given(seed=st.integers(0, 10_000), n=st.integers(1, 9), scale=st.floats(0.01, 80))
@settings(deadline=None, max_examples=40)
def test_weights_are_the_derivative_of_the_fused_logit(spec: object, seed: int, n: int, scale: float) -> None:
    z = np.random.default_rng(seed).normal(size=(n, 3)) * scale
    fused, weights = fuse_logits(z.astype(np.float32), spec)  # type: ignore[arg-type]
    x = torch.tensor(z.astype(np.float32), dtype=torch.float64, requires_grad=True)
    expected = 0.7 * (torch.logsumexp(x / 0.7, dim=0) - np.log(n)) if spec is LSE else x.mean(dim=0)
    (gradient,) = torch.autograd.grad(expected.sum(), x)
    assert fused == pytest.approx(expected.detach().numpy(), rel=1e-5, abs=1e-5)
    assert weights == pytest.approx(gradient.numpy(), rel=1e-4, abs=1e-6)
    assert weights.sum(axis=0) == pytest.approx(1, abs=1e-5)


def test_one_window_with_a_finding_decides_for_a_single_logit() -> None:
    fused, weights = fuse_logits(np.array([[-6.0], [9.0], [-6.0], [-6.0]], np.float32), BLOCK)
    assert fused[1] == pytest.approx(9 - np.log(4), abs=1e-4)
    assert fused[0] == -fused[1]
    assert weights[1] == pytest.approx([1, 1], abs=1e-5)


def test_probabilities_are_those_of_the_network() -> None:
    assert activate(np.array([-2.0, 2.0], np.float32), BLOCK) == pytest.approx([1 / (1 + np.e**2), 1 / (1 + np.e**-2)])
    assert activate(np.array([1.0, 2.0, 900.0], np.float32), LSE) == pytest.approx([0, 0, 1])
    assert np.isfinite(activate(np.array([-900.0, 900.0], np.float32), BLOCK)).all()


def test_logits_that_do_not_fit_the_labels_are_an_error(bundle: Bundle) -> None:
    for shape in ((2, 4), (0, 3), (3,)):
        with pytest.raises(BundleError, match="labels"):
            fuse_logits(np.zeros(shape, np.float32), LSE)
    with pytest.raises(BundleError, match="labels"):
        fuse_logits(np.zeros((2, 1), np.float32), LSE)


def test_prediction_equals_a_loop_over_windows(bundle: Bundle) -> None:
    network = bundle.network()
    prepared = prepare(volume(), bundle.spec.preparation)
    assert prepared.pixels.shape == (1, 12, 24, 20)
    found = predict(bundle, network, prepared, batch_size=3)
    with torch.inference_mode():
        z = [
            float(network(torch.tensor(prepared.pixels[None, :, d : d + 8, h : h + 16, w : w + 16])))
            for d in (0, 4)
            for h in (0, 8)
            for w in (0, 4)
        ]
    assert found.window_logits is not None
    assert found.window_logits[:, 1] == pytest.approx(z, abs=1e-5)
    assert found.logits[1] == pytest.approx(np.log(np.mean(np.exp(z))), abs=1e-5)
    assert found.label == ("lesion" if found.logits[1] > 0 else "clean")
    assert found.probability == max(found.probabilities)
    assert found.model == "tiny 0.1.0"
    assert found.model_sha256 == bundle.sha256
    assert make_prediction(bundle, np.array(z, np.float32)[:, None]).probabilities == pytest.approx(found.probabilities)


def test_prediction_does_not_depend_on_the_batch_and_repeats(bundle: Bundle) -> None:
    network = bundle.network()
    prepared = prepare(volume(), bundle.spec.preparation)
    one, eight = (predict(bundle, network, prepared, batch_size=b) for b in (1, 8))
    assert one.logits == pytest.approx(eight.logits, abs=1e-5)
    assert predict(bundle, network, prepared, batch_size=8).logits.tobytes() == eight.logits.tobytes()


def test_lower_precision_stays_close(bundle: Bundle) -> None:
    network = bundle.network()
    prepared = prepare(volume(), bundle.spec.preparation)
    full, half = (predict(bundle, network, prepared, autocast=t) for t in (None, torch.bfloat16))
    assert half.logits == pytest.approx(full.logits, abs=0.05)
    assert half.logits.dtype == np.float32


def test_a_network_that_gives_nan_is_an_error(bundle: Bundle) -> None:
    network = bundle.network()
    with torch.no_grad():
        next(iter(network.parameters())).fill_(float("nan"))
    with pytest.raises(BundleError, match="NaN"):
        predict(bundle, network, prepare(volume(), bundle.spec.preparation))


def test_fitting_studies_pass(bundle: Bundle) -> None:
    check_fit(bundle, volume())
    check_fit(bundle, volume(modality="OT", body_part=""))
    check_fit(bundle, volume(body_part="chest"))
    check_fit(bundle, volume(body_part="HEAD"), force=True)


@pytest.mark.parametrize("force", [False, True])
def test_modality_and_dimension_are_never_forced(bundle: Bundle, force: bool) -> None:
    with pytest.raises(MismatchError, match="the study is MR"):
        check_fit(bundle, volume(modality="MR"), force=force)
    picture = Volume(np.zeros((1, 5, 6), np.float32), "HW", np.eye(4), "OT")
    with pytest.raises(MismatchError, match="single image"):
        check_fit(bundle, picture, force=force)
    with pytest.raises(MismatchError, match="a cine"):
        check_fit(bundle, replace(picture, pixels=np.zeros((1, 3, 5, 6), np.float32), axes="THW"), force=force)


def test_another_body_part_is_refused(bundle: Bundle) -> None:
    with pytest.raises(MismatchError, match="CHEST, the study shows HEAD"):
        check_fit(bundle, volume(body_part="HEAD"))


def test_a_refused_bundle_leaves_no_trace(tmp_path: Path) -> None:
    path, _ = tiny_bundle(tmp_path)
    before = sorted(p.name for p in path.rglob("*"))
    load_bundle(path, AllowList.of(path)).network()
    assert sorted(p.name for p in path.rglob("*")) == before
