"""Networks: published parameter counts, the common interface, small and large images."""

import copy
from collections.abc import Callable

import pytest
import torch
from helpers.architectures import SMALLEST, WITH_BATCH_NORM
from torch import nn

from ltdd.errors import UserError
from ltdd.models import ARCHITECTURES, build_model
from ltdd.models.inference import fused
from ltdd.models.normalization import InstanceNorm, NormBlock, batch_norm, instance_norm

PUBLISHED_COUNTS = [
    ("convnet3", 10, 32, 320_010),
    ("convnet3", 100, 32, 504_420),
    ("convnet3_bn", 10, 32, 320_010),
    ("convnet4", 200, 64, 857_160),
    ("convnet4", 1000, 64, 2_496_360),
    ("convnet4_bn", 200, 64, 857_160),
    ("alexnet", 10, 32, 1_872_202),
    ("alexnet", 100, 32, 2_148_772),
    ("alexnet", 10, 64, 1_872_202),
    ("vgg11", 10, 32, 9_231_114),
    ("vgg11_bn", 10, 32, 9_231_114),
    ("vgg11", 100, 32, 9_277_284),
    ("resnet18", 10, 32, 11_173_962),
    ("resnet18", 100, 32, 11_220_132),
    ("resnet18", 200, 64, 11_271_432),
    ("resnet18_in", 10, 32, 11_173_962),
    ("resnet18", 1000, 224, 11_689_512),
    ("resnet50", 1000, 224, 25_557_032),
    ("resnext50", 1000, 224, 25_028_904),
    ("resnet32", 10, 32, 7_386_186),
    ("wrn16_2", 10, 32, 691_674),
    ("wrn16_2", 100, 32, 703_284),
    ("mobilenet_v2", 1000, 224, 3_504_872),
    ("mobilenet_v2", 10, 32, 2_236_682),
    ("shufflenet_v2_05", 1000, 224, 1_366_792),
    ("shufflenet_v2_05", 10, 32, 352_042),
]


def parameters(net: nn.Module) -> int:
    return sum(p.numel() for p in net.parameters())


@pytest.mark.parametrize(("name", "classes", "size", "count"), PUBLISHED_COUNTS)
def test_parameter_counts_are_the_published_ones(
    name: str, classes: int, size: int, count: int
) -> None:
    assert parameters(build_model(name, classes, size, 3)) == count


@pytest.mark.parametrize(
    ("name", "size", "count"),
    [("convnet3", 32, 299_520), ("convnet4", 64, 447_360), ("resnet18", 32, 11_168_832)],
)
def test_backbone_counts_are_the_published_ones(name: str, size: int, count: int) -> None:
    assert parameters(build_model(name, 10, size, 3).body) == count


@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.parametrize("channels", [1, 3])
def test_interface_at_the_smallest_size(name: str, channels: int) -> None:
    size = SMALLEST.get(name, 8)
    net = build_model(name, 7, size, channels)
    images = torch.rand(3, channels, size, size, generator=torch.Generator().manual_seed(0))
    features = net.features(images)
    assert features.shape == (3, net.feature_dim)
    assert net.classifier.weight.shape == (7, net.feature_dim)
    net.eval()
    with torch.no_grad():
        torch.testing.assert_close(net(images), net.classifier(net.features(images)))
    # A network that maps every image to the same point could not be trained.
    assert features.std(dim=0).max() > 0


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_odd_and_large_sizes(name: str) -> None:
    for size in (37, 72):
        net = build_model(name, 2, size, 3).eval()
        with torch.no_grad():
            assert net(torch.zeros(1, 3, size, size)).shape == (1, 2)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_batch_norm_is_where_the_name_says(name: str) -> None:
    norms = [m for m in build_model(name, 2, 32, 3).modules() if isinstance(m, nn.BatchNorm2d)]
    assert bool(norms) == (name in WITH_BATCH_NORM)


