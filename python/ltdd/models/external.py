"""Networks from elsewhere: torchvision, timm or one's own code, brought to the shape of `Network`.

They start from fresh weights: pretrained ones have seen balanced data, and are only used when they
are given as a file. The last Linear layer is found by running the network once; what enters it are
the features to which expert training attaches its heads.
"""

from __future__ import annotations

import difflib
import importlib
import inspect
from collections.abc import Iterable, Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn

from ltdd.errors import UserError
from ltdd.models.network import Network

EXTERNAL: Mapping[str, str] = {
    "torchvision:": "torchvision:NAME",
    "timm:": "timm:NAME",
    "python:": "python:package.module:factory",
}
"""Start of a name -> how the whole name is spelt."""


def build_external(name: str, num_classes: int, image_size: int, channels: int) -> Network:
    """Build a freshly initialised network from elsewhere.

    Args:
        name: `torchvision:NAME` (its classification models), `timm:NAME` (needs the extra `timm`),
            or `python:package.module:factory`, a function or class that has a parameter
            `num_classes`, may have `image_size` and `channels`, and makes an `nn.Module`.
        num_classes: Number of classes K.
        image_size: Side of the square images in pixels.
        channels: 1 for grey images, 3 for RGB.

    Raises:
        UserError: it is not there, does not accept such images or does not end in a Linear layer.
    """
    source, _, rest = name.partition(":")
    # On the CPU whatever the default device: some factories compute with the numbers they draw.
    with torch.device("cpu"):
        match source:
            case "torchvision":
                model = _from_torchvision(rest, num_classes, image_size, channels)
            case "timm":
                model = _from_timm(rest, num_classes, image_size, channels)
            case _:
                model = _from_factory(rest, num_classes, image_size, channels)
        return adapt(model, name, num_classes, image_size, channels)


def adapt(model: nn.Module, name: str, num_classes: int, image_size: int, channels: int) -> Network:
    """Split a network that returns logits into its body and its last Linear layer.

    Raises:
        UserError: it does not accept the images, or its output is not that of a Linear layer.
    """
    calls: list[tuple[str, Tensor]] = []

    def note(layer: str) -> torch.utils.hooks.RemovableHandle:
        return model.get_submodule(layer).register_forward_pre_hook(
            lambda _, inputs: calls.append((layer, inputs[0]))
        )

    handles = [note(layer) for layer, module in model.named_modules() if type(module) is nn.Linear]
    shape = (2, channels, image_size, image_size)
    example = torch.linspace(-1, 1, 2 * channels * image_size**2).view(shape)
    training = model.training
    try:
        with torch.no_grad():
            logits = model.eval()(example)
    except Exception as error:  # anybody's code, which may raise anything
        raise UserError(
            f"{name}: expected a network for images {shape[1:]}, got {_first_line(error)}"
        ) from error
    finally:
        model.train(training)
        for handle in handles:
            handle.remove()
    if not isinstance(logits, Tensor) or logits.shape != (2, num_classes):
        got = tuple(logits.shape) if isinstance(logits, Tensor) else f"a {type(logits).__name__}"
        raise UserError(f"{name}: expected logits (N, {num_classes}) from a network, got {got}")
    head, features = calls[-1] if calls else ("", logits)
    layer = model.get_submodule(head)
    if not head or features.ndim != 2 or not torch.allclose(layer(features), logits):
        raise UserError(
            f"{name}: expected a network whose output is that of its last Linear layer, got "
            f"{f'something else behind {head!r}' if head else 'one without such a layer'}"
        )
    parent, _, leaf = head.rpartition(".")
    setattr(model.get_submodule(parent), leaf, nn.Identity())
    network = Network(model, features.shape[1], num_classes, head)
    network.classifier = cast(nn.Linear, layer)  # with the initial weights its author chose
    return network.train()


def _from_torchvision(name: str, num_classes: int, image_size: int, channels: int) -> nn.Module:
    from torchvision import models

    _check_known("torchvision", name, models.list_models(module=models))
    settings: dict[str, Any] = {}
    if name.startswith("vit_"):
        settings = {"image_size": image_size}
    elif name in ("googlenet", "inception_v3"):  # without their further outputs in training
        settings = {"aux_logits": False, "init_weights": False}
    model: nn.Module = models.get_model(name, weights=None, num_classes=num_classes, **settings)
    if channels != 3:  # its networks know RGB only; the first convolution is made anew
        path, first = next((p, m) for p, m in model.named_modules() if isinstance(m, nn.Conv2d))
        parent, _, leaf = path.rpartition(".")
        setattr(
            model.get_submodule(parent),
            leaf,
            nn.Conv2d(
                channels,
                first.out_channels,
                first.kernel_size,  # type: ignore[arg-type]
                stride=first.stride,  # type: ignore[arg-type]
                padding=first.padding,  # type: ignore[arg-type]
                bias=first.bias is not None,
            ),
        )
    return model


def _from_timm(name: str, num_classes: int, image_size: int, channels: int) -> nn.Module:
    try:
        import timm
    except ImportError as error:
        raise UserError(
            f"timm:{name}: expected the package timm, got none; install the extra: "
            "pip install 'ltdd[timm]'"
        ) from error
    _check_known("timm", name, timm.list_models())
    published = timm.get_pretrained_cfg(name)
    # Transformers are built for one size; convolutional networks do not know the word.
    size: dict[str, Any] = (
        {"img_size": image_size} if published and published.fixed_input_size else {}
    )
    model: nn.Module = timm.create_model(
        name, pretrained=False, num_classes=num_classes, in_chans=channels, **size
    )
    return model


def _from_factory(path: str, num_classes: int, image_size: int, channels: int) -> nn.Module:
    module_name, _, attribute = path.partition(":")
    try:
        factory = getattr(importlib.import_module(module_name), attribute)
        parameters = inspect.signature(factory).parameters
    except Exception as error:  # importing runs anybody's code
        raise UserError(
            f"python:{path}: expected package.module:factory that can be imported (is its folder "
            f"in PYTHONPATH?), got {_first_line(error)}"
        ) from error
    # The name may stand in somebody else's run folder: what takes no num_classes is not called.
    if "num_classes" not in parameters:
        raise UserError(
            f"python:{path}: expected a factory with a parameter num_classes, got {attribute} with "
            f"{', '.join(parameters) or 'none'}"
        )
    known = {"num_classes": num_classes, "image_size": image_size, "channels": channels}
    try:
        model = factory(**{name: value for name, value in known.items() if name in parameters})
    except Exception as error:
        raise UserError(f"python:{path}: expected a network, got {_first_line(error)}") from error
    if not isinstance(model, nn.Module):
        raise UserError(f"python:{path}: expected an nn.Module, got a {type(model).__name__}")
    return model


def _check_known(source: str, name: str, known: Iterable[str]) -> None:
    known = list(known)
    if name not in known:
        close = difflib.get_close_matches(name, known, n=3)
        hint = f" such as {', '.join(close)}" if close else ""
        raise UserError(f"expected one of {source}'s {len(known)} networks{hint}, got {name!r}")


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
