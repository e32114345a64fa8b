"""Networks that return, with their output, the row moments of every batch norm's input."""

from __future__ import annotations

import operator
import warnings
from types import ModuleType
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from . import _check
from ._convolution import Convolution, convolve, is_conv3x3
from ._rewrite import Fusion, find_fusion
from .bn_act_moments import Act, FrozenPool, bn_act_moments, bn_act_moments_shared
from .conv3x3 import conv3x3
from .row_moments import row_moments

__all__ = [
    "FusedBatchNorm",
    "LayerMoments",
    "ObservedBatchNorm",
    "ObservedModel",
    "convert_observer",
    "convolve",
]

_OP = "convert_observer"


class LayerMoments(NamedTuple):
    """Row moments of one layer's input.

    Attributes:
        mean: (N, C), mean over the pixels of each image and channel.
        m2: (N, C), sum of squared deviations from it.
        spatial_size: Number of pixels S = H*W.
    """

    mean: Tensor
    m2: Tensor
    spatial_size: int


class _Ops(NamedTuple):
    """The operators an observed network needs, compiled or plain."""

    row_moments: Any
    bn_act_moments: Any
    conv3x3: Any


class ObservedBatchNorm(nn.Module):
    """A batch norm kept as it is; returns ``(output, LayerMoments)``.

    Note:
        Differentiable in its input, any number of times and in forward mode.
    """

    def __init__(self, norm: nn.BatchNorm2d, ops: _Ops) -> None:
        super().__init__()
        self.norm = norm
        self._ops = ops

    def forward(self, x: Tensor) -> tuple[Tensor, LayerMoments]:
        """Normalise x (N, C, H, W) and measure it."""
        mean, m2 = self._ops.row_moments(x)
        return self.norm(x), LayerMoments(mean, m2, x.shape[2] * x.shape[3])


class FusedBatchNorm(nn.Module):
    """A frozen batch norm with what follows it; returns ``(output, LayerMoments)``.

    Attributes:
        shared: Return the output once more at the end, for a second layer that only reads it, such
            as a shortcut: on a GPU the backward pass then adds the two gradients while it reads
            them. Not with a pool.

    Args:
        norm: Batch norm with running statistics, in evaluation mode; its values are copied.
        relu: Apply a ReLU after the optional residual.
        pool: Which pool follows.
        ops: Where ``bn_act_moments`` comes from.

    Note:
        Differentiable in input and residual, any number of times and in forward mode; the values of
        the batch norm are constants.
    """

    k: Tensor
    h: Tensor

    def __init__(self, norm: nn.BatchNorm2d, relu: bool, pool: FrozenPool, ops: _Ops) -> None:
        super().__init__()
        assert norm.running_mean is not None
        assert norm.running_var is not None
        weight = torch.ones_like(norm.running_var) if norm.weight is None else norm.weight
        bias = torch.zeros_like(norm.running_mean) if norm.bias is None else norm.bias
        scale = weight.detach().double() * torch.rsqrt(norm.running_var.double() + norm.eps)
        offset = bias.detach().double() - norm.running_mean.double() * scale
        dtype = torch.float64 if norm.running_var.dtype == torch.float64 else torch.float32
        self.register_buffer("k", scale.to(dtype))
        self.register_buffer("h", offset.to(dtype))
        self.act: Act = "relu" if relu else "none"
        self.pool: FrozenPool = pool
        self.shared = False
        self._ops = ops

    def forward(self, x: Tensor, residual: Tensor | None = None) -> tuple[Any, ...]:
        """Compute ``pool(act(bn(x) + residual))`` and measure x (N, C, H, W)."""
        dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
        if residual is not None:  # a sum broadcasts and promotes, the operator does neither
            residual = torch.as_tensor(residual, dtype=x.dtype, device=x.device).expand_as(x)
        inputs = (x, self.k.to(dtype), self.h.to(dtype), residual, self.act)
        again: tuple[Tensor, ...] = ()
        if self.shared and self._ops.bn_act_moments is bn_act_moments:
            y, shortcut, mean, m2 = bn_act_moments_shared(*inputs)
            again = (shortcut,)
        else:
            y, mean, m2 = self._ops.bn_act_moments(*inputs, self.pool)
            again = (y,) if self.shared else ()
        return y, LayerMoments(mean, m2, x.shape[2] * x.shape[3]), *again

    def extra_repr(self) -> str:
        """Return channels and what is fused, for ``repr``."""
        return f"{self.k.numel()}, act={self.act}, pool={self.pool}, shared={self.shared}"