@pytest.mark.parametrize("name", sorted(set(SMALLEST)))
def test_too_small_images_name_the_smallest_size(name: str) -> None:
    smallest = SMALLEST[name]
    with pytest.raises(
        UserError, match=rf"expected image size >= {smallest}\b.*got {smallest - 1}"
    ):
        build_model(name, 10, smallest - 1, 3)


def test_unknown_architecture_lists_the_allowed_names() -> None:
    with pytest.raises(UserError, match=r"resnet32_w16.*'resnet19'"):
        build_model("resnet19", 10, 32, 3)


@pytest.mark.parametrize("name", ["convnet3", "convnet3_bn", "alexnet", "resnet18", "resnet32_w16"])
def test_channels_last_gives_the_same_features(name: str) -> None:
    net = build_model(name, 10, 16, 3).eval()
    images = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = net.features(images)
        net = net.to(memory_format=torch.channels_last)
        actual = net.features(images.contiguous(memory_format=torch.channels_last))
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["convnet3", "convnet4_bn"])
def test_convnet_blocks_are_conv_norm_relu_pool(name: str) -> None:
    for block in build_model(name, 10, 32, 3).body:
        assert isinstance(block, nn.Sequential)
        conv, norm, relu, pool = block
        assert isinstance(conv, nn.Conv2d)
        assert conv.bias is not None
        assert {"weight", "bias"} == {n for n, _ in norm.named_parameters()}
        assert isinstance(relu, nn.ReLU)
        assert isinstance(pool, nn.AvgPool2d)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_instance_norm_and_its_gradients_equal_torch(
    memory_format: torch.memory_format, dtype: torch.dtype
) -> None:
    generator = torch.Generator().manual_seed(0)
    ours, theirs = InstanceNorm(16), nn.InstanceNorm2d(16, affine=True)
    with torch.no_grad():
        for parameter in ("weight", "bias"):
            values = torch.randn(16, generator=generator)
            getattr(ours, parameter).copy_(values)
            getattr(theirs, parameter).copy_(values)
    images = (torch.randn(3, 16, 5, 7, generator=generator) + 3).to(dtype)
    weights = torch.randn(3, 16, 5, 7, generator=generator)
    results = []
    for norm, given, grad_dtype in ((ours, images, dtype), (theirs, images.float(), torch.float32)):
        given = given.clone().contiguous(memory_format=memory_format).requires_grad_()
        out = norm(given)
        assert out.dtype == grad_dtype
        (out.float() * weights).sum().backward()
        results.append([out.float(), given.grad.float(), norm.weight.grad, norm.bias.grad])
    tolerance = 1e-4 if dtype == torch.float32 else 0.05
    for actual, expected in zip(*results, strict=True):
        torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("momentum", [0.1, None])
