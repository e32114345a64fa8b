"""Derivatives beyond the first in reverse mode: of every public function, in every way there is."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from ops.cases import activation, alignment, laid_out, relative_error
from torch import Tensor
from torch.autograd import forward_ad

import ltdd_ext
from ltdd_ext import reference

OPS = torch.ops.ltdd_ext

# What is promised of every public name: derivatives of any order in reverse and forward mode, the
# first one alone, a constant, or nothing because it takes or returns no tensor.
PROMISES = {
    "align_loss": "any order",
    "bn_act_moments": "any order",
    "conv3x3": "any order",
    "norm_act": "any order",
    "row_moments": "any order",
    "synced_norm_act": "first",
    "class_moments": "constant",
    "class_moments_finish": "constant",
    "class_moments_merge_": "constant",
    "class_moments_update_": "constant",
    "ClassMoments": "constant",
    "FinishedMoments": "no function",
    "backends": "no function",
    "build_info": "no function",
    "nn": "no function",
    "reference": "no function",
    "nn.FusedBatchNorm": "any order",
    "nn.LayerMoments": "no function",
    "nn.ObservedBatchNorm": "any order",
    "nn.ObservedModel": "any order",
    "nn.convert_observer": "any order",
    "nn.convolve": "any order",
}


def test_every_public_name_says_what_its_derivatives_are():
    names = [*ltdd_ext.__all__, *(f"nn.{name}" for name in ltdd_ext.nn.__all__)]
    assert sorted(PROMISES) == sorted(names)
    for name, promise in PROMISES.items():
        module = ltdd_ext.nn if name.startswith("nn.") else ltdd_ext
        text = " ".join((inspect.getdoc(getattr(module, name.removeprefix("nn."))) or "").split())
        assert ("any number of times and in forward mode" in text) == (promise == "any order"), name
        assert ("Differentiable once" in text) == (promise == "first"), name
        assert ("Not differentiable" in text) == (promise == "constant"), name


@dataclass(frozen=True)
class Case:
    """A call that is differentiated, in float64 unless its operator knows float32 only."""

    call: Callable[..., Sequence[Tensor]]
    reference: Callable[..., Sequence[Tensor]]
    inputs: tuple[Tensor, ...]

    @property
    def tolerance(self) -> float:
        return 2e-4 if self.inputs[0].dtype == torch.float32 else 1e-10

    def leaves(self) -> list[Tensor]:
        return [one.detach().clone().requires_grad_() for one in self.inputs]


Build = Callable[[object], Callable[..., Sequence[Tensor]]]


def case(build: Build, *inputs: Tensor) -> Case:
    return Case(build(ltdd_ext), build(reference), inputs)


def smooth_activation(
    shape: tuple[int, ...], layout: str, before_relu: Callable[[Tensor], Tensor]
) -> Tensor:
    """Return the first of some activations for which no element is near the kink of the ReLU."""
    for seed in range(200):
        x = activation(shape, torch.float64, layout, seed=seed)
        if float(before_relu(x).abs().min()) > 3e-3:
            return x
    raise AssertionError("no such activation")


def row_moments_case(layout: str, shape: tuple[int, ...]) -> Case:
    return case(lambda ops: ops.row_moments, activation(shape, torch.float64, layout))


def bn_act_moments_case(layout: str, act: str, pool: str, residual: str) -> Case:
    k, h = torch.tensor([[0.7, -1.2], [0.3, -0.2]], dtype=torch.float64)
    shape = (2, 2, 5, 3)
    other = activation(shape, torch.float64, "rows", seed=400)

    def before(x: Tensor) -> Tensor:
        added = {"none": 0.0, "other": other, "itself": x}[residual]
        return k.view(2, 1, 1) * x + h.view(2, 1, 1) + added

    def build(ops):
        def call(x, *rest):
            added = {"none": None, "other": rest[0] if rest else None, "itself": x}[residual]
            return ops.bn_act_moments(x, k, h, added, act, pool)

        return call

    x = smooth_activation(shape, layout, before)
    return case(build, x, *([other] if residual == "other" else []))


def norm_act_case(layout: str, over: str, act: str, pool: str, shape: tuple[int, ...]) -> Case:
    generator = torch.Generator().manual_seed(7)
    weight, bias = (torch.randn(shape[1], generator=generator).double() for _ in range(2))
    x = smooth_activation(
        shape, layout, lambda x: reference.norm_act(x, weight, bias, over, 1e-2, "none")[0]
    )
    # The moments are constants, which the checks below have no word for.
    return case(
        lambda ops: lambda *given: ops.norm_act(*given, over, 1e-2, act, pool)[:1], x, weight, bias
    )


def align_loss_case(class_weight: float, weights: list[float] | None) -> Case:
    one = alignment(rows=5, channels=(2, 3), num_classes=4, dtype=torch.float64)

    def build(ops):
        def call(*rows):
            rest = (*one.arguments()[2:8], weights, class_weight)
            return (ops.align_loss(rows[:2], rows[2:], *rest),)

        return call

    return case(build, *one.means, *one.m2s)


def conv3x3_case(layout: str, shape: tuple[int, ...], out: int) -> Case:
    generator = torch.Generator().manual_seed(3)
    taps = torch.randn(out, shape[1], 3, 3, generator=generator) / (3 * shape[1] ** 0.5)
    bias = torch.randn(out, generator=generator)

    def build(ops):
        if ops is reference:  # of float64, which the operator refuses
            return lambda *given: (torch.nn.functional.conv2d(*given, padding=1),)
        return lambda *given: (ops.conv3x3(*given),)

    return case(build, activation(shape, layout=layout), taps, bias)


LAYOUTS = ["rows", "pixels", "sliced"]
DOUBLE_CASES: dict[str, Callable[[], Case]] = {
    **{
        f"row_moments-{layout}-{shape}": lambda layout=layout, shape=shape: row_moments_case(
            layout, shape
        )
        for layout in LAYOUTS
        for shape in [(2, 3, 3, 5), (1, 1, 1, 1), (2, 3, 7)]
    },
    **{
        f"bn_act_moments-{layout}-{act}-{pool}-{residual}": (
            lambda layout=layout, act=act, pool=pool, residual=residual: bn_act_moments_case(
                layout, act, pool, residual
            )
        )
        for layout in LAYOUTS[:2]
        for act in ["none", "relu"]
        for pool in ["none", "avg2", "max3"]
        for residual in ["none", "other", "itself"]
    },
    **{
        f"norm_act-{layout}-{over}-{act}-{pool}-{shape}": (
            lambda layout=layout, over=over, act=act, pool=pool, shape=shape: norm_act_case(
                layout, over, act, pool, shape
            )
        )
        for layout in LAYOUTS[:2]
        for over in ["batch", "image"]
        for act in ["none", "relu"]
        for pool, shape in [("none", (2, 2, 3, 5)), ("avg2", (3, 2, 5, 3)), ("none", (3, 2, 5))]
    },
    **{
        f"align_loss-{class_weight}-{weights}": (
            lambda class_weight=class_weight, weights=weights: align_loss_case(
                class_weight, weights
            )
        )
        for class_weight in [0.0, 0.7]
        for weights in [None, [2.0, 0.5]]
    },
}
SINGLE_CASES: dict[str, Callable[[], Case]] = {
    f"conv3x3-{layout}-{shape}-{out}": lambda layout=layout, shape=shape, out=out: conv3x3_case(
        layout, shape, out
    )
    for layout in LAYOUTS
    for shape, out in [
        ((2, 3, 5, 7), 4),
        ((1, 33, 9, 6), 12),
        ((3, 12, 1, 1), 1),
        ((2, 40, 8, 8), 40),
    ]
}
# One of each operator, for what does not depend on switches.
EACH: dict[str, Callable[[], Case]] = {
    "row_moments": lambda: row_moments_case("pixels", (2, 3, 3, 5)),
    "bn_act_moments": lambda: bn_act_moments_case("rows", "relu", "avg2", "itself"),
    "norm_act-batch": lambda: norm_act_case("pixels", "batch", "relu", "avg2", (3, 2, 5, 3)),
    "norm_act-image": lambda: norm_act_case("rows", "image", "relu", "none", (2, 2, 3, 5)),
    "align_loss": lambda: align_loss_case(0.7, None),
    "conv3x3": lambda: conv3x3_case("pixels", (2, 9, 5, 6), 10),
}


def scalar(function: Callable[..., Sequence[Tensor]]) -> Callable[..., Tensor]:
    """Return a function whose every derivative matters: a sum of weighted sines of the outputs."""

    def total(*inputs: Tensor) -> Tensor:
        parts = [
            (torch.arange(1.0, out.numel() + 1).double().cos().view(out.shape) * out.double().sin())
            for out in function(*inputs)
        ]
        return torch.stack([part.sum() for part in parts]).sum()

    return total


def directions(inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(11)
    return tuple(
        torch.randn(one.shape, generator=generator, dtype=torch.float64).to(one) for one in inputs
    )


def gradients(
    function: Callable[..., Tensor], inputs: Sequence[Tensor], order: int
) -> list[Tensor]:
    """Differentiate in the same direction again and again."""
    leaves = [one.detach().clone().requires_grad_() for one in inputs]
    value, toward = function(*leaves), directions(leaves)
    for step in range(order):
        found = torch.autograd.grad(
            value, leaves, create_graph=step + 1 < order, materialize_grads=True
        )
        value = sum((one * way).sum() for one, way in zip(found, toward, strict=True))
    return list(found)


def assert_agree(got: Sequence[Tensor], wanted: Sequence[Tensor], tolerance: float = 1e-10) -> None:
    largest = max(float(one.abs().max()) for one in wanted)
    assert largest > 0
    for one, want in zip(got, wanted, strict=True):
        assert float((one.double() - want).abs().max()) <= tolerance * largest


def exact(one: Case) -> tuple[Tensor, ...]:
    return tuple(value.double() for value in one.inputs)


@pytest.mark.parametrize("name", DOUBLE_CASES)
def test_gradients_of_gradients_are_those_of_finite_differences(name):
    one = DOUBLE_CASES[name]()
    assert torch.autograd.gradgradcheck(one.call, one.leaves())


@pytest.mark.parametrize("name", SINGLE_CASES)
def test_second_and_third_derivatives_in_float32_match_float64(name):
    one = SINGLE_CASES[name]()
    for order in (2, 3):
        assert_agree(
            gradients(scalar(one.call), one.inputs, order),
            gradients(scalar(one.reference), exact(one), order),
            one.tolerance,
        )


@pytest.mark.parametrize("order", [1, 2, 3, 4])
@pytest.mark.parametrize("name", EACH)
def test_every_order_matches_the_reference(name, order):
    one = EACH[name]()
    assert_agree(
        gradients(scalar(one.call), one.inputs, order),
        gradients(scalar(one.reference), exact(one), order),
        one.tolerance,
    )


@pytest.mark.parametrize("name", ["row_moments", "bn_act_moments", "norm_act"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_second_derivatives_in_narrow_types_match_float64(name, dtype):
    """Rounded like the first ones; the reference reads the same rounded numbers."""
    x = activation((4, 3, 6, 6)).to(dtype)
    scale = torch.tensor([0.7, -1.2, 2.0])

    def build(ops, scale):
        calls = {
            "row_moments": lambda x: ops.row_moments(x),
            "bn_act_moments": lambda x: ops.bn_act_moments(x, scale, scale, x, "none"),
            "norm_act": lambda x: ops.norm_act(x, scale, scale, "image", 1e-2, "none")[:1],
        }
        return scalar(calls[name])

    (got,) = gradients(build(ltdd_ext, scale), [x], 2)
    (want,) = gradients(build(reference, scale.double()), [x.double()], 2)
    assert got.dtype == dtype
    assert relative_error(got, want) <= (1e-5 if dtype == torch.float32 else 0.03)


@pytest.mark.parametrize("name", [name for name in EACH if name != "conv3x3"])
def test_forward_mode_and_batches_are_those_of_finite_differences(name):
    """Eagerly: dual numbers, batches of gradients, and forward mode over reverse mode."""
    one = EACH[name]()
    assert torch.autograd.gradcheck(
        one.call,
        one.leaves(),
        check_forward_ad=True,
        check_batched_grad=True,
        check_batched_forward_grad=True,
    )
    assert torch.autograd.gradgradcheck(
        one.call, one.leaves(), check_fwd_over_rev=True, check_batched_grad=True
    )


@pytest.mark.parametrize("name", EACH)
def test_dual_numbers_carry_the_tangent(name):
    one = EACH[name]()
    found = []
    for function, inputs in ((one.call, one.inputs), (one.reference, exact(one))):
        with forward_ad.dual_level():
            pairs = zip(inputs, directions(one.inputs), strict=True)
            duals = [forward_ad.make_dual(value, way.to(value)) for value, way in pairs]
            outputs = [forward_ad.unpack_dual(out) for out in function(*duals)]
        assert all(out.tangent is not None for out in outputs)
        found.append([part for out in outputs for part in out])
    assert_agree(*found, one.tolerance)


def func_transforms(
    function: Callable[..., Tensor], inputs: tuple[Tensor, ...], ways: tuple[Tensor, ...]
) -> dict[str, Callable[[], Any]]:
    """Return what each transform of torch.func makes of a scalar function."""
    func = torch.func
    first, rest = inputs[0], inputs[1:]
    batch = torch.stack([first, first + 0.1 * ways[0]])
    every = tuple(range(len(inputs)))
    return {
        "vjp": lambda: func.vjp(function, *inputs)[1](torch.ones((), dtype=torch.float64)),
        "grad": lambda: func.grad(function, every)(*inputs),
        "jvp": lambda: func.jvp(function, inputs, ways),
        "jvp of grad": lambda: func.jvp(func.grad(function, every), inputs, ways)[1],
        "grad of jvp": lambda: func.grad(lambda *given: func.jvp(function, given, ways)[1], every)(
            *inputs
        ),
        "vmap": lambda: func.vmap(lambda one: function(one, *rest))(batch),
        "vmap of grad": lambda: func.vmap(func.grad(lambda one: function(one, *rest)))(batch),
    }


TRANSFORMS = list(func_transforms(torch.sum, (torch.zeros(1),), (torch.zeros(1),)))


@pytest.mark.parametrize("transform", TRANSFORMS)
@pytest.mark.parametrize("name", EACH)
def test_transforms_of_torch_func_match_the_reference(name, transform):
    one = EACH[name]()
    got = func_transforms(scalar(one.call), one.inputs, directions(one.inputs))[transform]()
    inputs = exact(one)
    ways = tuple(way.double() for way in directions(one.inputs))
    want = func_transforms(scalar(one.reference), inputs, ways)[transform]()
    as_list = lambda value: [value] if isinstance(value, Tensor) else list(value)  # noqa: E731
    assert_agree(as_list(got), as_list(want), one.tolerance)


@pytest.mark.parametrize("name", [name for name in EACH if name != "conv3x3"])
def test_hessians_match_the_reference(name):
    one = EACH[name]()
    hessians = [
        torch.func.hessian(scalar(function))(*one.inputs) for function in (one.call, one.reference)
    ]
    assert_agree([hessians[0]], [hessians[1]])
    rows = torch.autograd.functional.hessian(scalar(one.call), one.inputs, vectorize=True)
    assert_agree([rows[0][0]], [hessians[1]])


@pytest.mark.parametrize("transform", ["grad", "vmap", "jvp of grad"])
@pytest.mark.parametrize("name", EACH)
def test_transforms_compile_into_one_graph(name, transform):
    one = EACH[name]()
    torch._dynamo.reset()

    ways = directions(one.inputs)

    def run(*inputs: Tensor) -> object:
        return func_transforms(scalar(one.call), inputs, ways)[transform]()

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the compiler's own
        got = torch.compile(run, fullgraph=True, backend="aot_eager")(*one.inputs)
    want = run(*one.inputs)
    if isinstance(got, Tensor):
        got, want = [got], [want]
    for value, wanted in zip(got, want, strict=True):
        torch.testing.assert_close(value, wanted)


@pytest.mark.parametrize("name", EACH)
def test_compiled_functions_refuse_or_are_right(name):
    """A compiled backward pass cannot be differentiated; one that is only traced can."""
    one = EACH[name]()
    torch._dynamo.reset()
    want = [gradients(scalar(one.reference), exact(one), order) for order in (1, 2)]
    traced = torch.compile(scalar(one.call), fullgraph=True, backend="eager")
    assert_agree(gradients(traced, one.inputs, 2), want[1], one.tolerance)
    compiled = torch.compile(scalar(one.call), fullgraph=True, backend="aot_eager")
    assert_agree(gradients(compiled, one.inputs, 1), want[0], one.tolerance)
    with pytest.raises(RuntimeError, match=r"double backward|create_graph=False"):
        gradients(compiled, one.inputs, 2)


@pytest.mark.parametrize("name", EACH)
def test_first_derivatives_are_computed_by_the_kernels(name):
    """With and without a compiler, whatever else PyTorch could compute them by."""
    one = EACH[name]()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        gradients(scalar(one.call), one.inputs, 1)
    operator = name.split("-")[0]
    own = {event.name for event in profile.events() if event.name.startswith("ltdd_ext::")}
    backward = set() if operator == "align_loss" else {f"ltdd_ext::{operator}_backward"}
    assert own == {f"ltdd_ext::{operator}"} | backward

    graphs = []

    def note(graph: torch.fx.GraphModule, _: object) -> torch.fx.GraphModule:
        graphs.append({str(node.target) for node in graph.graph.nodes})
        return graph

    torch._dynamo.reset()
    backend = torch._dynamo.backends.common.aot_autograd(fw_compiler=note, bw_compiler=note)
    gradients(torch.compile(scalar(one.call), fullgraph=True, backend=backend), one.inputs, 1)
    found = set().union(*graphs)
    assert {node.removesuffix(".default") for node in found if node.startswith("ltdd_ext")} == {
        one.replace("::", ".") for one in own
    }


@pytest.mark.parametrize("name", ["norm_act-batch", "norm_act-image", "conv3x3"])
def test_second_derivatives_are_computed_by_the_kernels(name):
    """Nothing else is left to PyTorch that goes over a whole activation."""
    one = EACH[name]()
    leaves = one.leaves()
    toward = directions(one.inputs)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        (y,) = one.call(*leaves)
        first = torch.autograd.grad(y.sum(), leaves, create_graph=True)
        torch.autograd.grad(first, leaves, toward, allow_unused=True)  # none by the bias
    events = {event.name for event in profile.events()}
    own = {event for event in events if event.startswith("ltdd_ext::")}
    last = {"conv3x3": set(), "norm_act": {"ltdd_ext::norm_act_double_backward"}}
    operator = name.split("-")[0]
    assert own == {f"ltdd_ext::{operator}", f"ltdd_ext::{operator}_backward"} | last[operator]
    assert not events & {"aten::var_mean", "aten::rsqrt", "aten::threshold_backward"}


@pytest.mark.parametrize("name", ["row_moments", "bn_act_moments", "norm_act"])
def test_a_gradient_through_a_backward_operator_is_an_error(name):
    """It used to be nothing, with a warning."""
    x = activation((2, 3, 4, 4)).requires_grad_()
    rows, channel = torch.ones(2, 3, dtype=torch.float64), torch.ones(3)
    outputs = {
        "row_moments": lambda: OPS.row_moments_backward(rows, rows, x, rows),
        "bn_act_moments": lambda: OPS.bn_act_moments_backward(
            x, rows, rows, x, channel, channel, None, rows, 1, 1
        ),
        "norm_act": lambda: OPS.norm_act_double_backward(
            x, channel, channel, x, x, channel, channel, rows, rows, True, 1e-5, 1, 1
        ),
    }[name]()
    first = outputs if isinstance(outputs, Tensor) else outputs[0]
    last = rf"{name}_(double_)?backward: .*use ltdd_ext\.{name} and"
    with pytest.raises(NotImplementedError, match=last):
        first.sum().backward()


@pytest.mark.parametrize("class_weight", [0.0, 0.5])
def test_derivatives_of_a_norm_at_zero_are_zero(class_weight):
    mean = torch.zeros(4, 3, dtype=torch.float64, requires_grad=True)
    m2 = torch.full((4, 3), 8.0, dtype=torch.float64, requires_grad=True)
    labels = torch.tensor([0, 0, 2, 2])
    target = [torch.zeros(3), torch.full((3,), 2.0)]
    tables = [one.expand(3, 3) for one in target]
    for ops in (ltdd_ext, reference):
        loss = ops.align_loss(
            [mean], [m2], [4], labels, target[:1], target[1:], tables[:1], tables[1:],
            class_weight=class_weight,
        )  # fmt: skip
        first = torch.autograd.grad(loss, (mean, m2), create_graph=True)
        second = torch.autograd.grad(sum(one.sum() for one in first), (mean, m2))
        assert not any(one.any() for one in (*first, *second))


def test_align_loss_refuses_arguments_changed_before_its_gradient_is_differentiated():
    one = alignment(dtype=torch.float64, requires_grad=True)
    loss = ltdd_ext.align_loss(*one.arguments())
    one.global_means[1].add_(1.0)
    torch.autograd.grad(loss, one.means, retain_graph=True)  # computed in the forward pass
    with pytest.raises(RuntimeError, match=r"align_loss: expected its arguments as they were"):
        torch.autograd.grad(loss, one.means, create_graph=True)


def test_targets_made_in_inference_mode_are_accepted():
    one = alignment(dtype=torch.float64, requires_grad=True)
    with torch.inference_mode():
        targets = [[part.clone() for part in group] for group in one.arguments()[4:8]]
    loss = ltdd_ext.align_loss(*one.arguments()[:4], *targets, one.weights, 0.5)
    wanted = reference.align_loss(*one.arguments(), 0.5)
    firsts = [torch.autograd.grad(value, one.means, create_graph=True) for value in (loss, wanted)]
    seconds = [torch.autograd.grad(sum(g.sin().sum() for g in first), one.m2s) for first in firsts]
    assert_agree(*seconds)


@pytest.mark.parametrize("ops", [ltdd_ext, reference], ids=["compiled", "reference"])
def test_constants_have_no_derivative_in_any_mode(ops):
    x = activation((4, 3, 2, 2), torch.float64)
    labels = torch.tensor([0, 1, 1, 0])
    scale = torch.ones(3, dtype=torch.float64)
    calls = {
        "class_moments": lambda x: ops.class_moments(x, labels, 2),
        "moments of norm_act": lambda x: ops.norm_act(x, scale, scale)[1:],
    }
    for call in calls.values():
        assert not any(part.requires_grad for part in call(x.clone().requires_grad_()))
        with forward_ad.dual_level():
            dual = forward_ad.make_dual(x, torch.ones_like(x))
            assert all(forward_ad.unpack_dual(part).tangent is None for part in call(dual))


def test_an_observed_network_has_second_derivatives_and_transforms():
    torch.manual_seed(0)
    nn = torch.nn
    model = nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.AvgPool2d(2)
    ).double()
    observed = ltdd_ext.nn.convert_observer(model, strict=True)
    plain = ltdd_ext.nn.convert_observer(model, reference, strict=True)
    x = torch.randn(2, 2, 6, 6, dtype=torch.float64)

    def outputs(
        network: Callable[..., tuple[Tensor, list]],
    ) -> Callable[[Tensor], Sequence[Tensor]]:
        def call(x: Tensor) -> Sequence[Tensor]:
            y, ((mean, m2, _),) = network(x)
            return y, mean, m2

        return call

    got, want = scalar(outputs(observed)), scalar(outputs(plain))
    assert_agree(gradients(got, [x], 2), gradients(want, [x], 2))
    assert_agree([torch.func.hessian(got)(x)], [torch.func.hessian(want)(x)])


def test_second_derivatives_on_every_device(device):
    """Of a statistic matching loss as a recovery has it, by the kernels of each device."""
    x = activation((6, 3, 6, 6), torch.float64)
    labels = torch.tensor([0, 2, 2, 0, 0, 2])
    target = torch.linspace(0.5, 1.5, 3, dtype=torch.float64)

    def build(ops, device):
        k, table = target.to(device), target.expand(3, 3).to(device)

        def loss(x: Tensor) -> Tensor:
            y, mean, m2 = ops.bn_act_moments(x, k, k, x, "none", "avg2")
            rows = [(mean, m2), ops.row_moments(y.sin())]
            return ops.align_loss(
                [mean for mean, _ in rows], [m2 for _, m2 in rows], [36, 9], labels.to(device),
                [k, k], [k, k], [table, table], [table, table], class_weight=0.5,
            )  # fmt: skip

        return loss

    (want,) = gradients(build(reference, "cpu"), [x], 2)
    for layout in ("rows", "pixels"):
        (got,) = gradients(build(ltdd_ext, device), [laid_out(x, layout).to(device)], 2)
        assert_agree([got.cpu()], [want])
