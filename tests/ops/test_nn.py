"""convert_observer: the same outputs, moments and gradients as the network with hooks."""

from __future__ import annotations

import copy
import warnings
from types import SimpleNamespace

import pytest
import torch
import torchvision
from ops.cases import relative_error
from torch import Tensor, nn

import ltdd_ext
from ltdd.models import build_model
from ltdd_ext import reference
from ltdd_ext._convolution import Convolution
from ltdd_ext.nn import FusedBatchNorm, convert_observer


def settle(model: nn.Module) -> nn.Module:
    """Give every batch norm its own statistics and coefficients, as training would."""
    generator = torch.Generator().manual_seed(0)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor, low in (
                (module.running_mean, -0.5),
                (module.running_var, 0.5),
                (module.weight, 0.5),
                (module.bias, -0.5),
            ):
                if tensor is not None:
                    tensor.data = low + torch.rand(tensor.shape, generator=generator)
    return model.eval().requires_grad_(False)


def small(name: str, image_size: int = 32) -> nn.Module:
    return build_model(name, num_classes=10, image_size=image_size, channels=3)


NETWORKS = {
    "convnet3_bn": lambda: small("convnet3_bn"),
    "convnet4_bn": lambda: small("convnet4_bn", 64),
    "resnet18": lambda: small("resnet18"),
    "resnet32": lambda: small("resnet32"),
    "wrn16_2": lambda: small("wrn16_2", 16),
    "mobilenet_v2": lambda: small("mobilenet_v2", 16),
    "shufflenet_v2_05": lambda: small("shufflenet_v2_05", 16),
    "torchvision-resnet18": lambda: torchvision.models.resnet18(num_classes=10),
    "torchvision-resnet50": lambda: torchvision.models.resnet50(num_classes=10),
    "torchvision-vgg11_bn": lambda: torchvision.models.vgg11_bn(num_classes=10),
    "torchvision-densenet": lambda: torchvision.models.DenseNet(8, (2, 2), 16, num_classes=10),
}


def with_hooks(model: nn.Module, x: Tensor) -> tuple[Tensor, list[tuple[Tensor, Tensor]]]:
    seen = {}
    layers = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    handles = [
        layer.register_forward_pre_hook(
            lambda module, inputs: seen.__setitem__(module, reference.row_moments(inputs[0]))
        )
        for layer in layers
    ]
    output = model(x)
    for handle in handles:
        handle.remove()
    return output, [seen[layer] for layer in layers]


@pytest.mark.parametrize("name", NETWORKS)
def test_agrees_with_the_unconverted_network(name):
    """In float64: in float32 a value near zero may pass one ReLU and not the other."""
    torch.manual_seed(1)
    model = settle(NETWORKS[name]()).double()
    side = 64 if "torchvision" in name or "4" in name else 32
    x = torch.randn(2, 3, side, side, dtype=torch.float64, requires_grad=True)
    want, want_moments = with_hooks(model, x)
    want_loss = want.square().mean() + sum(m2.mean() + mean.sum() for mean, m2 in want_moments)
    (want_grad,) = torch.autograd.grad(want_loss, x)

    observed = convert_observer(model, strict=True)
    got, moments = observed(x)
    loss = got.square().mean() + sum(one.m2.mean() + one.mean.sum() for one in moments)
    (grad,) = torch.autograd.grad(loss, x)
    assert observed.fused == observed.layers
    assert relative_error(got.detach(), want.detach()) <= 1e-9
    for one, (mean, m2) in zip(moments, want_moments, strict=True):
        assert relative_error(one.mean.detach(), mean.detach()) <= 1e-9
        assert relative_error(one.m2.detach(), m2.detach()) <= 1e-9
    assert relative_error(grad, want_grad) <= 1e-9


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "norms"),
    [
        ("resnet50", 53),
        ("resnext50_32x4d", 53),
        ("vgg16_bn", 13),
        ("mobilenet_v2", 52),
        ("densenet121", 121),
    ],
)
def test_published_networks(name, norms):
    torch.manual_seed(1)
    model = settle(getattr(torchvision.models, name)(num_classes=10)).double()
    x = torch.randn(2, 3, 64, 64, dtype=torch.float64, requires_grad=True)
    want, want_moments = with_hooks(model, x)
    (want_grad,) = torch.autograd.grad(want.square().mean() + want_moments[-1][1].mean(), x)
    observed = convert_observer(model, strict=True)
    got, moments = observed(x)
    (grad,) = torch.autograd.grad(got.square().mean() + moments[-1].m2.mean(), x)
    assert len(observed.fused) == len(moments) == norms
    assert relative_error(got.detach(), want.detach()) <= 1e-9
    for one, (mean, m2) in zip(moments, want_moments, strict=True):
        assert relative_error(one.mean.detach(), mean.detach()) <= 1e-9
        assert relative_error(one.m2.detach(), m2.detach()) <= 1e-9
    assert relative_error(grad, want_grad) <= 1e-9