class ObservedModel(nn.Module):
    """A frozen network that also returns the moments of its batch norms' inputs.

    Attributes:
        layers: Names of the batch norms, in order of registration: the order of the moments.
        fused: Names of those computed by the fused operator.
        unfused: Name and reason of those measured separately from the batch norm.

    Note:
        Differentiable in its input, any number of times and in forward mode, as far as its layers
        are; the parameters are constants.
    """

    def __init__(
        self, network: nn.Module, layers: list[str], fused: list[str], unfused: dict[str, str]
    ) -> None:
        super().__init__()
        self.network = network
        self.layers = layers
        self.fused = fused
        self.unfused = unfused

    def forward(self, *inputs: Any) -> tuple[Any, list[LayerMoments]]:
        """Return the network's output and one :class:`LayerMoments` per batch norm."""
        output, moments = self.network(*inputs)
        return output, list(moments)


class _HookedNetwork(nn.Module):
    """The fallback for networks that cannot be traced: measure through forward hooks."""

    def __init__(self, network: nn.Module, layers: list[str], ops: _Ops) -> None:
        super().__init__()
        self.network = network
        self._layers = layers
        self._ops = ops

    def forward(self, *inputs: Any) -> tuple[Any, list[LayerMoments]]:
        seen: dict[str, LayerMoments] = {}

        def recorder(name: str) -> Any:
            def record(_: nn.Module, arguments: tuple[Tensor, ...]) -> None:
                if name in seen:
                    _refuse_calls(name, 2)
                mean, m2 = self._ops.row_moments(arguments[0])
                seen[name] = LayerMoments(mean, m2, arguments[0][0, 0].numel())

            return record

        modules = dict(self.network.named_modules())
        handles = [modules[name].register_forward_pre_hook(recorder(name)) for name in self._layers]
        try:
            output = self.network(*inputs)
        finally:
            for handle in handles:
                handle.remove()
        for name in self._layers:
            if name not in seen:
                _refuse_calls(name, 0)
        return output, [seen[name] for name in self._layers]


