"""The CUDA kernels on a GPU: streams, graphs, determinism, agreement with the CPU, strict memory.

The tables of the other files in this folder run on CUDA too (their `device` fixture); here is what
only a GPU has.
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable

import pytest
import torch
from ops.cases import DTYPES, ROUNDING, activation, alignment, relative_error
from torch import Tensor

import ltdd_ext
from ltdd_ext import ClassMoments, reference

pytestmark = pytest.mark.cuda

# Every path of the launchers: few lanes to several warps per row, planes that no vector fits,
# NHWC with odd channels, and small batches that are split over blocks.
SHAPES = [
    (100, 128, 32, 32),
    (50, 512, 4, 4),
    (20, 64, 7, 7),
    (8, 48, 14, 14),
    (4, 64, 56, 56),
    (2, 3, 224, 224),
    (3, 5, 1, 1),
    (2, 130, 9, 13),
    (1, 64, 112, 112),
]
Outputs = tuple[Tensor, ...]
Call = Callable[[], Outputs]


@pytest.fixture(autouse=True)
def _needs_a_gpu(request: pytest.FixtureRequest) -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    if "cuda" not in ltdd_ext.backends()["row_moments"]:
        pytest.fail("a CUDA device, but no CUDA kernels were built")


def row_moments_case(shape: tuple[int, ...], dtype: torch.dtype, layout: str) -> Call:
    x = activation(shape, dtype, layout, "cuda").requires_grad_()

    def call() -> Outputs:
        mean, m2 = ltdd_ext.row_moments(x)
        (dx,) = torch.autograd.grad(mean.sum() + m2.square().sum(), x)
        return mean.detach(), m2.detach(), dx

    return call


def bn_act_moments_case(shape: tuple[int, ...], dtype: torch.dtype, layout: str) -> Call:
    x = activation(shape, dtype, layout, "cuda").requires_grad_()
    residual = activation(shape, dtype, layout, "cuda", seed=1).requires_grad_()
    row_dtype = torch.float64 if dtype == torch.float64 else torch.float32
    k = torch.linspace(0.5, 1.5, shape[1], dtype=row_dtype, device="cuda")
    h = torch.linspace(-1.0, 1.0, shape[1], dtype=row_dtype, device="cuda")

    def call() -> Outputs:
        outputs = ltdd_ext.bn_act_moments(x, k, h, residual)
        loss = sum(out.float().square().sum() for out in outputs)
        assert isinstance(loss, Tensor)
        return tuple(out.detach() for out in outputs) + torch.autograd.grad(loss, (x, residual))

    return call


def norm_act_case(over: str, dtype: torch.dtype, layout: str) -> Call:
    x = activation((4, 64, 56, 56), dtype, layout, "cuda").requires_grad_()
    weight = torch.linspace(0.5, 1.5, 64, device="cuda").requires_grad_()
    bias = torch.linspace(-1.0, 1.0, 64, device="cuda").requires_grad_()

    def call() -> Outputs:
        outputs = ltdd_ext.norm_act(x, weight, bias, over, pool="avg2")
        grads = torch.autograd.grad(outputs[0].float().square().sum(), (x, weight, bias))
        return tuple(out.detach() for out in outputs) + grads

    return call


def align_loss_case(class_weight: float, rows: int = 50, num_classes: int = 10) -> Call:
    case = alignment(rows, (64, 128, 33), num_classes, device="cuda", requires_grad=True)

    def call() -> Outputs:
        loss = ltdd_ext.align_loss(*case.arguments(), class_weight)
        return (loss.detach(), *torch.autograd.grad(loss, [*case.means, *case.m2s]))

    return call


def class_moments_case() -> Call:
    x = activation((64, 130, 4, 4), device="cuda")
    mean, m2 = ltdd_ext.row_moments(x)
    labels = torch.arange(64, device="cuda").square() % 7

    def call() -> Outputs:
        state = ClassMoments.zeros(9, 130, "cuda")
        state.update_(mean, m2, 16, labels)
        other = ClassMoments.zeros(9, 130, "cuda")
        other.update_(mean.flip(0), m2.flip(0), 16, labels)
        state.merge_(other)
        return (*state.state, *state.finish(), *ltdd_ext.class_moments(x, labels, 9))

    return call


CASES: dict[str, Callable[[], Call]] = {
    "row_moments": lambda: row_moments_case((8, 64, 32, 32), torch.float32, "rows"),
    "row_moments_pixels": lambda: row_moments_case((2, 64, 56, 56), torch.bfloat16, "pixels"),
    "bn_act_moments": lambda: bn_act_moments_case((8, 64, 32, 32), torch.float16, "rows"),
    "bn_act_moments_pixels": lambda: bn_act_moments_case((2, 64, 56, 56), torch.float32, "pixels"),
    "norm_act": lambda: norm_act_case("image", torch.float32, "rows"),
    "norm_act_pixels": lambda: norm_act_case("batch", torch.bfloat16, "pixels"),
    "class_moments": class_moments_case,
    "align_loss": lambda: align_loss_case(0.0),
    "align_loss_by_class": lambda: align_loss_case(0.5),
    "align_loss_many_classes": lambda: align_loss_case(0.5, rows=12, num_classes=100),
}


def equal(got: Outputs, wanted: Outputs) -> bool:
    """Bitwise, NaN included."""
    return all(
        torch.equal(a.reshape(-1).view(torch.uint8), b.reshape(-1).view(torch.uint8))
        for a, b in zip(got, wanted, strict=True)
    )


@pytest.mark.parametrize("name", CASES)
def test_every_run_gives_the_same_bits(name: str) -> None:
    call = CASES[name]()
    first = call()
    for _ in range(10):
        assert equal(call(), first)


@pytest.mark.parametrize("name", CASES)
def test_every_element_is_written(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """In its deterministic mode torch fills new tensors with NaN, unless told otherwise."""
    monkeypatch.setattr(torch.utils.deterministic, "fill_uninitialized_memory", True)
    wanted = CASES[name]()()
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        assert torch.empty(3, device="cuda").isnan().all()
        got = CASES[name]()()
    finally:
        torch.use_deterministic_algorithms(False)
    assert equal(got, wanted)


@pytest.mark.parametrize("name", CASES)
def test_runs_on_the_current_stream(name: str) -> None:
    """An operator follows the work of its stream; those that read no label do not wait either."""
    call = CASES[name]()
    wanted = call()
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        call()  # the first call on a stream takes memory from the driver, which may wait
        stream.synchronize()
        torch.cuda._sleep(100_000_000)
        got = call()
    if name.startswith(("row_moments", "bn_act_moments", "norm_act")):
        assert not stream.query(), "the operator waited for the device or used another stream"
    stream.synchronize()
    assert equal(got, wanted)


@pytest.mark.parametrize("shape", [(8, 64, 32, 32), (20, 64, 7, 7)], ids=str)
@pytest.mark.parametrize("layout", ["rows", "pixels"])
def test_moments_are_captured_in_a_graph(shape: tuple[int, ...], layout: str) -> None:
    x = activation(shape, layout=layout, device="cuda")
    k, h = torch.ones(64, device="cuda"), torch.zeros(64, device="cuda")
    rows = torch.ones(shape[:2], device="cuda")

    def call() -> Outputs:
        y, mean, m2 = ltdd_ext.bn_act_moments(x, k, h)
        dx = torch.ops.ltdd_ext.row_moments_backward(rows, rows, x, mean)
        return y, mean, m2, dx

    check_graph(call, x)


@pytest.mark.parametrize("class_weight", [0.0, 0.5])
def test_the_loss_is_captured_in_a_graph(class_weight: float) -> None:
    case = alignment(20, (64, 33), 5, device="cuda")
    arguments = (*case.arguments(), class_weight)

    def call() -> Outputs:
        loss, grad_means, grad_m2s = torch.ops.ltdd_ext.align_loss(*arguments)
        return loss, *grad_means, *grad_m2s

    check_graph(call, case.means[0])


def test_class_moments_are_captured_in_a_graph() -> None:
    x = activation((16, 40, 4, 4), device="cuda")
    labels = torch.arange(16, device="cuda") % 5
    state = ClassMoments.zeros(6, 40, "cuda")

    def call() -> Outputs:
        for part in state.state:
            part.zero_()
        state.update_(*ltdd_ext.row_moments(x), 16, labels)
        return (*state.state, *state.finish(), *ltdd_ext.class_moments(x, labels, 6))

    check_graph(call, x)


def test_a_label_out_of_range_leaves_no_number_in_a_graph() -> None:
    x = activation((16, 40, 4, 4), device="cuda")
    labels = torch.arange(16, device="cuda") % 5
    fresh = labels.clone()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        labels.copy_(fresh)
        found = ltdd_ext.class_moments(x, labels, 5)
    for label, finite in ((4, True), (5, False), (-1, False)):
        fresh[3] = label
        graph.replay()
        for table in found:
            assert bool(table.isfinite().all()) == finite
            assert bool(table.isnan().all()) != finite


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(2, 8, 8, 8), (2, 3, 7, 7), (1, 4, 64, 64)], ids=str)
def test_tensors_off_the_boundaries_of_vectors(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    """Each of x, residual and grad_y in turn; the numbers are those of aligned tensors."""
    k = torch.ones(shape[1], dtype=torch.float64 if dtype == torch.float64 else torch.float32)
    k, h = k.cuda(), k.cuda() * 0.25

    def results(layouts: tuple[str, str, str]) -> Outputs:
        x, residual, grad = (
            activation(shape, dtype, layout, "cuda", seed=seed)
            for seed, layout in enumerate(layouts)
        )
        x.requires_grad_(), residual.requires_grad_()
        y, mean, m2 = ltdd_ext.bn_act_moments(x, k, h, residual)
        rows = torch.ones_like(mean)
        grads = torch.autograd.grad((y, mean, m2), (x, residual), (grad, rows, rows))
        return (y.detach(), mean.detach(), m2.detach(), *grads)

    wanted = results(("rows", "rows", "rows"))
    for odd in range(3):
        layouts = ["rows"] * 3
        layouts[odd] = "shifted"
        for got, want in zip(results((layouts[0], layouts[1], layouts[2])), wanted, strict=True):
            assert relative_error(got, want) <= 1e-6 + ROUNDING[dtype]


def check_graph(call: Call, source: Tensor) -> None:
    """Capture, change an input, replay: the replay must follow the input."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        call()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = call()
    with torch.no_grad():
        source.mul_(0.5).add_(0.125)
    graph.replay()
    torch.cuda.synchronize()
    got = tuple(out.clone() for out in captured)
    assert equal(got, tuple(out.clone() for out in call()))


