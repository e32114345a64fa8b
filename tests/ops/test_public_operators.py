"""Every public operator refuses what its docstring excludes, in one sentence.

For each there are arguments that work, and rows that change some of them, with a part of the
message: so it is the change that is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from helpers.public_methods import methods
from torch import nn

import ltdd_ext

Arguments = Mapping[str, Any]
Row = tuple[Arguments, str]

MADE_BY_FUNCTIONS = {
    "FinishedMoments", "FusedBatchNorm", "LayerMoments", "ObservedBatchNorm", "ObservedModel",
}  # fmt: skip
WITHOUT_ARGUMENTS = {"backends", "build_info"}

X = torch.rand(4, 2, 6, 6)
Y = torch.tensor([0, 1, 1, 0])
THREE, TWO = torch.ones(3), torch.ones(2)
ROWS_ = torch.rand(4, 2, dtype=torch.float64)
TABLE = torch.rand(2, 2, dtype=torch.float64)
SPARSE = X.to_sparse()


def state(prefix: str = "") -> dict[str, Any]:
    table = {name: torch.zeros(2, 2).double() for name in ("mu", "within", "between")}
    parts = {"count": torch.zeros(2).long()} | table
    return {prefix + name: part for name, part in parts.items()}


OPERATORS: dict[str, Callable[[], Arguments]] = {
    "row_moments": lambda: {"x": X},
    "bn_act_moments": lambda: {"x": X, "k": TWO, "h": TWO, "residual": X},
    "norm_act": lambda: {"x": X, "weight": TWO, "bias": TWO},
    "synced_norm_act": lambda: {
        "x": X,
        "weight": TWO,
        "bias": TWO,
        "gather": lambda own: own[None],
    },
    "conv3x3": lambda: {"x": X, "weight": torch.rand(3, 2, 3, 3), "bias": THREE},
    "class_moments": lambda: {"x": X, "labels": Y, "num_classes": 2},
    "class_moments_update_": lambda: (
        state() | {"mean": ROWS_, "m2": ROWS_, "spatial_size": 36, "labels": Y}
    ),
    "class_moments_merge_": lambda: state() | state("other_"),
    "class_moments_finish": state,
    "align_loss": lambda: {
        "means": [ROWS_],
        "m2s": [ROWS_],
        "sizes": [36],
        "labels": Y,
        "global_means": [TWO],
        "global_vars": [TWO],
        "class_means": [TABLE],
        "class_vars": [TABLE],
        "weights": [1.0],
        "class_weight": 1.0,
    },
}

ACTIVATIONS: list[Row] = [
    ({"x": None}, "expected x a torch.Tensor, got NoneType"),
    ({"x": X.numpy()}, "expected x a torch.Tensor, got ndarray"),
    ({"x": [[1.0]]}, "expected x a torch.Tensor, got list"),
    ({"x": SPARSE}, "expected x a strided tensor"),
]
PLAIN: list[Row] = [
    ({"x": X.long()}, "expected x of dtype float32, bfloat16, float16 or float64, got torch.int64"),
    ({"x": X.bool()}, "expected x of dtype"),
    ({"x": X.to(torch.complex64)}, "expected x of dtype"),
    ({"x": X[0, 0]}, "expected x of shape (N, C, H, W) or (N, C, S), got (6, 6)"),
    ({"x": X[None]}, "expected x of shape (N, C, H, W) or (N, C, S)"),
]
SWITCHES: list[Row] = [
    ({"act": "gelu"}, "expected act one of ('none', 'relu'), got 'gelu'"),
    ({"act": None}, "expected act one of"),
    ({"act": ["relu"]}, "expected act one of"),
    ({"pool": "max"}, "expected pool one of ('none', 'avg2'"),
    ({"pool": 2}, "expected pool one of"),
    ({"pool": {}}, "expected pool one of"),
    ({"x": X.flatten(2), "residual": None, "pool": "avg2"}, "expected x of shape (N, C, H, W)"),
    ({"x": X[..., :1], "residual": None, "pool": "avg2"}, "of height >= 2 and width in [2, 8192]"),
]
NUMBER_OF_PIXELS: list[Row] = [
    ({"spatial_size": 0}, "expected spatial_size >= 1, got 0"),
    ({"spatial_size": 36.0}, "expected spatial_size a whole number, got 36.0"),
    ({"spatial_size": "36"}, "expected spatial_size a whole number"),
    ({"spatial_size": True}, "expected spatial_size a whole number, got True"),
]
LABELS: list[Row] = [
    ({"labels": Y.tolist()}, "expected labels a torch.Tensor, got list"),
    ({"labels": Y.int()}, "expected labels of dtype int64, got int32"),
    ({"labels": Y.float()}, "expected labels of dtype int64"),
    ({"labels": Y[:3]}, "expected labels of shape (4,), got (3,)"),
    ({"labels": Y[:, None]}, "expected labels of shape (4,), got (4, 1)"),
    ({"labels": Y + 1}, "expected labels in [0, 2), got 2"),
    ({"labels": Y - 1}, "expected labels in [0, 2), got -1"),
]


def of_state(prefix: str) -> list[Row]:
    count, mu, within = (prefix + name for name in ("count", "mu", "within"))
    return [
        ({mu: None}, f"expected {mu} a torch.Tensor, got NoneType"),
        ({mu: torch.zeros(2)}, f"expected {mu} of shape (K, C), got (2,)"),
        ({count: torch.zeros(2)}, f"expected {count} of dtype int64, got float32"),
        ({count: torch.zeros(3).long()}, f"expected {count} of shape (2,), got (3,)"),
        ({within: torch.zeros(2, 2)}, f"expected {within} of dtype float64, got float32"),
        ({f"{prefix}between": torch.zeros(3, 2).double()}, f"{prefix}between of shape (2, 2)"),
        ({f"{prefix}between": TABLE.T}, f"expected {prefix}between contiguous, got strides"),
    ]


REFUSED: dict[str, list[Row]] = {
    "row_moments": ACTIVATIONS + PLAIN,
    "bn_act_moments": [
        *ACTIVATIONS, *PLAIN, *SWITCHES,
        ({"pool": "max2"}, "expected pool one of ('none', 'avg2', 'max3'), got 'max2'"),
        ({"x": X.flatten(2), "residual": None, "pool": "max3"}, "of shape (N, C, H, W) with pool"),
        ({"x": X[..., :0], "residual": None, "pool": "max3"}, "with channels and pixels to pool"),
        ({"k": None}, "expected k a torch.Tensor, got NoneType"),
        ({"k": THREE}, "expected k of shape (2,), got (3,)"),
        ({"k": TWO.double()}, "expected k of dtype float32, got float64"),
        ({"h": 1.0}, "expected h a torch.Tensor, got float"),
        ({"h": TWO.to("meta")}, "expected h on cpu, got meta"),
        ({"residual": X[:1]}, "expected residual of shape (4, 2, 6, 6), got (1, 2, 6, 6)"),
        ({"residual": X.double()}, "expected residual of dtype float32"),
        ({"residual": 0}, "expected residual a torch.Tensor, got int"),
    ],
    "norm_act": [
        *ACTIVATIONS, *PLAIN,
        *((changes, message) for changes, message in SWITCHES if "residual" not in changes),
        ({"pool": "max3"}, "expected pool one of ('none', 'avg2'), got 'max3'"),
        ({"weight": None}, "expected weight a torch.Tensor, got NoneType"),
        ({"weight": THREE}, "expected weight of shape (2,), got (3,)"),
        ({"bias": TWO.half()}, "expected bias of dtype float32"),
        ({"over": "layer"}, "expected over one of ('batch', 'image'), got 'layer'"),
        ({"over": ["batch"]}, "expected over one of"),
        ({"eps": 0}, "expected eps > 0, got 0"),
        ({"eps": -1e-5}, "expected eps > 0"),
        ({"eps": float("nan")}, "expected eps finite, got nan"),
        ({"eps": float("inf")}, "expected eps finite, got inf"),
        ({"eps": "1e-5"}, "expected eps a number, got '1e-5'"),
        ({"eps": None}, "expected eps a number, got None"),
        ({"x": X[:1, :, :1, :1]}, "expected x with several values a channel"),
    ],
    "synced_norm_act": [
        *ACTIVATIONS, *PLAIN,
        *((changes, message) for changes, message in SWITCHES if "residual" not in changes),
        ({"weight": THREE}, "expected weight of shape (2,), got (3,)"),
        ({"bias": TWO.half()}, "expected bias of dtype float32"),
        ({"gather": None}, "expected gather a function, got NoneType"),
        ({"eps": 0}, "expected eps > 0, got 0"),
        ({"x": X[:1, :, :1, :1]}, "expected x with several values a channel"),
    ],
    "conv3x3": [
        *ACTIVATIONS,
        ({"x": X.double()}, "expected x of dtype float32 or bfloat16, got float64"),
        ({"x": X[0]}, "expected x of shape (N, C, H, W), got (2, 6, 6)"),
        ({"weight": torch.rand(3, 2, 5, 5)}, "expected weight of shape (O, 2, 3, 3)"),
        ({"weight": torch.rand(3, 1, 3, 3)}, "expected weight of shape (O, 2, 3, 3)"),
        ({"weight": None}, "expected weight a torch.Tensor, got NoneType"),
        ({"bias": None}, "expected bias a torch.Tensor, got NoneType"),
        ({"bias": TWO}, "expected bias of shape (3,), got (2,)"),
        ({"bias": THREE.double()}, "expected bias of dtype float32"),
        ({"bias": THREE.to("meta")}, "expected bias on cpu, got meta"),
    ],
    "class_moments": [
        *ACTIVATIONS, *PLAIN, *LABELS,
        ({"x": X[:, :, :0]}, "expected x with at least one pixel"),
        ({"num_classes": 0}, "expected num_classes >= 1, got 0"),
        ({"num_classes": 2.0}, "expected num_classes a whole number, got 2.0"),
        ({"num_classes": "2"}, "expected num_classes a whole number, got '2'"),
        ({"num_classes": None}, "expected num_classes a whole number, got None"),
        ({"num_classes": True, "labels": Y * 0}, "expected num_classes a whole number, got True"),
    ],
    "class_moments_update_": [
        *of_state(""), *LABELS, *NUMBER_OF_PIXELS,
        ({"mean": ROWS_.half()}, "expected mean of dtype float32 or float64"),
        ({"mean": ROWS_[:, :1]}, "expected mean of shape (N, 2), got (4, 1)"),
        ({"mean": None}, "expected mean a torch.Tensor, got NoneType"),
        ({"m2": ROWS_.float()}, "expected m2 of dtype float64, got float32"),
        ({"m2": ROWS_[:2]}, "expected m2 of shape (4, 2), got (2, 2)"),
        ({"m2": ROWS_.to("meta")}, "expected m2 on cpu, got meta"),
    ],
    "class_moments_merge_": [
        *of_state(""), *of_state("other_"),
        (
            {name: torch.zeros(3, *part.shape[1:], dtype=part.dtype)
             for name, part in state("other_").items()},
            "expected other_mu of shape (2, 2), got (3, 2)",
        ),
    ],
    "class_moments_finish": of_state(""),
    "align_loss": [
        *LABELS,
        ({"means": []}, "expected means to hold at least one layer, got 0"),
        ({"means": ROWS_}, "expected means a sequence with one entry per layer, got Tensor"),
        ({"means": None}, "expected means a sequence with one entry per layer, got NoneType"),
        ({"means": [None]}, "expected means a torch.Tensor, got NoneType"),
        ({"means": [ROWS_.half()]}, "expected means of dtype float32 or float64"),
        ({"means": [ROWS_[0]]}, "expected means[0] of shape (N, C), got (2,)"),
        ({"means": [torch.tensor(1.0)]}, "expected means[0] of shape (N, C), got ()"),
        ({"m2s": [ROWS_.float()]}, "expected m2s[0] of dtype float64, got float32"),
        ({"m2s": ROWS_[None]}, "expected m2s a sequence with one entry per layer, got Tensor"),
        ({"m2s": [ROWS_, ROWS_]}, "expected m2s to hold 1 entries, one per layer, got 2"),
        ({"sizes": [0]}, "expected sizes[0] >= 1, got 0"),
        ({"sizes": [36.5]}, "expected sizes[0] a whole number, got 36.5"),
        ({"sizes": ["36"]}, "expected sizes[0] a whole number, got '36'"),
        ({"sizes": 36}, "expected sizes a sequence"),
        ({"global_means": [THREE]}, "expected global_means[0] of shape (2,), got (3,)"),
        ({"global_means": None}, "expected global_means a sequence with one entry"),
        ({"global_vars": [TWO.half()]}, "expected global_vars[0] of dtype float32 or float64"),
        ({"class_means": [TWO]}, "class_means[0] of shape"),
        ({"class_means": [torch.tensor(1.0)]}, "class_means[0] of shape"),
        ({"class_means": [], "class_vars": []}, "expected class_means to hold 1 entries"),
        ({"class_vars": [TABLE[:1]]}, "expected class_vars[0] of shape (2, 2), got (1, 2)"),
        ({"weights": [1.0, 2.0]}, "expected weights to hold 1 entries, one per layer, got 2"),
        ({"weights": ["1"]}, "expected weights[0] a number, got '1'"),
        ({"weights": [float("nan")]}, "expected weights[0] finite, got nan"),
        ({"weights": 1.0}, "expected weights a sequence with one entry per layer, got float"),
        ({"class_weight": "1"}, "expected class_weight a number, got '1'"),
        ({"class_weight": None}, "expected class_weight a number, got None"),
        ({"class_weight": float("inf")}, "expected class_weight finite, got inf"),
    ],
}  # fmt: skip


@pytest.mark.parametrize("package", [ltdd_ext, ltdd_ext.reference], ids=["compiled", "reference"])
@pytest.mark.parametrize("name", OPERATORS)
def test_operators_take_the_arguments_that_rows_change(package: Any, name: str) -> None:
    getattr(package, name)(**OPERATORS[name]())


@pytest.mark.parametrize("package", [ltdd_ext, ltdd_ext.reference], ids=["compiled", "reference"])
@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [(name, *row) for name, rows in REFUSED.items() for row in rows],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_operators_refuse_in_one_sentence(
    package: Any, name: str, changes: Arguments, message: str
) -> None:
    with pytest.raises((TypeError, ValueError), match=f"^{name}: ") as caught:
        getattr(package, name)(**OPERATORS[name]() | changes)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


NETWORK = nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.ReLU())


def zeros(num_classes: Any = 2, channels: Any = 2) -> Any:
    return ltdd_ext.ClassMoments.zeros(num_classes, channels)


OTHERS: dict[str, tuple[Callable[..., Any], Arguments, list[Row]]] = {
    "ClassMoments.zeros": (
        zeros,
        {},
        [
            ({"num_classes": 0}, "expected num_classes >= 1, got 0"),
            ({"num_classes": 2.0}, "expected num_classes a whole number, got 2.0"),
            ({"channels": -1}, "expected channels >= 1, got -1"),
            ({"channels": None}, "expected channels a whole number, got None"),
        ],
    ),
    "ClassMoments.update_": (
        lambda **changes: zeros().update_(**changes),
        {"mean": ROWS_, "m2": ROWS_, "spatial_size": 36, "labels": Y},
        [*LABELS, *NUMBER_OF_PIXELS],
    ),
    "ClassMoments.merge_": (
        lambda other: zeros().merge_(other),
        {"other": zeros()},
        [
            ({"other": zeros(3)}, "expected other_mu of shape (2, 2), got (3, 2)"),
            ({"other": zeros().state}, "expected other a ClassMoments, got tuple"),
            ({"other": None}, "expected other a ClassMoments, got NoneType"),
        ],
    ),
    "ClassMoments.finish": (
        lambda **changes: ltdd_ext.ClassMoments(**state() | changes).finish(),
        {},
        of_state(""),
    ),
    "nn.convert_observer": (
        ltdd_ext.nn.convert_observer,
        {"model": NETWORK},
        [
            ({"model": nn.BatchNorm2d}, "expected model an nn.Module, got the class BatchNorm2d"),
            ({"model": "resnet18"}, "expected model an nn.Module, got str"),
            ({"model": nn.Flatten()}, "expected model with BatchNorm2d layers, got Flatten"),
            (
                {"model": nn.Sequential(nn.BatchNorm2d(3, track_running_stats=False))},
                "expected 0 to have running statistics, got none",
            ),
            ({"ops": "reference"}, "expected ops with the operator row_moments, got str"),
            ({"ops": torch}, "expected ops with the operator row_moments, got module"),
        ],
    ),
    "nn.convolve": (
        ltdd_ext.nn.convolve,
        {"layer": NETWORK[0], "x": X},
        [
            ({"layer": nn.Conv2d}, "expected layer an nn.Module, got the class Conv2d"),
            ({"layer": None}, "expected layer an nn.Module, got NoneType"),
            ({"x": X.numpy()}, "expected x a torch.Tensor, got ndarray"),
        ],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", OTHERS)
def test_classes_and_networks_take_the_arguments_that_rows_change(name: str) -> None:
    call, good, _ = OTHERS[name]
    call(**good)


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [(name, *row) for name, (_, _, rows) in OTHERS.items() for row in rows],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_classes_and_networks_refuse_in_one_sentence(
    name: str, changes: Arguments, message: str
) -> None:
    call, good, _ = OTHERS[name]
    with pytest.raises((TypeError, ValueError), match=r"^[\w.]+: expected ") as caught:
        call(**{**good, **changes})
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_checks_hold_for_symbolic_sizes() -> None:
    """A compiler passes the sizes of any image through them."""

    def measure(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        mean, m2 = ltdd_ext.row_moments(x)
        size = x.shape[2] * x.shape[3]
        loss = ltdd_ext.align_loss([mean], [m2], [size], Y, [TWO], [TWO], weights=[2.0])
        return loss, ltdd_ext.class_moments(x, Y, x.shape[1]).total

    compiled = torch.compile(measure, fullgraph=True, dynamic=True, backend="aot_eager")
    for side in (6, 7, 9):
        x = torch.rand(4, 2, side, side)
        for ours, plain in zip(compiled(x), measure(x), strict=True):
            torch.testing.assert_close(ours, plain)


def test_every_public_name_has_rows() -> None:
    """A new operator comes with what it refuses."""
    names = set(ltdd_ext.__all__) - {"nn", "reference", "ClassMoments"} - WITHOUT_ARGUMENTS
    names |= {f"nn.{name}" for name in set(ltdd_ext.nn.__all__) - MADE_BY_FUNCTIONS}
    names |= methods(ltdd_ext.ClassMoments)
    assert names - MADE_BY_FUNCTIONS == set(REFUSED) | set(OTHERS)
    assert set(ltdd_ext.reference.__all__) == set(REFUSED) == set(OPERATORS)
