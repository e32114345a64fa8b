"""Training losses of experts and students. K classes, N batch."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ltdd.config import ExpertsConfig


def class_debias_weights(counts: Sequence[int], power: float, variant: str = "code") -> Tensor:
    """Return the class weights of the rebalanced loss (arXiv:2511.18858, Eq. 6).

    ``w_k = n_k^(-q) / sum_j n_j^(-q)``, times K for ``code``.

    Deviation: the printed formula sums to 1, which shrinks the rebalanced term to 1/K of the plain
    one; with mean 1 both terms keep one scale while training moves from one to the other.

    Args:
        counts: training images per class, all >= 1, length K.
        power: q >= 0; 0 gives equal weights.
        variant: ``code`` (mean 1) or ``printed`` (sum 1).

    Returns:
        float32 (K,).
    """
    inverse = torch.tensor(counts, dtype=torch.float64).pow(-power)
    weights = inverse / inverse.sum()
    return (weights * len(counts) if variant == "code" else weights).float()


def soft_cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Return ``-mean_n sum_k targets[n,k] * log softmax(logits)[n,k]``.

    Args:
        logits: (N, K).
        targets: (N, K), non-negative; rows need not sum to 1 (class weights may be folded in).
    """
    return _cross_entropies(logits, targets).mean()


def _cross_entropies(logits: Tensor, targets: Tensor) -> Tensor:
    """Return `soft_cross_entropy` of each row, (...), of (..., K)."""
    return -(targets * F.log_softmax(_exact(logits), dim=-1)).sum(dim=-1)


def _sum_of_views(values: Tensor) -> Tensor:
    """Return the mean over a view's images, added over both views, of (..., 2N)."""
    means: Tensor = values.unflatten(-1, (2, -1)).mean(dim=-1)
    return means.sum(dim=-1)


def consistency_loss(prediction: Tensor, projection: Tensor) -> Tensor:
    """Return the negative cosine between each view's prediction and the other's projection.

    ``-mean cos(p1, sg(z2)) - mean cos(p2, sg(z1))`` (arXiv:2511.18858, Eq. 5).

    Deviation: the printed equation stops the gradient at p, which would leave the predictor
    untrained; here, as in the method's code, it stops at z.

    Args:
        prediction, projection: p and z of both views, one behind the other, (2N, H).
    """
    first, second = _exact(projection.detach()).chunk(2)
    return -_sum_of_views(F.cosine_similarity(_exact(prediction), torch.cat([second, first])))


def debias_progress(epoch: int, epochs: int) -> float:
    """Return ``a = (e/T)^2``, the share of the rebalanced term in epoch e = 0..T-1."""
    return (epoch / epochs) ** 2


def expert_loss(
    plain: Tensor,
    rebalanced: Tensor,
    consistency: Tensor,
    targets: Tensor,
    class_weights: Tensor,
    progress: float | Tensor,
    config: ExpertsConfig,
) -> Tensor:
    """Combine the terms of expert training (arXiv:2511.18858, Eq. 5-7).

    ``L = gamma2 * ((1-a) * L_plain + a * L_rebalanced) + gamma1 * L_consistency``, the plain and
    the rebalanced term each summed over the two mixed views.

    Args:
        plain: logits of the plain head, of both views one behind the other, (2N, K).
        rebalanced: logits of the rebalanced head, alike.
        consistency: scalar of `consistency_loss`.
        targets: mixed label probabilities, alike.
        class_weights: (K,) of `class_debias_weights`.
        progress: a of `debias_progress`.
        config: supplies gamma1 and gamma2.
    """
    # Together, in half as many launches.
    logits, weighted = torch.stack([plain, rebalanced]), targets * class_weights
    terms = _sum_of_views(_cross_entropies(logits, torch.stack([targets, weighted])))
    plain_term, rebalanced_term = terms.unbind()
    classification = (1 - progress) * plain_term + progress * rebalanced_term
    return config.classification_weight * classification + config.consistency_weight * consistency


def bayias_loss(
    logits: Tensor, labels: Tensor, partner_labels: Tensor, kept: Tensor, counts: Tensor
) -> Tensor:
    """Return the cross-entropy of mixed images with the training prior added to the logits.

    ``mean_n lam_n * CE(f_n + log(K pi), y_n) + (1 - lam_n) * CE(f_n + log(K pi), y'_n)``, with pi
    the class frequencies; K pi is their ratio to a balanced test set's (arXiv:2111.03874, Bayias).
    The network itself is then free of the prior: nothing is added at inference.

    Args:
        logits: (N, K).
        labels, partner_labels: int64 (N,), classes of the two images that were mixed.
        kept: lam, (N,), share of the first.
        counts: float64 (K,), training images per class.
    """
    shifted = _exact(logits) + (counts * len(counts) / counts.sum()).log().float()
    first = F.cross_entropy(shifted, labels, reduction="none")
    second = F.cross_entropy(shifted, partner_labels, reduction="none")
    return (kept * first + (1 - kept) * second).mean()


def matching_loss(student: Tensor, teacher: Tensor, kind: str, temperature: float) -> Tensor:
    """Return how far a student's logits s are from a teacher's y; T is the temperature.

    * ``mse``: ``mean (s - y)^2`` over N*K (arXiv:2511.18858, Eq. 10);
    * ``kl``: ``mean_n sum_k p_k log(p_k / q_k)``, p = softmax(y / T), q = softmax(s / T), without
      the factor T^2 (arXiv:2306.13092, arXiv:2312.03526);
    * ``soft_ce``: ``-mean_n sum_k p_k log q_k`` (arXiv:2310.05773);
    * ``cosine``: ``mean_n 1 - cos(s, y)`` (arXiv:2405.14736).

    Args:
        student, teacher: float32 (N, K).
        kind: which of them.
        temperature: of ``kl`` and ``soft_ce``.
    """
    if kind == "mse":
        return F.mse_loss(student, teacher)
    if kind == "cosine":
        return (1 - F.cosine_similarity(student, teacher)).mean()
    target = F.softmax(teacher / temperature, dim=1)
    cross_entropy = soft_cross_entropy(student / temperature, target)
    if kind == "soft_ce":
        return cross_entropy
    return cross_entropy - soft_cross_entropy(teacher / temperature, target)


def standardize_rows(logits: Tensor) -> Tensor:
    """Divide each row of (N, K) logits by its standard deviation over classes."""
    return logits / logits.std(dim=1, keepdim=True).clamp_min(1e-6)


def _exact(values: Tensor) -> Tensor:
    """Return values in float32 or, where they are in it, float64: 16 bits are too few for a sum."""
    return values.to(torch.promote_types(values.dtype, torch.float32))