def convert_observer(
    model: nn.Module, ops: ModuleType | None = None, strict: bool = False
) -> ObservedModel:
    """Make a frozen network return the moments of its batch norms' inputs, fused where provable.

    Each ``BatchNorm2d`` is computed together with a residual sum, a ReLU and an ``AvgPool2d(2)`` or
    ``MaxPool2d(3, 2, 1)`` that directly follow it, by :func:`ltdd_ext.bn_act_moments`, where
    ``torch.fx`` shows that nobody else reads the values in between. Other batch norms stay and
    their input is measured by :func:`ltdd_ext.row_moments`; so is everything in a network that
    cannot be traced. Both are said in a warning and in ``unfused``. In a network that can be
    traced, 3x3 convolutions are computed by :func:`ltdd_ext.conv3x3` where :func:`convolve` says
    that it is faster.

    Args:
        model: Network with ``BatchNorm2d`` layers that have running statistics. It is put into
            evaluation mode and its parameters stop requiring gradients. The converted network
            shares its other layers; scale and offset of fused batch norms are copies, so convert
            again after changing them.
        ops: Module with ``row_moments``, ``bn_act_moments`` and ``conv3x3``: ``ltdd_ext`` (default)
            or ``ltdd_ext.reference``.
        strict: Raise instead of falling back.

    Returns:
        The converted network; ``forward`` returns ``(output, [LayerMoments, ...])`` with one entry
        per ``BatchNorm2d`` in order of registration.

    Raises:
        TypeError: ``model`` is no module, or ``ops`` lacks an operator.
        ValueError: There is no ``BatchNorm2d``, one has no running statistics or is called other
            than once, or ``strict`` and something cannot be fused.

    Note:
        Gradients flow to the input through output and moments, any number of times and in forward
        mode. In float32 on a CPU, convolutions round as :func:`ltdd_ext.conv3x3` says, to about
        1e-5 of the largest output. In bfloat16 the fused result skips the rounding between batch
        norm, sum, ReLU and pool, so it differs from the separate layers by that rounding.

    Example:
        >>> import torch, ltdd_ext
        >>> net = torch.nn.Sequential(
        ...     torch.nn.Conv2d(3, 8, 3), torch.nn.BatchNorm2d(8), torch.nn.ReLU()
        ... )
        >>> observed = ltdd_ext.nn.convert_observer(net)
        >>> output, moments = observed(torch.randn(2, 3, 6, 6))
        >>> output.shape, moments[0].mean.shape, observed.fused
        (torch.Size([2, 8, 4, 4]), torch.Size([2, 8]), ['1'])
    """
    _check.module(_OP, "model", model)
    for name in _Ops._fields if ops is not None else ():
        if not hasattr(ops, name):
            _check.bad_type(_OP, "ops", f"with the operator {name}", type(ops).__name__)
    chosen = (
        _Ops(row_moments, bn_act_moments, conv3x3)
        if ops is None
        else _Ops(ops.row_moments, ops.bn_act_moments, ops.conv3x3)
    )
    layers = _batch_norms(model)
    model.eval().requires_grad_(False)
    try:
        graph = _trace(model)
    except Exception as error:  # user code runs in the trace and may raise anything
        reason = f"the network cannot be traced: {str(error).splitlines()[0]}"
        unfused = dict.fromkeys(layers, reason)
        network: nn.Module = _HookedNetwork(model, layers, chosen)
        observed = ObservedModel(network, layers, [], unfused)
    else:
        observed = _rewrite(graph, layers, chosen)
    if observed.unfused:
        name, reason = next(iter(observed.unfused.items()))
        message = (
            f"{_OP}: {len(observed.unfused)} of {len(layers)} batch norms are measured by a "
            f"separate pass; {name}: {reason}"
        )
        if strict:
            raise ValueError(message)
        warnings.warn(message, RuntimeWarning, stacklevel=2)
    return observed


def _batch_norms(model: nn.Module) -> list[str]:
    layers = []
    for name, module in model.named_modules():
        if not isinstance(module, nn.BatchNorm2d):
            continue
        if module.running_mean is None or module.running_var is None:
            raise ValueError(f"{_OP}: expected {name} to have running statistics, got none")
        layers.append(name)
    if not layers:
        raise ValueError(
            f"{_OP}: expected model with BatchNorm2d layers, got {type(model).__name__} without"
        )
    return layers


def _refuse_calls(name: str, calls: int) -> None:
    raise ValueError(f"{_OP}: expected {name} to be called once per forward pass, got {calls}")


