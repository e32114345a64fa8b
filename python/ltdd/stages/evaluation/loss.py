"""What a student minimises.

On a view with teacher logits y~ and mixed class probabilities y, a student s has the loss
``kappa2 * D(s, y~) + kappa1 * CE(s, y)``; D is ``mean (s - y~)^2`` in arXiv:2511.18858, Eq. 10.
"""

from __future__ import annotations

from torch import Tensor

from ltdd.config import EvaluationConfig
from ltdd.stages.losses import matching_loss, soft_cross_entropy, standardize_rows


def student_loss(
    logits: Tensor, soft: Tensor | None, hard: Tensor, config: EvaluationConfig
) -> Tensor:
    """Return the loss of one batch.

    Args:
        logits: student's, (B, K).
        soft: teacher's logits (B, K), or None for class labels alone.
        hard: mixed class probabilities (B, K).
        config: D and its temperature, kappa1, kappa2, logit normalisation.

    Note:
        With ``logit_std_norm`` the cross-entropy sees the normalised logits too, as in the
        published CIFAR-10 recipe.
    """
    if soft is None:
        return soft_cross_entropy(logits, hard)
    logits, soft = logits.float(), soft.float()
    if config.logit_std_norm:
        logits, soft = standardize_rows(logits), standardize_rows(soft)
    matching = matching_loss(logits, soft, config.loss, config.temperature)
    return config.logit_weight * matching + config.hard_weight * soft_cross_entropy(logits, hard)