@pytest.mark.parametrize("norm", [batch_norm, instance_norm])
@pytest.mark.parametrize("width", [4, 40])
@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.cuda)])
def test_block_is_the_layers_one_by_one(
    norm: Callable[[int], nn.Module], width: int, momentum: float | None, device: str
) -> None:
    """Outputs, gradients and running statistics of training, then outputs of evaluation."""
    torch.manual_seed(0)
    block = NormBlock(nn.Conv2d(width, 6, 3, padding=1), norm(6), nn.ReLU(), nn.AvgPool2d(2))
    if isinstance(block[1], nn.BatchNorm2d):
        block[1].momentum = momentum
        plain = nn.Sequential(*copy.deepcopy(list(block)))
    else:
        plain = nn.Sequential(*copy.deepcopy(list(block)))
        plain[1] = nn.InstanceNorm2d(6, affine=True)
    results = []
    for layers in (block.to(device), plain.to(device)):
        outputs = []
        for seed in range(3):
            images = torch.randn(5, width, 9, 8, generator=torch.Generator().manual_seed(seed))
            images = images.to(device)
            outputs.append(layers(images + seed))
        sum(out.square().sum() for out in outputs).backward()
        gradients = [parameter.grad for parameter in layers.parameters()]
        layers.eval()
        outputs.append(layers(images))
        results.append([*outputs, *gradients, *layers.buffers()])
    for actual, expected in zip(*results, strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("pools", [0, 1])
@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.cuda)])
def test_a_frozen_block_is_the_layers_one_by_one(
    device: str, pools: int, dtype: torch.dtype
) -> None:
    torch.manual_seed(0)
    pool = [nn.AvgPool2d(2)] * pools
    block = NormBlock(nn.Conv2d(4, 6, 3, padding=1), batch_norm(6), nn.ReLU(), *pool).to(dtype)
    norm = block[1]
    assert isinstance(norm, nn.BatchNorm2d)
    for parameter in (*norm.parameters(), norm.running_mean):
        nn.init.normal_(parameter)
    nn.init.uniform_(norm.running_var, 0.1, 2.0)
    block.eval().to(device)
    plain = nn.Sequential(*block)
    images = torch.randn(3, 4, 9, 8, device=device, dtype=dtype).requires_grad_()
    with torch.no_grad():
        torch.testing.assert_close(block(images), plain(images), rtol=1e-4, atol=1e-4)
    gradients = []
    for layers in (block, plain):  # parameters that learn keep their gradients
        inputs = [images, *layers.parameters()]
        gradients.append(torch.autograd.grad(layers(images).square().sum(), inputs))
    torch.testing.assert_close(*gradients, rtol=1e-3, atol=1e-3)
    block.requires_grad_(False)
    ours, theirs = (
        torch.autograd.grad(net(images).square().sum(), images) for net in (block, plain)
    )
    torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", ["convnet3_bn", "resnet9", "convnet3", "resnext50"])
def test_a_fused_network_answers_as_itself(name: str) -> None:
    torch.manual_seed(0)
    net = build_model(name, 5, 16, 3)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, std=0.3)
            nn.init.uniform_(module.running_var, 0.5, 2.0)
    images = torch.randn(4, 3, 16, 16)
    answer = fused(net)
    assert not net.training
    has_batch_norm = any(isinstance(module, nn.BatchNorm2d) for module in net.modules())
    assert (answer is net) != has_batch_norm
    with torch.no_grad():
        wanted = copy.deepcopy(net).double()(images.double())
        torch.testing.assert_close(answer(images).double(), wanted, rtol=1e-3, atol=1e-3)


def test_what_cannot_be_fused_answers_as_it_is() -> None:
    class Looking(nn.Sequential):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            out: torch.Tensor = super().forward(images)
            return out if float(out.sum()) > 0 else -out

    net = Looking(nn.BatchNorm2d(3), nn.ReLU())
    assert fused(net) is net


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.cuda)])
def test_an_instance_of_one_pixel_is_the_shift(device: str) -> None:
    norm = InstanceNorm(2).to(device)
    nn.init.constant_(norm.bias, 0.5)
    out = norm(torch.randn(3, 2, 1, 1, device=device))
    # Without variance the scale is 1/sqrt(eps) = 316, and so is the rounding of x.
    torch.testing.assert_close(out, torch.full_like(out, 0.5), rtol=0, atol=1e-4)


def test_block_leaves_bfloat16_convolutions_to_pytorch() -> None:
    block = NormBlock(nn.Conv2d(40, 6, 3, padding=1), batch_norm(6), nn.ReLU())
    images = torch.randn(4, 40, 6, 6, generator=torch.Generator().manual_seed(0))
    with torch.autocast("cpu", torch.bfloat16):
        out = block(images)
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out.float(), block(images), rtol=0.05, atol=0.05)


def test_shortcut_without_parameters_passes_every_second_pixel() -> None:
    block = build_model("resnet32_w16", 10, 16, 3).body[8].eval()
    assert (block.stride, block.padding) == (2, 16)
    for parameter in block.parameters():
        nn.init.zeros_(parameter)
    images = torch.rand(1, 16, 6, 6, generator=torch.Generator().manual_seed(0))
    out = block(images)
    torch.testing.assert_close(out[:, 8:24], images[:, :, ::2, ::2])
    assert out[:, :8].abs().max() == 0
    assert out[:, 24:].abs().max() == 0
