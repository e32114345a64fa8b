"""Weights from a file: read without unpickling, loaded strictly, classes brought into our order."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ltdd.config import AnyExperts
from ltdd.engine.machine.surroundings import user_path
from ltdd.engine.storage.files import read_tensors, tensors_sha256
from ltdd.errors import UserError
from ltdd.models import Network

_WRAPPERS = ("state_dict", "model_state_dict", "model")  # where training scripts put the weights
_PREFIXES = ("module.", "_orig_mod.")  # what DataParallel and torch.compile put before each name


@dataclass(frozen=True)
class Weights:
    """The content of a weights file.

    Attributes:
        path: the file.
        tensors: name -> tensor.
        class_names: what the outputs stand for, in order; None if the file does not say.
        sha256: of the file's bytes.
    """

    path: Path
    tensors: dict[str, Tensor]
    class_names: tuple[str, ...] | None
    sha256: str


def read_weights(path: Path, class_map: Path | None = None) -> Weights:
    """Read a state dict.

    Args:
        path: `.safetensors`, whose metadata may hold `class_names` as a JSON list; or `.pt`/`.pth`
            that `torch.load(weights_only=True)` accepts, a state dict or a dict with one under
            `state_dict` and perhaps `class_names`.
        class_map: JSON file with the names of the outputs in order, a list or an object with
            `class_names` (as a run's `manifest.json` has); it comes before what the file says.

    Raises:
        UserError: a file cannot be read, or holds something else.
    """
    names: Any
    if path.suffix == ".safetensors":
        tensors, metadata = read_tensors(path)
        names = _json(path, metadata.get("class_names", "null"))
    else:
        content = _load_torch(path)
        names = content.get("class_names")
        inner = next(
            (content[key] for key in _WRAPPERS if isinstance(content.get(key), dict)), None
        )
        tensors = inner or {k: v for k, v in content.items() if k != "class_names"}
        for name, value in tensors.items():
            if not isinstance(value, Tensor):
                kind = type(value).__name__
                raise UserError(f"expected tensors by name in {path}, got a {kind} under {name!r}")
    for prefix in _PREFIXES:
        if all(name.startswith(prefix) for name in tensors):
            tensors = {name.removeprefix(prefix): value for name, value in tensors.items()}
    if class_map is not None:
        names = _names_of_map(class_map)
    if names is not None and not _is_names(names):
        raise UserError(f"expected a list of class names in {class_map or path}, got {names!r:.60}")
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    return Weights(path, tensors, None if names is None else tuple(names), sha256)


def load_weights(network: Network, weights: Weights, class_names: Sequence[str]) -> None:
    """Load weights into a network; every name and shape must fit.

    A network of this package is told by its own names, or by those of the network that it was made
    from (`conv1.weight` for `resnet18`).

    Args:
        network: receives the weights.
        weights: of `read_weights`.
        class_names: the data's, in order. Where the weights have names too, their outputs are
            brought into this order; otherwise they are taken to have it.

    Raises:
        UserError: names the first tensor or class that does not fit.
    """
    order = _order(weights, class_names)
    state = _matching(network, weights, lambda name: True)
    if order:
        state |= {name: state[name][order] for name in state if _of_classifier(name)}
    network.load_state_dict(state)


def load_body(network: Network, weights: Weights) -> None:
    """Load all weights but the classifier's into a network; every name and shape must fit.

    Args:
        network: receives the weights; its classifier stays as it is.
        weights: of `read_weights` or `starting_weights`; of any classes.

    Raises:
        UserError: names the first tensor that does not fit.
    """
    state = _matching(network, weights, lambda name: not _of_classifier(name))
    network.load_state_dict(network.state_dict() | state)


def _matching(
    network: Network, weights: Weights, wanted: Callable[[str], bool]
) -> dict[str, Tensor]:
    """Return the tensors of a file under the network's names, those that are wanted."""
    own_names = set(weights.tensors) >= {"classifier.weight"} and any(
        name.startswith("body.") for name in weights.tensors
    )
    expected = network.state_dict()
    theirs = {name: name if own_names else _original_name(name, network.head) for name in expected}
    state = {}
    for name in filter(wanted, expected):
        value, shape = weights.tensors.get(theirs[name]), tuple(expected[name].shape)
        if value is None or tuple(value.shape) != shape:
            got = "none" if value is None else f"shape {tuple(value.shape)}"
            raise UserError(f"{weights.path}: expected {theirs[name]} of shape {shape}, got {got}")
        state[name] = value
    spare = set(weights.tensors) - set(theirs.values())
    if spare:
        raise UserError(
            f"{weights.path}: expected the weights of the network alone, got {min(spare)} too"
        )
    return state


def _of_classifier(name: str) -> bool:
    return name.startswith("classifier.")


def _original_name(name: str, head: str) -> str:
    part, _, rest = name.partition(".")
    return rest if part == "body" else f"{head}.{rest}"


def _order(weights: Weights, wanted: Sequence[str]) -> list[int] | None:
    """Return the output of the weights for each wanted class; None where they name no classes."""
    names = weights.class_names
    if names is None:
        return None
    if len(names) != len(set(names)):
        raise UserError(f"{weights.path}: expected each class once, got some more often")
    for have, need, where in ((names, wanted, "weights"), (wanted, names, "data")):
        missing = next((name for name in need if name not in have), None)
        if missing is not None:
            raise UserError(
                f"{weights.path}: expected weights for the data's {len(wanted)} classes, got "
                f"{len(names)} classes; {missing!r} is not among those of the {where}"
            )
    place = {name: number for number, name in enumerate(names)}
    return [place[name] for name in wanted]


def _load_torch(path: Path) -> Mapping[str, Any]:
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error
    except Exception as error:  # a damaged or hostile file fails in many ways
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(
            f"expected weights that torch.load(weights_only=True) accepts in {path}, got {reason}"
        ) from error
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        raise UserError(
            f"expected a dict of weights in {path}, got a {type(content).__name__} of something "
            "else"
        )
    return content


def _names_of_map(path: Path) -> Any:
    try:
        content = _json(path, path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read {path}: {error}") from error
    names = content.get("class_names") if isinstance(content, dict) else content
    return names or "no names"


def _is_names(names: Any) -> bool:
    return isinstance(names, list | tuple) and all(isinstance(name, str) for name in names)


def _json(path: Path, text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"expected JSON with class names in {path}, got {text!r:.40}") from error


def starting_weights(name: str) -> Weights:
    """Read the weights that training starts from.

    Args:
        name: a file as in `read_weights`, or `torchvision:NAME` for the newest weights that
            torchvision publishes for that network; they are downloaded once, into torch's cache.

    Raises:
        UserError: the file cannot be read, or there are no such weights.
    """
    kind, colon, network = name.partition(":")
    if not colon or kind != "torchvision":
        return read_weights(user_path(name))
    from torchvision.models import get_model_weights

    try:
        published = get_model_weights(network).DEFAULT
    except (ValueError, AttributeError) as error:  # an unknown network, or one without weights
        raise UserError(f"expected a network that torchvision has weights for, got {name!r}") from (
            error
        )
    try:
        tensors = published.get_state_dict(progress=False, check_hash=True)
    except (OSError, RuntimeError, ValueError) as error:
        raise UserError(f"cannot download the weights of {name!r}: {error}") from error
    return Weights(Path(name), dict(tensors), None, tensors_sha256(tensors))


def given_weights(settings: AnyExperts, file: str) -> Weights:
    """Read a weights file that the configuration names, with the class map."""
    class_map = settings.class_map
    return read_weights(user_path(file), None if class_map is None else user_path(class_map))
