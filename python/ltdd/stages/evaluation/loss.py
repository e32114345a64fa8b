"""What a student minimises.

On a view with teacher logits y~ and mixed class probabilities y, a student s has the loss
``kappa2 * mean (s - y~)^2 + kappa1 * CE(s, y)`` (arXiv:2511.18858, Eq. 10).
"""

from __future__ import annotations

from torch import Tensor

from ltdd.config import EvaluationConfig
from ltdd.stages.losses import logit_matching_loss, soft_cross_entropy, standardize_rows


def student_loss(
    logits: Tensor, soft: Tensor | None, hard: Tensor, config: EvaluationConfig
) -> Tensor:
    """Return the loss of one batch.

    Args:
        logits: student's, (B, K).
        soft: teacher's logits (B, K), or None for class labels alone.
        hard: mixed class probabilities (B, K).
        config: kappa1, kappa2, logit normalisation.

    Note:
        With ``logit_std_norm`` the cross-entropy sees the normalised logits too, as in the
        published CIFAR-10 recipe.
    """
    if soft is None:
        return soft_cross_entropy(logits, hard)
    matching = logit_matching_loss(logits, soft, config.logit_std_norm)
    scored = standardize_rows(logits.float()) if config.logit_std_norm else logits
    return config.logit_weight * matching + config.hard_weight * soft_cross_entropy(scored, hard)