def test_a_network_that_cannot_be_traced_falls_back_and_says_so():
    """A dense net that saves memory decides at run time what it keeps."""
    build = torchvision.models.DenseNet
    model = settle(build(8, (2, 2), 16, num_classes=10, memory_efficient=True))
    with pytest.warns(RuntimeWarning, match="cannot be traced"):
        observed = convert_observer(model)
    assert observed.fused == []
    assert list(observed.unfused) == observed.layers
    x = torch.randn(2, 3, 32, 32)
    want, want_moments = with_hooks(model, x)
    got, moments = observed(x)
    torch.testing.assert_close(got, want)
    for one, (mean, m2) in zip(moments, want_moments, strict=True):
        torch.testing.assert_close(one.mean, mean, rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(one.m2, m2, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("convnet3_bn", {("relu", "avg2"): 3}),
        ("resnet32", {("relu", "none"): 31}),
        (
            "torchvision-resnet18",
            {("relu", "max3"): 1, ("relu", "none"): 16, ("none", "none"): 3},
        ),
        (
            "torchvision-resnet50",
            {("relu", "max3"): 1, ("relu", "none"): 48, ("none", "none"): 4},
        ),
    ],
)
def test_everything_that_follows_is_fused(name, expected):
    observed = convert_observer(settle(NETWORKS[name]()))
    counts: dict[tuple[str, str], int] = {}
    for module in observed.modules():
        if isinstance(module, FusedBatchNorm):
            counts[module.act, module.pool] = counts.get((module.act, module.pool), 0) + 1
        assert not isinstance(module, (nn.ReLU, nn.BatchNorm2d, nn.AvgPool2d, nn.MaxPool2d))
    assert counts == expected


@pytest.mark.parametrize(
    ("pool", "name"),
    [
        (nn.MaxPool2d(3, 2, 1), "max3"),
        (nn.MaxPool2d((3, 3), (2, 2), (1, 1)), "max3"),
        (nn.MaxPool2d(3, 2, 1, ceil_mode=True), "none"),
        (nn.MaxPool2d(3, 2, 1, dilation=2), "none"),
        (nn.MaxPool2d(3, 1, 1), "none"),
        (nn.MaxPool2d(3, 2), "none"),
        (nn.MaxPool2d(2), "none"),
        (nn.AvgPool2d(2), "avg2"),
        (nn.AvgPool2d(3, 2, 1), "none"),
    ],
    ids=str,
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_only_pools_with_a_kernel_are_fused(pool, name, dtype):
    """On a CPU the maximum has the bits of the layers one by one."""
    torch.manual_seed(1)
    model = settle(nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), pool))
    observed = convert_observer(copy.deepcopy(model)).to(dtype)
    (fused,) = (one for one in observed.modules() if isinstance(one, FusedBatchNorm))
    assert fused.pool == name
    x = torch.randn(2, 3, 9, 11).to(dtype).requires_grad_()
    got, moments = observed(x)
    assert got.shape == model(x.float()).shape
    if name == "max3":
        fused.pool = "none"
        y, again = observed(x)
        assert torch.equal(got, pool(y))
        assert torch.equal(moments[0].m2, again[0].m2)
        grads = (torch.autograd.grad(one.square().sum(), x)[0] for one in (got, pool(y)))
        assert torch.equal(*grads)


