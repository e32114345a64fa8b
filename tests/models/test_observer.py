"""What an observer measures of convolutions: channels and patches, of any network."""

from __future__ import annotations

import copy
from types import ModuleType

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import ltdd_ext
from ltdd.errors import UserError
from ltdd.models import build_model
from ltdd.models.observer import Observer, Watched, patches, watched_layers

BOTH = "batch_norm_and_conv"
OPS = pytest.mark.parametrize("ops", [ltdd_ext, ltdd_ext.reference], ids=["compiled", "reference"])


def test_patches_are_the_cells_of_the_map() -> None:
    maps = torch.rand(2, 3, 8, 12, generator=torch.Generator().manual_seed(0))
    cells = patches(maps)
    assert cells.shape == (2, 6, 48)
    for image in range(2):
        for row in range(2):
            for column in range(3):
                corner = maps[image, :, 4 * row : 4 * row + 4, 4 * column : 4 * column + 4]
                assert torch.equal(cells[image, 3 * row + column], corner.flatten())


@pytest.mark.parametrize("shape", [(1, 1), (2, 2), (4, 6), (7, 9)])
def test_other_sides_are_stretched_first(shape: tuple[int, int]) -> None:
    maps = torch.rand(2, 5, *shape, generator=torch.Generator().manual_seed(0))
    sides = [-(-side // 4) * 4 for side in shape]
    stretched = F.interpolate(maps, size=sides, mode="bilinear", align_corners=False)
    torch.testing.assert_close(patches(maps), patches(stretched))


def hooked(network: nn.Module, images: Tensor) -> dict[str, Tensor]:
    """Return the input of every batch norm and convolution, by name."""
    seen: dict[str, Tensor] = {}
    network = copy.deepcopy(network).eval()
    for name, module in network.named_modules():
        if isinstance(module, nn.BatchNorm2d | nn.Conv2d):
            module.register_forward_pre_hook(
                lambda _, given, name=name: seen.__setitem__(name, given[0].detach().clone())
            )
    with torch.no_grad():
        network(images)
    return seen


@OPS
@pytest.mark.parametrize(
    ("name", "size"),
    [("convnet3", 8), ("convnet2_bn", 8), ("resnet18", 8), ("shufflenet_v2_05", 16)],
)
def test_all_inputs_are_measured_in_order(name: str, size: int, ops: ModuleType) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = build_model(name, 4, size, 3).eval()
    before = {key: value.clone() for key, value in network.state_dict().items()}
    images = torch.rand(3, 3, size, size, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = network(images)
    # One block has no kernel that hooks would miss.
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ltdd.models.normalization._has_kernels", lambda _: False)
        inputs = hooked(network, images)
    observer = Observer(network, ops, BOTH)
    logits, moments = observer(images)
    torch.testing.assert_close(logits, expected, rtol=1e-3, atol=1e-4)
    order = [
        key
        for key, module in network.named_modules()
        if isinstance(module, nn.BatchNorm2d | nn.Conv2d)
    ]
    assert list(dict.fromkeys(entry.name for entry in observer.watched)) == order
    assert observer.watched[:2] == [Watched(order[0], "conv"), Watched(order[0], "patches")]
    for entry, rows in zip(observer.watched, moments, strict=True):
        seen = inputs[entry.name].double()
        values = patches(seen) if entry.kind == "patches" else seen.flatten(2)
        assert rows.spatial_size == values.shape[2]
        torch.testing.assert_close(rows.mean, values.mean(2), rtol=1e-3, atol=1e-4)
        squares = (values - values.mean(2, keepdim=True)).square().sum(2)
        scale = max(float(squares.max()), 1e-6)  # a map of one pixel has none
        torch.testing.assert_close(rows.m2 / scale, squares / scale, rtol=1e-3, atol=1e-5)
    # The network itself is as it was, and a second pass measures again.
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())
    assert not any(module._forward_pre_hooks for module in network.modules())
    torch.testing.assert_close(observer(images)[1][0].mean, moments[0].mean)


@OPS
def test_gradients_of_patches_reach_the_images(ops: ModuleType) -> None:
    observer = Observer(build_model("convnet3", 4, 8, 3), ops, BOTH)
    images = torch.rand(2, 3, 8, 8, requires_grad=True)
    _, moments = observer(images)
    last = observer.watched[-1]
    assert last.kind == "patches"
    moments[-1].m2.sum().backward()
    assert float(images.grad.abs().sum()) > 0
    assert all(parameter.grad is None for parameter in observer.network.parameters())


def test_a_network_without_batch_norm_needs_convolutions_watched() -> None:
    network = build_model("convnet3", 4, 8, 3)
    with pytest.raises(UserError, match=r"'convnet3', which has none.*statistics\.layers"):
        watched_layers(network, name="convnet3")
    assert len(watched_layers(network, BOTH)) == 6
    with pytest.raises(UserError, match=r"BatchNorm2d or Conv2d layers.*'linear'"):
        watched_layers(nn.Linear(2, 2), BOTH, "linear")


class Untraceable(nn.Module):
    """Reads a value while it runs, so that its graph is not known."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.norm = nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5)

    def forward(self, images: Tensor) -> Tensor:
        maps = self.norm(self.layer(images))
        return maps.mean((2, 3)) if maps.isfinite().all() else maps.amax((2, 3))


def test_networks_that_cannot_be_traced_are_measured_too() -> None:
    network = Untraceable().eval()
    images = torch.rand(3, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    with pytest.warns(RuntimeWarning, match="cannot be traced"):
        observer = Observer(network, ltdd_ext, BOTH)
    logits, moments = observer(images)
    torch.testing.assert_close(logits, network(images))
    assert [entry.kind for entry in observer.watched] == ["conv", "patches", "batch_norm"]
    torch.testing.assert_close(moments[0].mean, images.mean((2, 3)).double())
    assert type(network.layer) is nn.Conv2d


class Twice(nn.Module):
    def __init__(self, times: int) -> None:
        super().__init__()
        self.layer, self.times = nn.Conv2d(3, 3, 1), times

    def forward(self, images: Tensor) -> Tensor:
        for _ in range(self.times):
            images = self.layer(images)
        return images.flatten(1)


@pytest.mark.parametrize("times", [0, 2])
def test_a_convolution_is_used_once(times: int) -> None:
    with pytest.raises(UserError, match="every convolution to be used"):
        Observer(Twice(times), ltdd_ext, BOTH)(torch.rand(2, 3, 4, 4))
