"""Weights from files: both formats, both ways of naming, strict, safe, classes in any order."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn
from torchvision.models import mobilenet_v2, resnet18, shufflenet_v2_x0_5

from ltdd.engine.storage.files import write_tensors
from ltdd.errors import UserError
from ltdd.models import Network, build_model
from ltdd.models.weights import load_weights, read_weights

NAMES = ("cat", "dog", "eel")


@pytest.fixture(scope="module")
def trained() -> Network:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return build_model("convnet3_bn", 3, 8, 3).eval()


def fresh() -> Network:
    return build_model("convnet3_bn", 3, 8, 3).eval()


IMAGES = torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def save(path: Path, tensors: dict[str, Tensor], names: Any = None) -> Path:
    if path.suffix == ".safetensors":
        metadata = {} if names is None else {"class_names": json.dumps(names)}
        safetensors.torch.save_file(tensors, path, metadata)
    else:
        torch.save(tensors if names is None else tensors | {"class_names": names}, path)
    return path


@pytest.mark.parametrize("suffix", ["safetensors", "pt", "pth"])
def test_both_formats_give_the_same_network(trained: Network, tmp_path: Path, suffix: str) -> None:
    file = save(tmp_path / f"weights.{suffix}", trained.state_dict())
    network = fresh()
    assert not torch.equal(network(IMAGES), trained(IMAGES))
    load_weights(network, read_weights(file), NAMES)
    assert torch.equal(network(IMAGES), trained(IMAGES))


def test_the_hash_is_that_of_the_file(trained: Network, tmp_path: Path) -> None:
    first = read_weights(save(tmp_path / "a.pt", trained.state_dict())).sha256
    changed = trained.state_dict()
    changed["classifier.bias"] = changed["classifier.bias"] + 1
    assert read_weights(save(tmp_path / "b.pt", changed)).sha256 != first


@pytest.mark.parametrize("wrapper", ["state_dict", "model"])
def test_what_training_scripts_wrap_around_is_taken_off(
    trained: Network, tmp_path: Path, wrapper: str
) -> None:
    state = {f"module.{name}": value for name, value in trained.state_dict().items()}
    torch.save({"epoch": 3, wrapper: state, "class_names": list(NAMES)}, tmp_path / "w.pt")
    network, weights = fresh(), read_weights(tmp_path / "w.pt")
    assert weights.class_names == NAMES
    load_weights(network, weights, NAMES)
    assert torch.equal(network(IMAGES), trained(IMAGES))


@pytest.mark.parametrize(
    ("name", "side"),
    [
        ("resnet18", 32),
        ("torchvision:resnet18", 32),
        ("mobilenet_v2", 96),
        ("shufflenet_v2_05", 96),
    ],
)
def test_weights_of_torchvisions_own_network(tmp_path: Path, name: str, side: int) -> None:
    makers = {"mobilenet_v2": mobilenet_v2, "shufflenet_v2_05": shufflenet_v2_x0_5}
    original = makers.get(name, resnet18)(num_classes=3).eval()
    if name == "resnet18":  # its small stem
        original.conv1, original.maxpool = nn.Conv2d(3, 64, 3, 1, 1, bias=False), nn.Identity()
    file = save(tmp_path / "network.pth", original.state_dict())
    network = build_model(name, 3, side, 3).eval()
    load_weights(network, read_weights(file), NAMES)
    images = torch.rand(2, 3, side, side)
    with torch.no_grad():
        torch.testing.assert_close(network(images), original(images))


@pytest.mark.parametrize("suffix", ["safetensors", "pt"])
def test_another_order_of_classes_is_undone(trained: Network, tmp_path: Path, suffix: str) -> None:
    file = save(tmp_path / f"w.{suffix}", trained.state_dict(), ["eel", "cat", "dog"])
    network = fresh()
    load_weights(network, read_weights(file), NAMES)
    torch.testing.assert_close(network(IMAGES), trained(IMAGES)[:, [1, 2, 0]])


def test_the_class_map_comes_before_what_the_file_says(trained: Network, tmp_path: Path) -> None:
    file = save(tmp_path / "w.safetensors", trained.state_dict(), ["eel", "cat", "dog"])
    for content in (["dog", "cat", "eel"], {"class_names": ["dog", "cat", "eel"], "more": 1}):
        class_map = tmp_path / "map.json"
        class_map.write_text(json.dumps(content))
        network = fresh()
        load_weights(network, read_weights(file, class_map), NAMES)
        torch.testing.assert_close(network(IMAGES), trained(IMAGES)[:, [1, 0, 2]])


def without(name: str) -> Callable[[dict[str, Any]], dict[str, Any]]:
    return lambda state: {k: v for k, v in state.items() if k != name}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (without("body.0.1.bias"), r"expected body.0.1.bias of shape \(128,\), got none"),
        (lambda s: s | {"fc_cb.weight": torch.zeros(1)}, "alone, got fc_cb.weight too"),
        (
            lambda s: s | {"classifier.weight": torch.zeros(10, 128)},
            r"expected classifier.weight of shape \(3, 128\), got shape \(10, 128\)",
        ),
        (lambda s: {"fc.weight": torch.zeros(3, 512)}, r"expected 0.0.weight of shape .*got none"),
        (lambda s: s | {"class_names": ["cat", "dog", "fox"]}, "3 classes; 'eel' is not among"),
        (lambda s: s | {"class_names": ["cat", "dog"]}, "got 2 classes; 'eel' is not among"),
        (lambda s: s | {"class_names": [*NAMES, "fox"]}, "'fox' is not among those of the data"),
        (lambda s: s | {"class_names": ["cat", "cat", "eel"]}, "each class once"),
        (lambda s: s | {"class_names": [1, 2, 3]}, "expected a list of class names in"),
        (lambda s: s | {"lr": 0.1}, "got a float under 'lr'"),
        (lambda s: torch.zeros(3), "expected a dict of weights"),
        (lambda s: {1: torch.zeros(3)}, "expected a dict of weights"),
    ],
)
def test_what_does_not_fit_is_named(
    trained: Network, tmp_path: Path, change: Any, said: str
) -> None:
    torch.save(change(trained.state_dict()), tmp_path / "w.pt")
    network = fresh()
    before = network(IMAGES)
    with pytest.raises(UserError, match=said):
        load_weights(network, read_weights(tmp_path / "w.pt"), NAMES)
    assert torch.equal(network(IMAGES), before)


class Hostile:
    def __reduce__(self) -> Any:
        return Path.touch, (Path(__file__).with_name("touched"),)


def test_nothing_is_unpickled(tmp_path: Path) -> None:
    file = tmp_path / "hostile.pt"
    torch.save({"classifier.weight": Hostile()}, file)
    with pytest.raises(UserError, match=r"weights that torch.load\(weights_only=True\) accepts"):
        read_weights(file)
    file.write_bytes(pickle.dumps(Hostile()))
    with pytest.raises(UserError, match="weights_only"):
        read_weights(file)
    assert not Path(__file__).with_name("touched").exists()


@pytest.mark.parametrize("name", ["w.pt", "w.safetensors"])
def test_damaged_and_missing_files(tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError, match=r"cannot read|expected a safetensors file"):
        read_weights(tmp_path / name)
    (tmp_path / name).write_bytes(b"not weights")
    with pytest.raises(UserError, match=r"expected .* in .*w\."):
        read_weights(tmp_path / name)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "expected JSON with class names"),
        ("[]", "expected a list of class names"),
        ('{"names": []}', "expected a list of class names"),
        ('"cat"', "expected a list of class names"),
    ],
)
def test_class_maps_that_are_none(trained: Network, tmp_path: Path, text: str, said: str) -> None:
    file = save(tmp_path / "w.pt", trained.state_dict())
    (tmp_path / "map.json").write_text(text)
    with pytest.raises(UserError, match=said):
        read_weights(file, tmp_path / "map.json")
    with pytest.raises(UserError, match=r"cannot read .*none.json"):
        read_weights(file, tmp_path / "none.json")


def test_a_stored_expert_of_a_run_is_a_weights_file(trained: Network, tmp_path: Path) -> None:
    write_tensors(
        tmp_path / "experts.safetensors", trained.state_dict(), {"key": "0", "meta": "{}"}
    )
    network = fresh()
    load_weights(network, read_weights(tmp_path / "experts.safetensors"), NAMES)
    assert torch.equal(network(IMAGES), trained(IMAGES))