@pytest.mark.parametrize("layout", ["rows", "pixels"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_row_moments_agree_with_float64_and_the_cpu(shape, dtype, layout) -> None:
    x = activation(shape, dtype, layout, "cuda").requires_grad_()
    mean, m2 = ltdd_ext.row_moments(x)
    x64 = x.detach().double().requires_grad_()
    mean64, m264 = reference.row_moments(x64)
    assert relative_error(mean.detach(), mean64.detach()) <= 5e-7
    assert relative_error(m2.detach(), m264.detach()) <= 5e-7

    grads = torch.randn_like(mean), torch.randn_like(m2)
    (dx,) = torch.autograd.grad((mean, m2), x, grads)
    (dx64,) = torch.autograd.grad((mean64, m264), x64, [grad.double() for grad in grads])
    assert relative_error(dx, dx64) <= 1e-6 + ROUNDING[dtype]

    cpu_mean, cpu_m2 = ltdd_ext.row_moments(x.detach().cpu())
    assert relative_error(mean.detach(), cpu_mean) <= 1e-6
    assert relative_error(m2.detach(), cpu_m2) <= 1e-6


@pytest.mark.parametrize("class_weight", [0.0, 0.5])
@pytest.mark.parametrize("num_classes", [4, 200])
@pytest.mark.parametrize("layers", [1, 3, 45])
def test_align_loss_agrees_with_float64_and_the_cpu(layers, num_classes, class_weight) -> None:
    case = alignment(30, (7, 64, 33) * layers, num_classes, device="cuda")
    results = {}
    for device, dtype in (("cuda", torch.float32), ("cpu", torch.float32), ("cpu", torch.float64)):
        moved = copy.deepcopy(case)
        arguments = [
            [part.to(device, dtype) for part in argument]
            if isinstance(argument, list) and isinstance(argument[0], Tensor)
            else argument.to(device)
            if isinstance(argument, Tensor)
            else argument
            for argument in moved.arguments()
        ]
        rows = [part.requires_grad_() for part in [*arguments[0], *arguments[1]]]
        backend = reference if dtype == torch.float64 else ltdd_ext
        loss = backend.align_loss(*arguments, class_weight)
        results[device, dtype] = (loss.detach(), *torch.autograd.grad(loss, rows))
    got = results["cuda", torch.float32]
    for other in (results["cpu", torch.float32], results["cpu", torch.float64]):
        for a, b in zip(got, other, strict=True):
            assert relative_error(a, b) <= 1e-6


def test_class_moments_agree_with_the_cpu() -> None:
    mean, m2 = ltdd_ext.row_moments(activation((64, 130, 4, 4)))
    labels = torch.arange(64).square() % 7
    states = {device: ClassMoments.zeros(9, 130, device) for device in ("cpu", "cuda")}
    for device, state in states.items():
        for part in torch.arange(64).split(24):
            batch = part.to(device)
            state.update_(
                mean.to(device)[batch], m2.to(device)[batch], 16, labels.to(device)[batch]
            )
    for got, wanted in zip(states["cuda"].state, states["cpu"].state, strict=True):
        torch.testing.assert_close(got.cpu(), wanted, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("layout", ["rows", "pixels"])
def test_more_than_two_to_the_31_elements(layout: str) -> None:
    shape = (2049, 64, 128, 128)
    if torch.cuda.mem_get_info()[0] < 10 * 2**30:
        pytest.skip("needs 10 GiB of GPU memory")
    x = torch.zeros(shape, dtype=torch.bfloat16, device="cuda")
    if layout == "pixels":
        x = x.view(2049, 128, 128, 64).permute(0, 3, 1, 2)
    x[-1, -1] = torch.arange(128, device="cuda") % 2
    mean, m2 = ltdd_ext.row_moments(x)
    assert float(mean[-1, -1]) == 0.5
    assert float(m2[-1, -1]) == 4096.0
    assert float(mean.sum()) == 0.5


def test_the_device_of_the_tensors_is_used() -> None:
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two GPUs")
    x = activation((4, 8, 8, 8)).to("cuda:1")
    with torch.cuda.device(0):
        mean, _ = ltdd_ext.row_moments(x)
        assert torch.cuda.current_device() == 0
    assert mean.device == x.device
    assert relative_error(mean, reference.row_moments(x.double())[0]) <= 5e-7


def test_a_thread_of_its_own_computes_on_another_device() -> None:
    """Backward passes run in threads of autograd, which have a current device of their own."""
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two GPUs")
    wanted = [call() for call in (make() for make in CASES.values())]
    got: list[Outputs] = []

    def compute() -> None:
        with torch.cuda.device(1):
            calls = [make() for make in CASES.values()]
        with torch.cuda.device(0):
            got.extend(call() for call in calls)

    thread = threading.Thread(target=compute)
    thread.start()
    thread.join()
    for here, there in zip(wanted, got, strict=True):
        assert all(one.device.index == 1 for one in there)
        assert equal(tuple(one.cpu() for one in here), tuple(one.cpu() for one in there))


def test_labels_out_of_range_are_refused_as_on_the_cpu():
    case = alignment(device="cuda")
    state = ClassMoments.zeros(4, 3, "cuda")
    for label in (-1, 4):
        case.labels[2] = label
        message = rf"expected labels in \[0, 4\), got {label}"
        with pytest.raises(ValueError, match=message):
            ltdd_ext.align_loss(*case.arguments(), class_weight=1.0)
        with pytest.raises(ValueError, match=message):
            state.update_(case.means[0], case.m2s[0], case.sizes[0], case.labels)
    assert int(state.count.sum()) == 0
