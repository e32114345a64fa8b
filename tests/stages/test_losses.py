"""Losses of experts and students: hand-computed values, and where gradients go."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from ltdd.config import ExpertsConfig
from ltdd.stages.losses import (
    bayias_loss,
    class_debias_weights,
    consistency_loss,
    debias_progress,
    expert_loss,
    matching_loss,
    soft_cross_entropy,
    standardize_rows,
)


def draw(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_class_weights_by_hand() -> None:
    # 1 and 4 to the power -1/2 are 1 and 1/2.
    torch.testing.assert_close(
        class_debias_weights([1, 4], 0.5, "printed"), torch.tensor([2 / 3, 1 / 3])
    )
    torch.testing.assert_close(
        class_debias_weights([1, 4], 0.5, "code"), torch.tensor([4 / 3, 2 / 3])
    )


@pytest.mark.parametrize("power", [0.0, 0.8, 1.2, 3.0])
def test_class_weights_have_mean_one_and_favour_the_tail(power: float) -> None:
    weights = class_debias_weights([5000, 2997, 1796, 139, 83, 50], power)
    assert float(weights.double().mean()) == pytest.approx(1, rel=1e-6)
    assert torch.equal(weights.sort().values, weights)
    assert (float(weights[-1]) > float(weights[0])) == (power > 0)


def test_progress_is_quadratic_from_zero_and_stays_below_one() -> None:
    assert debias_progress(0, 200) == 0
    assert debias_progress(100, 200) == 0.25
    assert debias_progress(199, 200) == pytest.approx((199 / 200) ** 2)


def test_soft_cross_entropy_equals_torch() -> None:
    logits, targets = draw(0, 8, 5), draw(1, 8, 5).softmax(1)
    torch.testing.assert_close(
        soft_cross_entropy(logits, targets), F.cross_entropy(logits, targets)
    )
    labels = torch.arange(8) % 5
    torch.testing.assert_close(
        soft_cross_entropy(logits, F.one_hot(labels, 5).float()), F.cross_entropy(logits, labels)
    )


def test_soft_cross_entropy_is_linear_in_its_targets() -> None:
    # Class weights are folded into the targets, so rows must not be normalised.
    logits, targets = draw(0, 8, 5), draw(1, 8, 5).softmax(1)
    torch.testing.assert_close(
        soft_cross_entropy(logits, 3 * targets), 3 * soft_cross_entropy(logits, targets)
    )


def test_losses_are_float32_for_bfloat16_logits() -> None:
    logits, targets = draw(0, 8, 5).bfloat16(), draw(1, 8, 5).softmax(1)
    for loss in (
        soft_cross_entropy(logits, targets),
        consistency_loss(logits, logits),
    ):
        assert loss.dtype == torch.float32


def test_consistency_stops_at_the_projection_not_the_prediction() -> None:
    p1, z1, p2, z2 = (draw(seed, 4, 6).requires_grad_() for seed in range(4))
    loss = consistency_loss(torch.cat([p1, p2]), torch.cat([z1, z2]))
    expected = -F.cosine_similarity(p1, z2).mean() - F.cosine_similarity(p2, z1).mean()
    torch.testing.assert_close(loss, expected)
    loss.backward()
    assert z1.grad is None
    assert z2.grad is None
    assert float(p1.grad.abs().sum()) > 0
    assert float(p2.grad.abs().sum()) > 0


def test_consistency_is_least_for_parallel_vectors() -> None:
    p, z = draw(0, 4, 6), draw(1, 4, 6)
    loss = consistency_loss(torch.cat([2 * z, 5 * p]), torch.cat([p, z]))
    assert float(loss) == pytest.approx(-2, abs=1e-6)


def expert_terms(progress: float, config: ExpertsConfig) -> tuple[Tensor, list[Tensor]]:
    heads = [draw(seed, 4, 3).requires_grad_() for seed in range(4)]
    targets = torch.cat([draw(4, 4, 3).softmax(1), draw(5, 4, 3).softmax(1)])
    weights = class_debias_weights([9, 4, 1], 1.0)
    plain, rebalanced = torch.cat(heads[:2]), torch.cat(heads[2:])
    consistency = torch.tensor(-1.5)
    loss = expert_loss(plain, rebalanced, consistency, targets, weights, progress, config)
    return loss, heads


def test_expert_loss_by_hand() -> None:
    config = ExpertsConfig(consistency_weight=0.5, classification_weight=2.0)
    loss, heads = expert_terms(0.3, config)
    targets = [draw(4, 4, 3).softmax(1), draw(5, 4, 3).softmax(1)]
    # 3 n^-1 / sum n^-1 for n = 9, 4, 1
    weights = 3 * torch.tensor([1 / 9, 1 / 4, 1]) / (1 / 9 + 1 / 4 + 1)
    balanced = sum(
        -(t * h.log_softmax(1)).sum(1).mean() for t, h in zip(targets, heads[:2], strict=True)
    )
    rebalanced = sum(
        -(t * weights * h.log_softmax(1)).sum(1).mean()
        for t, h in zip(targets, heads[2:], strict=True)
    )
    expected = 2.0 * (0.7 * balanced + 0.3 * rebalanced) + 0.5 * -1.5
    torch.testing.assert_close(loss, expected)


@pytest.mark.parametrize(("progress", "silent"), [(0.0, (2, 3)), (1.0, (0, 1))])
def test_one_head_is_silent_at_either_end(progress: float, silent: tuple[int, int]) -> None:
    loss, heads = expert_terms(progress, ExpertsConfig())
    loss.backward()
    for number, head in enumerate(heads):
        assert (float(head.grad.abs().sum()) == 0) == (number in silent)


def test_bayias_by_hand() -> None:
    # Logits without a preference: the network's share is the prior, 3/4 and 1/4.
    logits, labels, partners = torch.zeros(2, 2), torch.tensor([0, 1]), torch.tensor([1, 1])
    kept = torch.tensor([0.25, 1.0])
    expected = (0.25 * -math.log(3 / 4) + 0.75 * -math.log(1 / 4) - math.log(1 / 4)) / 2
    assert float(
        bayias_loss(logits, labels, partners, kept, torch.tensor([30.0, 10]))
    ) == pytest.approx(expected)


def test_bayias_of_balanced_data_is_the_mixed_cross_entropy() -> None:
    logits, labels, partners = draw(0, 8, 5), torch.arange(8) % 5, torch.arange(8) % 3
    kept = torch.rand(8, generator=torch.Generator().manual_seed(1))
    share = kept[:, None]
    mixed = share * F.one_hot(labels, 5) + (1 - share) * F.one_hot(partners, 5)
    torch.testing.assert_close(
        bayias_loss(logits, labels, partners, kept, torch.full((5,), 7.0)),
        soft_cross_entropy(logits, mixed),
    )


def test_mse_is_the_mean_over_all_entries() -> None:
    student, teacher = torch.tensor([[1.0, 2.0]]), torch.tensor([[4.0, -2.0]])
    assert float(matching_loss(student, teacher, "mse", 1.0)) == (9 + 16) / 2


@pytest.mark.parametrize("temperature", [1.0, 20.0])
def test_kl_is_torchs_divergence_per_image(temperature: float) -> None:
    student, teacher = draw(0, 6, 5), draw(1, 6, 5)
    expected = F.kl_div(
        (student / temperature).log_softmax(1),
        (teacher / temperature).softmax(1),
        reduction="batchmean",
    )
    torch.testing.assert_close(
        matching_loss(student, teacher, "kl", temperature), expected, rtol=1e-3, atol=1e-6
    )
    assert abs(float(matching_loss(teacher, teacher, "kl", temperature))) < 1e-6


def test_soft_cross_entropy_of_learned_logits_by_hand() -> None:
    student, teacher = draw(0, 6, 5), draw(1, 6, 5)
    expected = F.cross_entropy(student / 2, (teacher / 2).softmax(1))
    torch.testing.assert_close(matching_loss(student, teacher, "soft_ce", 2.0), expected)


def test_cosine_feels_only_the_direction() -> None:
    student, teacher = (
        torch.tensor([[3.0, 4.0], [1.0, 0.0]]),
        torch.tensor([[3.0, 4.0], [0.0, 2.0]]),
    )
    assert float(matching_loss(5 * student, teacher, "cosine", 1.0)) == pytest.approx((0 + 1) / 2)


def test_normalised_logits_do_not_feel_scale() -> None:
    student = draw(0, 4, 6)
    torch.testing.assert_close(standardize_rows(7 * student), standardize_rows(student))
    torch.testing.assert_close(standardize_rows(student).std(dim=1), torch.ones(4))
    # A row of equal logits has no deviation to divide by.
    assert torch.isfinite(standardize_rows(torch.zeros(2, 6))).all()
