from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from medxai.errors import BundleError
from medxai.predict.build import build_network, check_definition
from medxai.predict.bundle import SHIPPED, AllowList, bundle_sha256, find_bundles, load_bundle
from medxai.predict.bundle_kind import has_block
from medxai.predict.bundle_spec import Metadata, read_metadata
from medxai.predict.check import inspect_bundle, verify_bundle
from medxai.predict.fusion_bundle import load_fusion
from medxai.predict.nuclei_bundle import load_nuclei
from tests.predict.build import tiny_bundle


def edit(path: Path, name: str, change: Callable[[dict[str, Any]], object]) -> None:
    file = path / "configs" / name
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))


class Exploit:
    """Would run a command when unpickled."""

    def __init__(self, proof: Path) -> None:
        self.proof = proof

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return (os.system, (f"touch {self.proof}",))


def test_a_written_bundle_comes_back_the_same(tmp_path: Path) -> None:
    path, network = tiny_bundle(tmp_path)
    bundle = load_bundle(path, AllowList.of(path))
    again = bundle.network()
    x = torch.randn(2, 1, 8, 16, 16)
    with torch.inference_mode():
        assert torch.equal(again(x), network(x))
    assert not again.training
    assert not any(p.requires_grad for p in again.parameters())
    assert (bundle.name, bundle.version, bundle.spec.labels) == ("tiny", "0.1.0", ("clean", "lesion"))
    assert verify_bundle(path) == []


def test_the_hash_covers_configs_and_models_and_nothing_else(tmp_path: Path) -> None:
    path, _ = tiny_bundle(tmp_path)
    before = bundle_sha256(path)
    (path / "docs" / "README.md").write_text("other words")
    assert bundle_sha256(path) == before
    edit(path, "inference.json", lambda c: c.update(bundle_root=".."))
    assert bundle_sha256(path) != before
    os.symlink("/etc/hostname", path / "models" / "more.bin")
    with pytest.raises(BundleError, match="link out of the bundle"):
        bundle_sha256(path)


def test_a_changed_bundle_is_refused_with_both_hashes(tmp_path: Path) -> None:
    path, _ = tiny_bundle(tmp_path)
    allow = AllowList.of(path)
    weights = path / "models" / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(bytes(data))
    with pytest.raises(BundleError) as caught:
        load_bundle(path, allow)
    assert allow.hashes["tiny"][0][:12] in str(caught.value)
    assert bundle_sha256(path)[:12] in str(caught.value)


def test_a_bundle_that_nobody_listed_is_refused(tmp_path: Path) -> None:
    path, _ = tiny_bundle(tmp_path)
    with pytest.raises(BundleError, match="not on the allow-list"):
        load_bundle(path)
    joined = AllowList.shipped().joined(AllowList.of(path))
    assert load_bundle(path, joined).name == "tiny"


def test_an_allow_list_of_another_form_is_refused(tmp_path: Path) -> None:
    for text in ('{"a": "b"}', "[]", "{", '{"a": [1]}'):
        (tmp_path / "allow.json").write_text(text)
        with pytest.raises(BundleError, match="allow-list"):
            AllowList.read(tmp_path / "allow.json")


def test_a_pickle_with_code_is_refused_and_not_run(tmp_path: Path) -> None:
    path, _ = tiny_bundle(tmp_path)
    (path / "models" / "model.safetensors").unlink()
    proof = tmp_path / "proof"
    torch.save({"state_dict": {"w": Exploit(proof)}}, path / "models" / "model.pt")
    with pytest.raises(BundleError, match="holds code"):
        build_network(path)
    assert not proof.exists()
    assert any("holds code" in problem for problem in verify_bundle(path))


def test_a_plain_state_dict_in_a_pt_file_is_read(tmp_path: Path) -> None:
    path, network = tiny_bundle(tmp_path)
    (path / "models" / "model.safetensors").unlink()
    for content in (network.state_dict(), {"model": network.state_dict()}):
        torch.save(content, path / "models" / "model.pt")
        assert build_network(path) is not None


@pytest.mark.parametrize(
    "definition",
    [
        {"_target_": "os.system", "command": "true"},
        {"_target_": "builtins.eval", "source": "1"},
        {"_target_": "monai.networks.nets.densenet.torch.hub.load"},
        {"_target_": "monai.networks.nets.densenet.load_state_dict_from_url"},
        {"_target_": "medxai.networks.efficientnet_lite.imagenet_state"},
        {"_target_": "monai.networks.nets.DenseNet121", "spatial_dims": "$__import__('os').getpid()"},
        {"_target_": "monai.networks.nets.DenseNet121", "spatial_dims": "@dims"},
        {"_target_": "monai.networks.nets.DenseNet121", "spatial_dims": "%configs/metadata.json"},
        {"_target_": "monai.networks.nets.DenseNet121", "act": ["$print(1)"]},
        {"_target_": "monai.networks.nets.DenseNet121", "norm": {"_target_": "os.getcwd"}},
        {"_target_": "monai.networks.nets.DenseNet121", "_mode_": "debug"},
        {"_target_": "monai.networks.nets.DenseNet121", "_requires_": "@evil"},
        {"_target_": "monai.networks.nets.DenseNet121", "pretrained": True},
        {"_target_": 3},
        {"spatial_dims": "$1"},
    ],
)
def test_definitions_that_could_run_code_are_refused(tmp_path: Path, definition: dict[str, Any]) -> None:
    path, _ = tiny_bundle(tmp_path)
    edit(path, "inference.json", lambda c: c.update(network_def=definition, evil="$print(2)", dims=3))
    with pytest.raises(BundleError) as caught:
        build_network(path)
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith("bundle tiny: ")