class _Tracer(fx.Tracer):
    """Keeps every batch norm whole, those that others derived from it too."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, nn.BatchNorm2d) or super().is_leaf_module(m, module_qualified_name)


def _trace(model: nn.Module) -> fx.GraphModule:
    for name, module in model.named_modules():
        if module._forward_hooks or module._forward_pre_hooks:
            raise RuntimeError(f"{name or 'the network'} carries forward hooks")
    return fx.GraphModule(model, _Tracer().trace(model))


def _rewrite(traced: fx.GraphModule, layers: list[str], ops: _Ops) -> ObservedModel:
    modules = dict(traced.named_modules())
    calls: dict[str, list[fx.Node]] = {name: [] for name in layers}
    for node in traced.graph.nodes:
        if node.op == "call_module" and node.target in calls:
            calls[node.target].append(node)
    for name, nodes in calls.items():
        if len(nodes) != 1:
            _refuse_calls(name, len(nodes))

    for position, node in enumerate(traced.graph.nodes):
        if node.op == "call_module" and is_conv3x3(modules[node.target]):
            layer: nn.Module = Convolution(modules[node.target], ops.conv3x3)
            traced.add_submodule(f"convolved_{position}", layer)
            node.target = f"convolved_{position}"

    moments: dict[str, fx.Node] = {}
    fused: list[str] = []
    unfused: dict[str, str] = {}
    for position, (name, (node,)) in enumerate(calls.items()):
        norm = modules[name]
        assert isinstance(norm, nn.BatchNorm2d)
        if type(norm) is nn.BatchNorm2d:
            fusion = find_fusion(node, modules)
            layer = FusedBatchNorm(norm, fusion.relu, fusion.pool, ops)
            fused.append(name)
        else:
            fusion = Fusion((node,))
            layer = ObservedBatchNorm(norm, ops)
            unfused[name] = f"{type(norm).__name__} is not BatchNorm2d itself"
        traced.add_submodule(f"observed_{position}", layer)
        moments[name] = _replace(traced.graph, fusion, f"observed_{position}")

    for node in list(traced.graph.nodes):
        if node.op == "call_module":
            _share(traced, node)

    (end,) = (node for node in traced.graph.nodes if node.op == "output")
    end.args = ((end.args[0], [moments[name] for name in layers]),)
    traced.graph.lint()
    traced.recompile()
    traced.delete_all_unused_submodules()
    return ObservedModel(traced, layers, fused, unfused)


def _replace(graph: fx.Graph, fusion: Fusion, target: str) -> fx.Node:
    """Put the call of ``target`` in place of the chain; return the node of its moments."""
    norm, last = fusion.chain[0], fusion.chain[-1]
    arguments = [norm.args[0], *([] if fusion.residual is None else [fusion.residual])]
    # Without a residual at the batch norm's own place, so that it reads x when the original did.
    with graph.inserting_before(norm if fusion.residual is None else fusion.chain[1]):
        call = graph.call_module(target, tuple(arguments))
        output = graph.call_function(operator.getitem, (call, 0))
        measured = graph.call_function(operator.getitem, (call, 1))
    last.replace_all_uses_with(output)
    for node in reversed(fusion.chain):
        graph.erase_node(node)
    return measured


def _share(traced: fx.GraphModule, call: fx.Node) -> None:
    """Give the second of two layers that read a fused output an output of its own."""
    layer = traced.get_submodule(str(call.target))
    if not isinstance(layer, FusedBatchNorm) or layer.pool != "none":
        return
    (output,) = (node for node in call.users if node.args[1] == 0)
    if [_only_reads(traced, node) for node in output.users] != [True, True]:
        return
    layer.shared = True
    with traced.graph.inserting_after(output):
        again = traced.graph.call_function(operator.getitem, (call, 2))
    list(output.users)[1].replace_input_with(output, again)


def _only_reads(traced: fx.GraphModule, node: fx.Node) -> bool:
    """Tell whether a node leaves what it reads as it is, and so does all that reads a view of it.

    Who writes to an output would change it for the other reader too.
    """
    if node.op == "call_module":
        kind = type(traced.get_submodule(str(node.target)))
        return kind in (nn.Conv2d, Convolution, FusedBatchNorm)
    if node.op == "call_function" and node.target is operator.getitem:
        return all(_only_reads(traced, reader) for reader in node.users)
    return node.op == "call_function" and node.target is F.pad
