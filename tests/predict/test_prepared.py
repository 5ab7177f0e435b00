from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

# Not importorskip, which would import it together with its telemetry.
if find_spec("openvino") is None:
    pytest.skip("needs the extra 'prepared'", allow_module_level=True)

from medxai.cli import app
from medxai.errors import BundleError
from medxai.explain import preparing
from medxai.explain.preparing import Fidelity, Rounding, compare, measure_rounding, prepare
from medxai.explain.replay import ReplayPlan, plan_replay
from medxai.networks.densenet3d import TARGET_LAYER, SmallDenseNet3d
from medxai.predict import prepared as module
from medxai.predict.bundle import AllowList, load_bundle
from medxai.predict.openvino_engine import processor_runs, split_batch
from medxai.predict.prepared import MANIFEST, Prepared, load_prepared, network_sha256, prepared_folder
from tests.predict.build import tiny_bundle

SHAPE = (1, 8, 16, 16)
GOOD = Fidelity(stem_error=1e-6, logit_error=1e-6, map_error=1e-6, correlation=1.0, decisions=1.0, inputs=3)


@pytest.fixture(scope="module")
def network() -> SmallDenseNet3d:
    torch.manual_seed(3)
    made = SmallDenseNet3d(num_classes=2, init_features=4, growth_rate=4, layers=1)
    made.class_layers.score.bias.data.normal_()
    return made.eval()


@pytest.fixture(scope="module")
def stored(network: SmallDenseNet3d, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Prepared]:
    folder = tmp_path_factory.mktemp("prepared")
    x = torch.randn(3, *SHAPE, generator=torch.Generator().manual_seed(1))
    return folder, prepare(network, x[:1], TARGET_LAYER, folder, batch=4, samples=x, name="tiny")


@pytest.fixture
def load(
    network: SmallDenseNet3d, stored: tuple[Path, Prepared], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> Callable[..., tuple[Prepared | None, str]]:
    """Loads a copy of the stored folder after a change; returns what came out and the log."""
    folder, prepared = stored
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())

    def run(change: Callable[[Path], None] | None = None, **given: object) -> tuple[Prepared | None, str]:
        if change:
            change(tmp_path)
        allow = given.pop("allow", AllowList({"tiny/prepared": (prepared.sha256,)}))
        stated = {"name": "tiny", "sha256": network_sha256(network)} | given
        with caplog.at_level(logging.INFO, logger="medxai"):
            return load_prepared(tmp_path, allow, **stated), caplog.text  # type: ignore[arg-type]

    return run


