"""Networks from elsewhere: brought to one shape, trained from scratch, refused in one sentence."""

from __future__ import annotations

import sys
import types
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import ltdd_ext
from ltdd.errors import UserError
from ltdd.models import build_model
from ltdd.models.external import adapt
from ltdd.models.observer import Observer


def small(num_classes: int, channels: int = 3) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(channels, 4, 3, padding=1),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(4, 5),
        nn.ReLU(),
        nn.Linear(5, num_classes),
    )


@pytest.fixture
def own_module(monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    module = types.ModuleType("own_networks")
    module.small = small
    monkeypatch.setitem(sys.modules, "own_networks", module)
    return module


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(
    ("name", "size", "features"),
    [("torchvision:resnet18", 32, 512), ("torchvision:mobilenet_v3_small", 32, 1024)],
)
def test_torchvision_networks_have_the_common_interface(
    name: str, size: int, features: int, channels: int
) -> None:
    net = build_model(name, 7, size, channels)
    assert net.training
    assert net.feature_dim == features
    images = torch.rand(2, channels, size, size, generator=torch.Generator().manual_seed(0))
    net.eval()
    with torch.no_grad():
        assert net.features(images).shape == (2, features)
        torch.testing.assert_close(net(images), net.classifier(net.features(images)))
    assert net(images).shape == (2, 7)


def test_features_are_what_enters_the_last_linear_layer() -> None:
    whole = small(3)
    images = torch.rand(4, 3, 8, 8)
    expected = whole.eval()(images)
    hidden = whole[:-1](images)
    net = adapt(whole, "small", 3, 8, 3).eval()
    assert net.head == "7"
    assert torch.equal(net.features(images), hidden)
    # The layer itself is kept, with the weights its author gave it.
    assert torch.equal(net(images), expected)


def test_a_factory_of_ones_own(own_module: types.ModuleType) -> None:
    net = build_model("python:own_networks:small", 3, 8, 1)
    assert net(torch.zeros(2, 1, 8, 8)).shape == (2, 3)
    assert net.feature_dim == 5


def test_a_factory_without_a_number_of_classes_is_not_called(
    own_module: types.ModuleType,
) -> None:
    called = []
    own_module.dangerous = lambda: called.append(1)
    with pytest.raises(UserError, match="a parameter num_classes, got dangerous with none"):
        build_model("python:own_networks:dangerous", 3, 8, 3)
    assert called == []


def raising(num_classes: int) -> nn.Module:
    raise KeyError("weights")


class Softened(nn.Module):
    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.network = small(num_classes)

    def forward(self, images: Tensor) -> Tensor:
        return self.network(images).softmax(1)


class Paired(Softened):
    def forward(self, images: Tensor) -> Any:
        return self.network(images), images


@pytest.mark.parametrize(
    ("factory", "said"),
    [
        (raising, "expected a network, got KeyError: 'weights'"),
        (lambda num_classes: 3, "expected an nn.Module, got a int"),
        (Softened, "got something else behind 'network.7'"),
        (Paired, r"expected logits \(N, 3\) from a network, got a tuple"),
        (lambda num_classes: small(num_classes + 1), r"logits \(N, 3\) .* got \(2, 4\)"),
        (lambda num_classes: small(num_classes, 1), r"for images \(3, 8, 8\), got RuntimeError"),
        (lambda num_classes: nn.Flatten(), r"logits \(N, 3\) .* got \(2, 192\)"),
        (
            lambda num_classes: nn.Sequential(
                nn.Conv2d(3, num_classes, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten()
            ),
            "got one without such a layer",
        ),
    ],
)
def test_what_is_no_classifier_is_refused(
    own_module: types.ModuleType, factory: Any, said: str
) -> None:
    own_module.factory = factory
    with pytest.raises(UserError, match=said):
        build_model("python:own_networks:factory", 3, 8, 3)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("torchvision:resnet19", r"torchvision's \d+ networks such as resnet18.*got 'resnet19'"),
        ("torchvision:fcn_resnet50", "got 'fcn_resnet50'"),  # it is there, for segmentation
        ("torchvision:squeezenet1_1", r"for images \(3, 8, 8\), got RuntimeError"),  # too small
        ("python:no_such_module:x", "got ModuleNotFoundError: No module named 'no_such_module'"),
        ("python:", "that can be imported"),
        ("python:torch:no_such_name", "got AttributeError"),
    ],
)
def test_names_that_lead_nowhere(name: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        build_model(name, 3, 8, 3)


def test_timm_is_an_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)  # an import of it fails
    with pytest.raises(UserError, match=r"expected the package timm, got none.*ltdd\[timm\]"):
        build_model("timm:resnet18", 3, 32, 3)


@pytest.mark.parametrize("name", ["resnet10t", "regnetx_002"])
def test_timm_networks_can_be_observed(name: str) -> None:
    timm = pytest.importorskip("timm")
    assert name in timm.list_models()
    net = build_model(f"timm:{name}", 4, 32, 1)
    # Their batch norm is a class of its own, which is measured beside it.
    with warnings.catch_warnings(record=True):
        warnings.simplefilter("always")
        recorder = Observer(net, ltdd_ext)
    logits, moments = recorder(torch.rand(2, 1, 32, 32))
    assert logits.shape == (2, 4)
    assert len(moments) == len(recorder.layers) > 5
    with pytest.raises(UserError, match=r"timm's .*got 'resnet19'"):
        build_model("timm:resnet19", 4, 32, 1)


@pytest.mark.parametrize("name", ["resnet50", "resnext50", "torchvision:mobilenet_v3_small"])
def test_moments_of_converted_networks_are_those_of_plain_hooks(name: str) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = build_model(name, 3, 16, 3).eval()
    seen: list[Tensor] = []
    layers = [m for m in net.modules() if isinstance(m, nn.BatchNorm2d)]
    handles = [m.register_forward_pre_hook(lambda _, x: seen.append(x[0])) for m in layers]
    images = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = net(images)
        for handle in handles:
            handle.remove()
        logits, moments = Observer(net, ltdd_ext)(images)
    torch.testing.assert_close(logits, expected, rtol=1e-3, atol=1e-4)
    assert len(moments) == len(layers)
    for rows, maps in zip(moments, map(Tensor.double, seen), strict=True):
        torch.testing.assert_close(rows.mean, maps.mean((2, 3)), rtol=1e-3, atol=1e-4)
        spread = maps.var((2, 3), correction=0)
        torch.testing.assert_close(rows.m2 / rows.spatial_size, spread, rtol=1e-3, atol=1e-4)


def test_a_batch_norm_used_twice_is_refused() -> None:
    norm = nn.BatchNorm2d(3)
    with pytest.raises(UserError, match=r"experts.observer: .* once per forward pass, got 2"):
        Observer(nn.Sequential(norm, norm), ltdd_ext)