def test_a_monai_network_is_accepted() -> None:
    check_definition({"_target_": "monai.networks.nets.DenseNet121", "spatial_dims": 3, "in_channels": 1})
    check_definition({"_target_": "monai.networks.nets.ResNet", "block": "basic", "layers": [1, 1, 1, 1]})


def test_a_site_may_allow_code(tmp_path: Path) -> None:
    path, network = tiny_bundle(tmp_path)
    edit(path, "inference.json", lambda c: c["network_def"].update(layers="$2 - 1"))
    with pytest.raises(BundleError, match="needs code"):
        load_bundle(path, AllowList.of(path)).network()
    allowed = load_bundle(path, AllowList.of(path), allow_code=True).network()
    assert set(allowed.state_dict()) == set(network.state_dict())


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda m: m.pop("medxai"), "no block 'medxai'"),
        (lambda m: m["medxai"].pop("labels"), r"medxai\.labels"),
        (lambda m: m["medxai"].update(activation="argmax"), r"medxai\.activation"),
        (lambda m: m["medxai"].update(surprise=1), r"medxai\.surprise"),
        (lambda m: m["medxai"].update(positive=["cancer"]), "positive names"),
        (lambda m: m["medxai"].update(labels=["a", "a"], positive=[]), "distinct"),
        (lambda m: m["medxai"].update(temperature=0), r"medxai\.temperature"),
        (lambda m: m["medxai"]["preparation"].update(window=[8, 8]), r"medxai\.preparation"),
        (lambda m: m["medxai"].update(labels=["clean", "cyst"], positive=[]), "disagree"),
        (lambda m: m.pop("network_data_format"), "network_data_format"),
    ],
)
def test_wrong_metadata_gives_one_line(tmp_path: Path, change: Callable[[dict[str, Any]], object], words: str) -> None:
    path, _ = tiny_bundle(tmp_path)
    edit(path, "metadata.json", change)
    with pytest.raises(BundleError, match=words) as caught:
        load_bundle(path, AllowList.of(path))
    assert "\n" not in str(caught.value)


def test_foreign_metadata_keys_are_kept(tmp_path: Path) -> None:
    path, _ = tiny_bundle(tmp_path)
    edit(path, "metadata.json", lambda m: m.update(changelog={"0.1.0": "first"}))
    metadata = read_metadata(path / "configs" / "metadata.json")
    assert Metadata.model_validate(metadata.model_dump()) == metadata
    assert metadata.model_dump()["changelog"] == {"0.1.0": "first"}


def test_verification_names_every_problem(tmp_path: Path) -> None:
    path, _ = tiny_bundle(tmp_path)
    (path / "LICENSE").unlink()
    shutil.rmtree(path / "docs")
    edit(path, "metadata.json", lambda m: m["medxai"].update(target_layer="features.nowhere"))
    edit(path, "metadata.json", lambda m: m.update(intended_use=""))
    problems = " / ".join(verify_bundle(path))
    for word in ("README.md", "LICENSE", "features.nowhere", "intended_use"):
        assert word in problems


def test_weights_of_another_network_are_a_problem(tmp_path: Path) -> None:
    path, _ = tiny_bundle(tmp_path)
    edit(path, "inference.json", lambda c: c["network_def"].update(growth_rate=6))
    assert any("do not fit" in problem for problem in verify_bundle(path))
    (path / "models" / "model.safetensors").write_bytes(b"short")
    assert any("damaged" in problem for problem in verify_bundle(path))


def test_an_unknown_name_or_folder_is_an_error_that_helps(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"shipped are .*phantom_ct"):
        load_bundle("phantom_mr")
    with pytest.raises(BundleError, match="not found"):
        load_bundle(tmp_path / "nothing")


@pytest.mark.parametrize("name", sorted(find_bundles()))
def test_shipped_bundles_are_listed_load_and_verify(name: str) -> None:
    path = SHIPPED / name
    if has_block(path, "medxai_nuclei"):
        load_nuclei(name)
    else:
        (load_fusion if has_block(path, "medxai_fusion") else load_bundle)(name)
    assert verify_bundle(path) == []
    about = inspect_bundle(path)
    assert json.loads(json.dumps(about)) == about
    assert about["sha256"] == bundle_sha256(path)
    assert about["weights_bytes"] < 20e6
    card = (path / "docs" / "README.md").read_text()
    for word in ("Research", "## Limits", "## Split"):
        assert word in card
    assert re.search(r"^(python -m medxai\.learn\.|medxai )train \w+|^medxai brain train", card, re.MULTILINE)


def test_every_shipped_bundle_has_a_hash_and_every_hash_a_bundle() -> None:
    assert set(AllowList.read(SHIPPED / "allow.json").hashes) == set(find_bundles())


def test_monai_reads_the_bundle_as_its_own(tmp_path: Path) -> None:
    import nibabel
    from monai.bundle import ConfigParser

    path, network = tiny_bundle(tmp_path)
    (path / "images").mkdir()
    hu = np.full((20, 18, 12), -500, dtype=np.int16)
    nibabel.save(nibabel.Nifti1Image(hu, np.diag([3.0, 3.0, 3.0, 1.0])), path / "images" / "a.nii.gz")
    parser = ConfigParser()
    parser.read_config(path / "configs" / "inference.json")
    parser.read_meta(path / "configs" / "metadata.json")
    parser["bundle_root"] = str(path)
    parser.get_parsed_content("initialize")
    case = parser.get_parsed_content("dataset")[0]["image"]
    assert case.shape == (1, 8, 16, 16)
    assert torch.allclose(case.as_tensor(), torch.tensor(500 / 1400))
    built = parser.get_parsed_content("network")
    with torch.inference_mode():
        ours = network(case.as_tensor()[None].float())
        assert torch.allclose(built(case.as_tensor()[None].float().to(next(built.parameters()).device)).cpu(), ours)
