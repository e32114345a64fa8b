"""Coresets: by hand, against brute force, explicit gradients, classes with few images."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from helpers.stripes import make_data
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from ltdd.config import form_of
from ltdd.engine.runtime import Runtime
from ltdd.errors import UserError
from ltdd.models import build_model
from ltdd.stages.initialization import initial_images
from ltdd.stages.initialization.coresets import farthest_first, graph_cut, prediction_errors


def draw(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_points_on_a_line() -> None:
    line = torch.tensor([[0.0], [1.0], [4.0], [9.0], [10.0]])
    # From 4 the farthest is 10, at 6; then 0, at 4; then 1 and 9 are both at 1: the lower row.
    assert farthest_first(line, 2, 5).tolist() == [2, 4, 0, 1, 3]


def test_equal_points_are_chosen_once_each() -> None:
    assert sorted(farthest_first(torch.zeros(4, 2), 1, 4).tolist()) == [0, 1, 2, 3]


@pytest.mark.parametrize("seed", range(4))
def test_farthest_first_against_brute_force(seed: int) -> None:
    points = draw(seed, 6, 3)
    chosen = [seed]
    while len(chosen) < 4:
        left = [row for row in range(6) if row not in chosen]
        chosen.append(
            max(left, key=lambda row: min(float((points[row] - points[c]).norm()) for c in chosen))
        )
    assert farthest_first(points, seed, 4).tolist() == chosen


def gradients(errors: Tensor, features: Tensor) -> Tensor:
    """Gradients of the cross-entropy by a linear layer, image by image, by autograd."""
    rows = []
    for error, feature in zip(errors, features.double(), strict=True):
        weight = torch.zeros(len(error), len(feature), dtype=torch.float64, requires_grad=True)
        bias = torch.zeros(len(error), dtype=torch.float64, requires_grad=True)
        # The loss's derivative by the logits is the error, whatever the layer's weights are.
        found = torch.autograd.grad((weight @ feature + bias) @ error, (bias, weight))
        rows.append(torch.cat([part.flatten() for part in found]))
    return torch.stack(rows)


@pytest.mark.parametrize("seed", range(6))
def test_graph_cut_against_brute_force_on_explicit_gradients(seed: int) -> None:
    errors, features = prediction_errors(draw(seed, 6, 4), 1), draw(seed + 50, 6, 5)
    unit = F.normalize(gradients(errors, features), dim=1)
    similarity = 0.5 + 0.5 * unit @ unit.T

    def value(chosen: list[int]) -> float:
        within = similarity[chosen][:, chosen].sum()
        return float(similarity[chosen].sum() - within)

    chosen: list[int] = []
    while len(chosen) < 4:
        left = [row for row in range(6) if row not in chosen]
        chosen.append(max(left, key=lambda row: value([*chosen, row])))
    assert graph_cut(errors, features, 4).tolist() == chosen


def test_errors_are_the_gradient_by_the_logits() -> None:
    logits = draw(0, 5, 4).double().requires_grad_()
    F.cross_entropy(logits, torch.full((5,), 2), reduction="sum").backward()
    torch.testing.assert_close(prediction_errors(logits.detach(), 2), logits.grad)


def test_a_sure_network_leaves_directions() -> None:
    # 1 - p is rounded to 0 in float64, yet the images cause gradients of different directions.
    logits = torch.tensor([[90.0, 0, -90], [90, 0, -90], [90, -90, 0]])
    errors = prediction_errors(logits, 0)
    assert (errors.abs().sum(1) > 0).all()
    # The third row is unlike the others: it comes once their middle is taken.
    assert graph_cut(errors, torch.ones(3, 2), 2).tolist() == [0, 2]


def test_no_error_at_all_is_no_reason_to_fail() -> None:
    assert sorted(graph_cut(torch.zeros(3, 2).double(), draw(0, 3, 2), 3).tolist()) == [0, 1, 2]


def test_memory_does_not_grow_with_the_square_of_a_class() -> None:
    largest = 0

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            nonlocal largest
            result = func(*args, **(kwargs or {}))
            if isinstance(result, Tensor):
                largest = max(largest, result.numel())
            return result

    features, logits = draw(0, 600, 8), draw(1, 600, 4)
    with Watch():
        farthest_first(features, 0, 10)
        graph_cut(prediction_errors(logits, 0), features, 10)
    assert largest == 600 * 9  # [1, h]


def test_numbers_that_are_not_finite_stop_the_stage(runtime: Runtime) -> None:
    data = make_data((5, 2, 1))
    teacher = build_model("convnet3", 3, 8, 3)
    with torch.no_grad():
        teacher.classifier.bias[1] = torch.nan
    config = form_of("initialization", "graph_cut")()
    with pytest.raises(UserError, match="initialization: class 0: expected finite logits"):
        initial_images(teacher, data, 2, config, runtime)


@pytest.mark.parametrize("method", ["k_center", "graph_cut"])
def test_classes_of_five_two_and_one_images(method: str, runtime: Runtime) -> None:
    data = make_data((5, 2, 1))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        teacher = build_model("convnet3", 3, 8, 3)
    config = form_of("initialization", method)()
    result = initial_images(teacher, data, 4, config, runtime)
    assert torch.equal(result.images, data.train_images[result.source] / 255)
    assert torch.equal(data.train_labels[result.source], result.labels)
    head, medium, tail = result.source.view(3, 4)
    assert len(head.unique()) == 4
    assert medium[:2].tolist() == medium[2:].tolist()  # starts over
    assert len(medium.unique()) == 2
    assert len(tail.unique()) == 1
    again = initial_images(teacher, data, 4, config, runtime)
    assert torch.equal(again.source, result.source)