def shared(observed: nn.Module) -> int:
    return sum(isinstance(m, FusedBatchNorm) and m.shared for m in observed.modules())


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("resnet18", 7),  # every block but the last; an nn.Identity is behind the stem
        ("resnet32", 15),
        ("torchvision-resnet18", 7),  # its stem is pooled first
        ("torchvision-resnet50", 15),
        ("convnet3_bn", 0),
        ("torchvision-densenet", 0),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_gradients_of_block_and_shortcut_are_added_where_they_are_read(
    monkeypatch, name, count, dtype
):
    """The same bits as where autograd adds them."""
    torch.manual_seed(1)
    model = settle(NETWORKS[name]())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        observed = convert_observer(copy.deepcopy(model))
        monkeypatch.setattr(ltdd_ext.nn, "_share", lambda *_: None)
        plain = convert_observer(model)
    assert (shared(observed), shared(plain)) == (count, 0)
    x = torch.randn(2, 3, 32, 32)
    results = []
    for network in (observed, plain):
        own = x.clone().requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
            output, moments = network(own)
        loss = output.float().square().sum() + sum(rows.m2.sum() for rows in moments)
        results.append((output, *(rows.m2 for rows in moments), *torch.autograd.grad(loss, own)))
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


class Overwriting(nn.Module):
    """Two layers read the first norm's output; what the second one is decides."""

    def __init__(self, second: nn.Module, view: bool) -> None:
        super().__init__()
        self.view = view
        self.conv, self.norm, self.next = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 1)
        self.second, self.last = second, nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.norm(self.conv(x)))
        z = self.last(self.next(y))
        return z * self.second(y[:, :] if self.view else y)


@pytest.mark.parametrize("view", [False, True])
@pytest.mark.parametrize(
    ("second", "count"), [(nn.Conv2d(4, 4, 3, padding=1), 1), (nn.ReLU(inplace=True), 0)]
)
def test_only_layers_that_read_share_an_output(second, count, view):
    model = settle(Overwriting(second, view))
    x = torch.randn(2, 3, 5, 5)
    wanted = copy.deepcopy(model)(x)
    observed = convert_observer(model)
    assert shared(observed) == count
    torch.testing.assert_close(observed(x)[0], wanted)
    plain = convert_observer(settle(Overwriting(copy.deepcopy(second), view)), ops=reference)
    assert plain(x)[0].shape == wanted.shape


@pytest.mark.parametrize(
    ("name", "convolutions"),
    [("convnet3_bn", 3), ("resnet18", 14), ("resnet32", 29), ("torchvision-resnet18", 13)],
)
def test_convolutions_in_float32(name, convolutions):
    """Those with 3x3 taps and stride 1 go another way and come to the same."""
    torch.manual_seed(1)
    model = settle(NETWORKS[name]()).to(memory_format=torch.channels_last)
    x = torch.randn(2, 3, 32, 32, requires_grad=True)
    want, want_moments = with_hooks(model, x)
    (want_grad,) = torch.autograd.grad(want.square().mean(), x)
    observed = convert_observer(model)
    got, moments = observed(x)
    (grad,) = torch.autograd.grad(got.square().mean(), x)
    assert sum(isinstance(module, Convolution) for module in observed.modules()) == convolutions
    assert relative_error(got.detach(), want.detach()) <= 1e-4
    for one, (mean, m2) in zip(moments, want_moments, strict=True):
        assert relative_error(one.mean.detach(), mean.detach()) <= 1e-4
        assert relative_error(one.m2.detach(), m2.detach()) <= 1e-4
    # A value near zero may pass one ReLU and not the other.
    assert float((grad - want_grad).norm() / want_grad.norm()) <= 1e-2


def test_backends_agree():
    """Up to the bits of the convolutions, which both leave to PyTorch."""
    model = settle(NETWORKS["convnet3_bn"]())
    x = torch.randn(4, 3, 32, 32)
    compiled = SimpleNamespace(**(vars(ltdd_ext) | {"conv3x3": reference.conv3x3}))
    got, moments = convert_observer(model, ops=compiled)(x)
    want, want_moments = convert_observer(model, ops=reference)(x)
    torch.testing.assert_close(got, want)
    for one, other in zip(moments, want_moments, strict=True):
        torch.testing.assert_close(one.mean, other.mean)
        assert one.spatial_size == other.spatial_size


