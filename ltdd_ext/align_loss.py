"""The alignment objective of all layers in one operator, differentiable in the rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from . import _autograd, _check, _composed

_OP = "align_loss"
_TARGET_DTYPES = (torch.float32, torch.float64)
_operator = torch.ops.ltdd_ext.align_loss.default


def check_arguments(
    op: str,
    means: Sequence[Tensor],
    m2s: Sequence[Tensor],
    sizes: Sequence[int],
    labels: Tensor,
    global_means: Sequence[Tensor],
    global_vars: Sequence[Tensor],
    class_means: Sequence[Tensor],
    class_vars: Sequence[Tensor],
    weights: Sequence[float] | None,
    class_weight: float,
) -> None:
    """Refuse lists of unequal length and tensors that do not fit the rows of their layer.

    The range of the labels is left to :func:`_check.label_range`.
    """
    _check.number(op, "class_weight", class_weight)
    _check.sequence(op, "means", means)
    layers = len(means)
    if layers == 0:
        _check.bad_value(op, "means", "to hold at least one layer", 0)
    _check.length(op, "m2s", m2s, layers, "layer")
    _check.length(op, "sizes", sizes, layers, "layer")
    _check.length(op, "global_means", global_means, layers, "layer")
    _check.length(op, "global_vars", global_vars, layers, "layer")
    if weights is not None:
        _check.length(op, "weights", weights, layers, "layer")
    if class_weight != 0.0:
        _check.length(op, "class_means", class_means, layers, "layer")
        _check.length(op, "class_vars", class_vars, layers, "layer")
    for layer, weight in enumerate(weights or ()):
        _check.number(op, f"weights[{layer}]", weight)
    first = means[0]
    _check.tensor(op, "means", first)
    if first.dim() != 2:
        _check.bad_value(op, "means[0]", "of shape (N, C)", tuple(first.shape))
    device, rows = first.device, first.shape[0]
    dtypes = (first.dtype,)
    _check.dtype_in(op, "means", first, _TARGET_DTYPES)
    _check.labels(op, labels, rows, device)
    num_classes = 0
    if class_weight != 0.0:
        _check.tensor(op, "class_means[0]", class_means[0])
        if class_means[0].dim() != 2:
            _check.bad_value(op, "class_means[0]", "of shape (K, C)", tuple(class_means[0].shape))
        num_classes = len(class_means[0])
    for layer, mean in enumerate(means):
        if mean is not first:
            _check.tensor(op, f"means[{layer}]", mean)
            if mean.dim() != 2 or mean.shape[0] != rows:
                _check.bad_value(op, f"means[{layer}]", f"of shape ({rows}, C)", tuple(mean.shape))
            _check.fits(op, "means", mean, dtypes, tuple(mean.shape), device, layer)
        matrix = tuple(mean.shape)
        channels = matrix[1:]
        if type(sizes[layer]) is not int or sizes[layer] < 1:
            _check.whole(op, f"sizes[{layer}]", sizes[layer], 1)
        _check.fits(op, "m2s", m2s[layer], dtypes, matrix, device, layer)
        _check.fits(
            op, "global_means", global_means[layer], _TARGET_DTYPES, channels, device, layer
        )
        _check.fits(op, "global_vars", global_vars[layer], _TARGET_DTYPES, channels, device, layer)
        if class_weight != 0.0:
            table = (num_classes, *channels)
            _check.fits(op, "class_means", class_means[layer], _TARGET_DTYPES, table, device, layer)
            _check.fits(op, "class_vars", class_vars[layer], _TARGET_DTYPES, table, device, layer)


def align_loss(
    means: Sequence[Tensor],
    m2s: Sequence[Tensor],
    sizes: Sequence[int],
    labels: Tensor,
    global_means: Sequence[Tensor],
    global_vars: Sequence[Tensor],
    class_means: Sequence[Tensor] = (),
    class_vars: Sequence[Tensor] = (),
    weights: Sequence[float] | None = None,
    class_weight: float = 0.0,
) -> Tensor:
    """Compute the distance of a batch's statistics to their targets, over all layers.

    ::

        loss = sum_l w_l (|m_l - gm_l|_2 + |v_l - gv_l|_2)
             + class_weight * mean over classes c in labels of
               sum_l w_l (|m_lc - cm_lc|_2 + |v_lc - cv_lc|_2)

    with ``m_l``, ``v_l`` the mean and biased variance of each channel of layer l over the whole
    batch, ``m_lc``, ``v_lc`` those over the samples of class c, and norms over channels
    (arXiv:2511.18858, Eq. 2-4; the paper's C is our K).

    Args:
        means: Row means of each layer, L tensors (N, C_l), float32 or float64.
        m2s: Row sums of squared deviations, same shapes and dtype.
        sizes: Elements per row of each layer, S_l = H_l * W_l.
        labels: Class of each sample, int64 (N,); read only if ``class_weight`` is not 0.
        global_means: Targets of the whole batch, L tensors (C_l,), float32 or float64.
        global_vars: The same for the variance.
        class_means: Targets of the classes, L tensors (K, C_l); may be empty if ``class_weight``
            is 0.
        class_vars: The same for the variance.
        weights: Weight of each layer, 1 by default.
        class_weight: Weight of the class-wise part, 0 leaves it out.

    Returns:
        The loss, 0-dimensional, of the dtype of the rows.

    Raises:
        TypeError: A dtype is another.
        ValueError: A length, shape, device or label does not fit.
        RuntimeError: The gradient is differentiated after an argument was changed in place.

    Note:
        Differentiable in ``means`` and ``m2s``, any number of times and in forward mode: the
        gradient is computed in the forward pass and scaled in the backward pass; whatever goes
        beyond and the transforms of ``torch.func`` are left to plain PyTorch operations. Targets
        are constants. Every derivative of a norm at 0 is 0. Deterministic.

    Example:
        >>> import torch, ltdd_ext
        >>> mean, m2 = ltdd_ext.row_moments(torch.zeros(4, 2, 3, 3))
        >>> target = torch.ones(2)
        >>> y = torch.zeros(4, dtype=torch.int64)
        >>> round(float(ltdd_ext.align_loss([mean], [m2], [9], y, [0 * target], [target])), 6)
        1.414214
    """
    check_arguments(
        _OP, means, m2s, sizes, labels, global_means, global_vars, class_means, class_vars,
        weights, class_weight,
    )  # fmt: skip
    layer_weights = [1.0] * len(means) if weights is None else list(weights)
    transformed = _autograd.is_transformed()
    if class_weight != 0.0 and (labels.is_cuda or transformed):
        _check.label_range(_OP, labels, len(class_means[0]))
    arguments = (
        list(sizes), labels, list(global_means), list(global_vars), list(class_means),
        list(class_vars), layer_weights, float(class_weight),
    )  # fmt: skip
    loss: Tensor
    if transformed:
        loss = _composed.align_loss(means, m2s, *arguments)
    elif torch.compiler.is_compiling():
        loss = torch.ops.ltdd_ext.align_loss(list(means), list(m2s), *arguments)[0]
    elif torch.is_grad_enabled() and torch._C._any_requires_grad(*means, *m2s):
        loss = _EagerAlignLoss.apply(arguments, *means, *m2s)
    else:
        with torch._C._AutoDispatchBelowAutograd():
            loss = _operator(list(means), list(m2s), *arguments)[0]
    return loss


class _EagerAlignLoss(torch.autograd.Function):
    """The formula registered below, without the registration's search of every list for tensors.

    That search takes 0.3 ms a call, as much as the statistics of a small layer.
    """

    @staticmethod
    def forward(ctx: Any, arguments: tuple[Any, ...], *rows: Tensor) -> Tensor:
        """Compute the loss and keep its gradients."""
        layers = len(rows) // 2
        inputs = (list(rows[:layers]), list(rows[layers:]), *arguments)
        with torch._C._AutoDispatchBelowAutograd():
            output = _operator(*inputs)
        _keep(ctx, inputs, output)
        return output[0]  # type: ignore[no-any-return]

    @staticmethod
    def backward(ctx: Any, grad_loss: Tensor) -> tuple[Any, ...]:
        """Scale them."""
        return (None, *_row_gradients(ctx, grad_loss, ctx.needs_input_grad[1:]))


def _keep(
    ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, list[Tensor], list[Tensor]]
) -> None:
    """Keep the gradients, and the arguments in case they are differentiated again.

    Arguments as they are: saved one by one they would cost as much time as a tenth of the loss.
    """
    ctx.save_for_backward(*output[1], *output[2])
    ctx.arguments, ctx.versions = inputs, _versions(inputs)


def _versions(arguments: tuple[Any, ...]) -> list[int]:
    """Return how often each tensor was changed in place."""
    means, m2s, _, labels, *targets, _, _ = arguments
    tensors = [*means, *m2s, labels, *(target for group in targets for target in group)]
    return [tensor._version for tensor in tensors if not tensor.is_inference()]


def _row_gradients(ctx: Any, grad_loss: Tensor, needed: Sequence[bool]) -> Sequence[Tensor | None]:
    """Return the gradients of all means and m2s."""
    if not _autograd.is_differentiated():
        if torch._C._functorch.is_legacy_batchedtensor(grad_loss):  # several gradients at once
            return [grad_loss * gradient for gradient in ctx.saved_tensors]
        scaled: Sequence[Tensor] = torch._foreach_mul(ctx.saved_tensors, grad_loss)
        return scaled
    if _versions(ctx.arguments) != ctx.versions:
        raise RuntimeError(
            f"{_OP}: expected its arguments as they were to differentiate its gradient, got one "
            "changed in place"
        )
    means, m2s, *constants = ctx.arguments

    def loss(*rows: Tensor) -> tuple[Tensor]:
        layers = len(means)
        return (_composed.align_loss(rows[:layers], rows[layers:], *constants),)

    return _autograd.pull_back(loss, (*means, *m2s), needed, (grad_loss,))


def _fake(
    means: list[Tensor],
    m2s: list[Tensor],
    sizes: list[int],
    labels: Tensor,
    global_means: list[Tensor],
    global_vars: list[Tensor],
    class_means: list[Tensor],
    class_vars: list[Tensor],
    weights: list[float],
    class_weight: float,
) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    dtype = _check.acc_dtype(means[0].dtype)
    like = [mean.new_empty(mean.shape, dtype=dtype) for mean in means]
    return means[0].new_empty((), dtype=dtype), like, [torch.empty_like(one) for one in like]


def _setup_context(
    ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, list[Tensor], list[Tensor]]
) -> None:
    ctx.mark_non_differentiable(*output[1], *output[2])
    _keep(ctx, inputs, output)


def _backward(
    ctx: Any, grad_loss: Tensor, _means: list[Tensor], _m2s: list[Tensor]
) -> tuple[Any, ...]:
    means, _, _, _, *targets, _, _ = ctx.arguments
    needed = [*ctx.needs_input_grad[0], *ctx.needs_input_grad[1]]
    found = list(_row_gradients(ctx, grad_loss, needed))
    none = [[None] * len(group) for group in targets]
    return (found[: len(means)], found[len(means) :], None, None, *none, None, None)


torch.library.register_fake("ltdd_ext::align_loss", _fake)
torch.library.register_autograd("ltdd_ext::align_loss", _backward, setup_context=_setup_context)