def test_stem_and_whole_are_those_of_the_network_for_any_batch(
    network: SmallDenseNet3d, load: Callable[..., tuple[Prepared | None, str]]
) -> None:
    prepared, log = load()
    assert prepared is not None
    assert not log
    assert (prepared.layer, prepared.precision) == (TARGET_LAYER, "float32")
    assert ReplayPlan.from_json(prepared.plan).values == (TARGET_LAYER,)
    for size in (1, 2, 3, 4, 5, 11):
        x = torch.randn(size, *SHAPE)
        with torch.no_grad():
            logits = network(x)
            activation = network.class_layers.relu(network.features(x))
        whole, stem = prepared.whole(x), prepared.stem(x)
        assert list(stem) == [TARGET_LAYER]
        torch.testing.assert_close(whole, logits, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(stem[TARGET_LAYER], activation, rtol=1e-4, atol=1e-5)
        assert torch.equal(prepared.whole(x), whole)
    first, second = (prepared.whole(torch.full((1, *SHAPE), value)) for value in (0.0, 1.0))
    assert not torch.equal(first, second)  # results do not share memory
    assert compare(network, prepared, torch.randn(2, *SHAPE)).refusal("float32") is None


def test_describe_is_plain(stored: tuple[Path, Prepared]) -> None:
    folder, prepared = stored
    described = json.loads(json.dumps(prepared.describe()))
    assert described["name"] == "tiny"
    assert described["measured"]["map_error"] <= 1e-4
    assert described["measured"]["map_seconds_network"] > 0
    assert sorted(path.name for path in folder.iterdir()) == sorted([*described["files"], MANIFEST])


def test_another_size_is_refused_not_guessed(stored: tuple[Path, Prepared]) -> None:
    prepared = stored[1]
    x = torch.zeros(1, 1, 8, 16, 8)
    assert not prepared.fits(x)
    assert prepared.fits(torch.zeros(7, *SHAPE))
    with pytest.raises(BundleError, match="prepared for inputs"):
        prepared.whole(x)
    with pytest.raises(BundleError, match="prepared for inputs"):
        prepared.stem(torch.zeros(0, *SHAPE))


def _flip(name: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        content = bytearray((folder / name).read_bytes())
        content[len(content) // 2] ^= 1
        (folder / name).write_bytes(content)

    return change


@pytest.mark.parametrize("name", ["stem.xml", "stem.bin", "whole.xml", "whole.bin"])
def test_a_changed_file_is_not_used(name: str, load: Callable[..., tuple[Prepared | None, str]]) -> None:
    found, log = load(_flip(name))
    assert found is None
    assert f"prepared tiny is not used: {name} was changed or damaged" in log


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (_flip(MANIFEST), "changed or damaged, not loaded"),
        (lambda folder: (folder / "whole.bin").unlink(), "whole.bin is missing"),
        (lambda folder: (folder / MANIFEST).unlink(), "not prepared in this folder"),
    ],
)
def test_a_broken_folder_is_not_used(
    change: Callable[[Path], None], reason: str, load: Callable[..., tuple[Prepared | None, str]]
) -> None:
    found, log = load(change)
    assert found is None
    assert reason in log


def test_what_the_site_does_not_allow_is_not_used(load: Callable[..., tuple[Prepared | None, str]]) -> None:
    found, log = load(allow=AllowList({}))
    assert found is None
    assert "bundle tiny/prepared is not on the allow-list" in log


def test_another_bundle_version_is_not_used(load: Callable[..., tuple[Prepared | None, str]]) -> None:
    found, log = load(sha256="0" * 64)
    assert found is None
    assert "another version of the bundle" in log


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("backend_version", lambda: "openvino 1.0", "made with backend"),
        ("processor_sha256", lambda: "0", "another kind of processor"),
        ("processor_runs", lambda _precision: False, "another kind of processor"),
    ],
)
def test_other_software_or_machine_is_not_used(
    name: str,
    value: Callable[..., object],
    reason: str,
    load: Callable[..., tuple[Prepared | None, str]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, name, value)
    found, log = load()
    assert found is None
    assert reason in log


def test_another_torch_is_not_used(
    load: Callable[..., tuple[Prepared | None, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module.torch, "__version__", "2.0.0")
    found, log = load()
    assert found is None
    assert "made with torch" in log


def test_a_model_that_does_not_compile_is_not_used(stored: tuple[Path, Prepared], tmp_path: Path) -> None:
    prepared = stored[1]
    files = dict(prepared._files) | {"stem.xml": b"<net/>"}
    hashes = {name: module.hashlib.sha256(content).hexdigest() for name, content in files.items()}
    digest = module.store_prepared(tmp_path, prepared.manifest.model_copy(update={"files": hashes}), files)
    allow = AllowList({"tiny/prepared": (digest,)})
    assert load_prepared(tmp_path, allow, name="tiny", sha256=prepared.manifest.sha256) is None


@pytest.mark.parametrize(
    ("change", "precision", "said"),
    [
        ({}, "float32", None),
        ({"map_error": 2e-4}, "float32", "relative error of the map 2.0e-04"),
        ({"stem_error": float("nan")}, "float32", "relative error"),
        ({"map_error": 1e-2, "correlation": 0.9991}, "bfloat16", None),
        ({"correlation": 0.9989}, "bfloat16", "correlate by 0.99890"),
        ({"correlation": 0.9989}, "float32", "correlate by 0.99890"),
        ({"correlation": float("nan")}, "bfloat16", "correlate by nan"),
        ({"decisions": 0.5}, "bfloat16", "50% of the inputs are decided otherwise"),
    ],
)
def test_limits_of_fidelity(change: dict[str, float], precision: str, said: str | None) -> None:
    refusal = replace(GOOD, **change).refusal(precision)  # type: ignore[arg-type]
    assert refusal is None if said is None else said in (refusal or "")


@pytest.mark.parametrize(
    ("error", "own", "said"),
    [
        (3e-3, 2e-3, None),  # two roundings, each 2e-3 from the truth
        (5e-3, 2e-3, "relative error of the map 5.0e-03, allowed is 4.0e-03"),
        (2e-4, 1e-6, "allowed is 1.0e-04"),
        (1e-3, float("nan"), "relative error"),
    ],
)
def test_nothing_need_be_nearer_than_rounding(error: float, own: float, said: str | None) -> None:
    refusal = replace(GOOD, map_error=error).refusal("float32", Rounding(0.0, 0.0, own))
    assert refusal is None if said is None else said in (refusal or "")


class _Edge(torch.nn.Module):
    """Beyond the layer lie units at zero up to rounding: their gradient is there or not."""

    def __init__(self, strength: float) -> None:
        super().__init__()
        self.strength = strength
        self.layer = torch.nn.Conv2d(1, 2, 1, bias=False)
        with torch.no_grad():
            self.layer.weight.copy_(torch.tensor([0.1, 1.0]).view(2, 1, 1, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        a = self.layer(x)
        edge = (a[:, :1] - self.layer.weight[0, 0] * x).relu()
        score = (a[:, 1:] + self.strength * edge).flatten(1).sum(1)
        return torch.stack([score, -score], 1)


def test_rounding_of_a_unit_near_zero_is_found() -> None:
    x = torch.rand(1, 1, 8, 8, generator=torch.Generator().manual_seed(0)) + 0.5
    for strength, low, high in ((0.0, 0.0, 1e-6), (1.0, 1e-3, 10.0)):
        network = _Edge(strength).eval()
        found = measure_rounding(network, plan_replay(network, x, "layer"), x)
        assert found.stem < 1e-6
        assert low <= found.map < high


def test_an_unfaithful_network_is_not_stored(
    network: SmallDenseNet3d, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    exact = preparing.convert
    monkeypatch.setattr(
        preparing, "convert", lambda net, x: exact(net, x + 0) if net is network else exact(_Off(net), x)
    )
    with pytest.raises(BundleError, match="not prepared in float32: relative error"):
        prepare(network, torch.randn(1, *SHAPE), TARGET_LAYER, tmp_path)
    assert not list(tmp_path.iterdir())


class _Off(torch.nn.Module):
    def __init__(self, stem: torch.nn.Module) -> None:
        super().__init__()
        self.stem = stem

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return tuple(value * 1.001 for value in self.stem(x))


def test_bfloat16_asks_for_samples_and_a_processor(
    network: SmallDenseNet3d, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    x = torch.randn(1, *SHAPE)
    with pytest.raises(BundleError, match="give samples"):
        prepare(network, x, TARGET_LAYER, tmp_path, precision="bfloat16")
    monkeypatch.setattr(preparing, "processor_runs", lambda _precision: False)
    with pytest.raises(BundleError, match="does not compute in bfloat16"):
        prepare(network, x, TARGET_LAYER, tmp_path, precision="bfloat16", samples=x)


def test_bfloat16_is_close(network: SmallDenseNet3d, tmp_path: Path) -> None:
    if not processor_runs("bfloat16"):
        pytest.skip("this processor does not compute in bfloat16")
    x = torch.randn(2, *SHAPE, generator=torch.Generator().manual_seed(1))
    prepared = prepare(network, x[:1], TARGET_LAYER, tmp_path, precision="bfloat16", samples=x)
    with torch.no_grad():
        logits = network(x)
    assert 0 < float((prepared.whole(x) - logits).abs().max()) < 0.05 * float(logits.abs().max())


@given(count=st.integers(1, 200), batch=st.integers(1, 40))
def test_runs_cover_a_batch_once(count: int, batch: int) -> None:
    runs = split_batch(count, batch)
    assert sum(real for _, real in runs) == count
    assert all(size in (1, batch) and 1 <= real <= size for size, real in runs)
    assert sum(size - real for size, real in runs) <= batch // 2


def test_folder_lies_in_the_bundle_or_in_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    path, _ = tiny_bundle(tmp_path)
    own = load_bundle(path, AllowList.of(path))
    assert prepared_folder(own, "float32") == path / "prepared" / "float32"
    shipped = load_bundle("phantom_ct")
    assert prepared_folder(shipped, "bfloat16").is_relative_to(tmp_path / "cache" / "medxai")


def test_nothing_is_reported_to_anybody(tmp_path: Path) -> None:
    code = (
        "import sys, torch; from torch import nn;"
        "from medxai.predict.openvino_engine import Engine, convert;"
        "x = torch.zeros(1, 3); Engine(*convert(nn.Linear(3, 2), x), (3,), 1, 'float32')(x);"
        "assert 'openvino_telemetry' not in sys.modules;"
        "from openvino.tools.ovc import telemetry_utils;"
        "print(telemetry_utils.tm.__name__)"
    )
    home = os.environ | {"HOME": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path / "cache")}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=home)
    assert done.stdout.strip() == "openvino.tools.ovc.telemetry_stub"
    assert not (tmp_path / "intel").exists()  # where the telemetry keeps its identifier


def test_command_prepares_and_allows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from typer.testing import CliRunner

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    path, _ = tiny_bundle(tmp_path)
    allow = tmp_path / "allow.json"
    allow.write_text(json.dumps(AllowList.of(path).hashes))
    done = CliRunner().invoke(app, ["bundle", "prepare", str(path), "--batch", "2", "--allow", str(allow)])
    assert done.exit_code == 0, done.output
    assert "one Grad-CAM" in done.output
    assert "on noise: correlation of maps 1.0" in done.output
    trusted = AllowList.read(allow)
    bundle = load_bundle(path, trusted)
    found = load_prepared(prepared_folder(bundle), trusted, name=bundle.name, sha256=bundle.sha256)
    assert found is not None
    assert found.manifest.batch == 2
    refused = CliRunner().invoke(app, ["bundle", "prepare", str(path), "--precision", "int4", "--allow", str(allow)])
    assert isinstance(refused.exception, BundleError)


def test_a_chunk_is_at_least_one_batch(stored: tuple[Path, Prepared], network: SmallDenseNet3d,
                                       monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    from medxai.explain import chunk
    from medxai.explain.inputs import as_inputs
    from medxai.explain.split import Forward

    forward, inputs = Forward(network, prepared=stored[1]), as_inputs(torch.zeros(2, *SHAPE))
    assert chunk.plan_chunk(forward, inputs) % 4 == 0
    monkeypatch.setattr(chunk, "_free", lambda _device: 1.0)
    assert chunk.plan_chunk(forward, inputs) == 4
    monkeypatch.setattr(chunk, "_LARGEST", 1)
    assert chunk.plan_chunk(forward, inputs) == 4


def test_a_chunk_of_an_eager_network_stays_in_the_cache(network: SmallDenseNet3d) -> None:
    """Tensors beyond it come from fresh memory each time, and a batch would be slower than its images one by one."""
    from medxai.explain import chunk
    from medxai.explain.inputs import as_inputs
    from medxai.explain.split import Forward

    widest = []
    for layer in network.modules():
        if not list(layer.children()):
            layer.register_forward_hook(lambda _m, given, out: widest.append(4 * (given[0].numel() + out.numel())))
    inputs = as_inputs(torch.zeros(2, *SHAPE))
    found = chunk.plan_chunk(Forward(network), inputs)
    limit = chunk._CACHED * torch.get_num_threads()
    assert found == chunk._LARGEST or found * max(widest) <= limit < (found + 1) * max(widest)
    torch.set_num_threads(1)
    assert chunk.plan_chunk(Forward(network), inputs) <= found


@pytest.mark.parametrize("masking", ["zero", "mean", "blur"])
def test_windows_are_removed_without_making_images(
    stored: tuple[Path, Prepared], network: SmallDenseNet3d, masking: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A prepared network is given boxes; the maps are those of the images, and of the network itself."""
    from medxai.explain import explain
    from medxai.explain.masking.masker import Masker
    from medxai.predict import local_changes

    monkeypatch.setattr(local_changes, "_MOVE", 0.0)
    monkeypatch.setattr(local_changes, "_STEP", 0.005)
    x = torch.randn(2, *SHAPE, generator=torch.Generator().manual_seed(4))
    options = {"occlusion": {"window": [7, 5, 6], "stride": [6, 5, 4]}}
    call = partial(explain, x=x, methods="occlusion", options=options, masking=masking)
    fresh = Prepared(stored[1].manifest, stored[1]._files)
    plain = call(network)[0].raw
    with monkeypatch.context() as patch:
        patch.setattr(Masker, "images", None)  # would fail
        boxes = call(network, prepared=fresh)[0].raw
    assert torch.allclose(boxes, plain, atol=1e-4 * float(plain.abs().max()))
    monkeypatch.setattr(Prepared, "replaced", lambda *_given: None)
    images = call(network, prepared=fresh)[0].raw
    assert torch.allclose(boxes, images, atol=1e-4 * float(plain.abs().max()))


def test_layers_are_found_in_the_network_itself(stored: tuple[Path, Prepared], network: SmallDenseNet3d) -> None:
    """A compiled network has no modules to watch: the automatic choice is the same with it and without."""
    from medxai.explain import explain

    x = torch.randn(2, *SHAPE, generator=torch.Generator().manual_seed(4))
    methods = ("gradcam", "layercam_fusion", "refinecam")
    plain = explain(network, x, methods=methods)
    compiled = explain(network, x, methods=methods, prepared=stored[1])
    assert [item.layer for item in compiled] == [item.layer for item in plain]
    for one, other in zip(plain, compiled, strict=True):
        assert torch.allclose(one.map, other.map, atol=1e-5 * float(one.map.abs().max()))