class SharedReadings(nn.Module):
    """Reads values in the middle of the chain, so little can be fused."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.after = nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        before = self.conv(x)
        normalised = self.norm(before)
        active = torch.relu(normalised)
        summed = self.after(active) + before.relu_()  # the sum must not move past this
        return active + summed + normalised


def test_values_read_elsewhere_are_kept():
    model = settle(SharedReadings())
    x = torch.randn(2, 3, 8, 8)
    want, want_moments = with_hooks(model, x)
    observed = convert_observer(model)
    got, moments = observed(x)
    torch.testing.assert_close(got, want)
    for one, (mean, _) in zip(moments, want_moments, strict=True):
        torch.testing.assert_close(one.mean, mean)
    assert [m.act for m in observed.modules() if isinstance(m, FusedBatchNorm)] == ["none"] * 2


class Branching(nn.Module):
    """Python control flow on values: cannot be traced."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(3)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x) if x.sum() > -1e9 else x


def test_what_cannot_be_traced_falls_back_and_says_so():
    model = settle(Branching())
    with pytest.warns(RuntimeWarning, match=r"1 of 1 batch norms .* cannot be traced"):
        observed = convert_observer(model)
    x = torch.randn(2, 3, 4, 4)
    output, moments = observed(x)
    torch.testing.assert_close(output, model(x))
    torch.testing.assert_close(moments[0].mean, reference.row_moments(x)[0])
    assert list(observed.unfused) == ["norm"]
    with pytest.raises(ValueError, match="cannot be traced"):
        convert_observer(model, strict=True)


class OtherNorm(nn.BatchNorm2d):
    """A subclass may compute anything."""


def test_a_subclass_is_measured_but_not_fused():
    model = settle(nn.Sequential(nn.Conv2d(3, 4, 1), OtherNorm(4), nn.ReLU()))
    with pytest.warns(RuntimeWarning, match="OtherNorm is not BatchNorm2d itself"):
        observed = convert_observer(model)
    x = torch.randn(2, 3, 4, 4)
    output, moments = observed(x)
    torch.testing.assert_close(output, model(x))
    torch.testing.assert_close(moments[0].mean, reference.row_moments(model[0](x))[0])


def test_hooks_are_not_lost():
    model = settle(nn.Sequential(nn.BatchNorm2d(3), nn.ReLU()))
    calls = []
    model[1].register_forward_hook(lambda *_: calls.append(1))
    with pytest.warns(RuntimeWarning, match="1 carries forward hooks"):
        convert_observer(model)(torch.randn(1, 3, 2, 2))
    assert calls == [1]


def test_refusals():
    with pytest.raises(ValueError, match="expected model with BatchNorm2d layers, got Conv2d"):
        convert_observer(nn.Conv2d(3, 3, 1))
    with pytest.raises(ValueError, match="expected 0 to have running statistics, got none"):
        convert_observer(nn.Sequential(nn.BatchNorm2d(3, track_running_stats=False)))
    norm = nn.BatchNorm2d(3)
    with pytest.raises(ValueError, match="0 to be called once per forward pass, got 2"):
        convert_observer(nn.Sequential(norm, nn.ReLU(), norm))


def test_bfloat16_autocast_and_compile():
    model = settle(NETWORKS["convnet3_bn"]()).to(memory_format=torch.channels_last)
    x = torch.randn(2, 3, 32, 32).to(memory_format=torch.channels_last)
    observed = convert_observer(model)
    with torch.autocast("cpu", torch.bfloat16):
        want, got = model(x), observed(x)[0]
    assert float((got.float() - want.float()).abs().max() / want.float().abs().max()) <= 0.05
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the compiler's own
        compiled = torch.compile(observed, fullgraph=True)
        torch.testing.assert_close(compiled(x)[0], observed(x)[0])


def test_layers_move_with_the_network():
    observed = ltdd_ext.nn.convert_observer(settle(small("convnet3_bn")))
    assert {name for name, _ in observed.named_buffers()} >= {"network.observed_0.k"}
    double = observed.double()
    output, moments = double(torch.randn(2, 3, 32, 32, dtype=torch.float64))
    assert output.dtype == moments[0].mean.dtype == torch.float64
