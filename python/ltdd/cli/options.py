"""Options of ``ltdd distill``, made from the fields of ``config.py`` and their docstrings.

A value comes from the first of these that gives one: the command line, ``--config FILE``, the
preset, the defaults. Importing this module does not import torch.
"""

from __future__ import annotations

import argparse
import ast
import dataclasses
import difflib
import inspect
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, get_args, get_type_hints

import jsonargparse

from ltdd import config as config_module
from ltdd.config import STAGES, DistillConfig, OnBadImage
from ltdd.engine.surroundings import user_path
from ltdd.errors import UserError
from ltdd.recipes.presets import PRESETS, preset

if TYPE_CHECKING:
    from ltdd.engine.events import Sink

_RUN_OPTIONS = (
    "preset", "out", "quiet", "checkpoint_seconds", "on_bad_image", "verbose", "tensorboard",
)  # fmt: skip
CHECKPOINT_SECONDS = 60.0


class Parser(jsonargparse.ArgumentParser):
    """An argument parser whose complaints are a ``UserError`` of one sentence."""

    def __init__(self, **settings: Any) -> None:
        # Whole names only: an abbreviation changes its meaning when a field is added.
        super().__init__(allow_abbrev=False, **settings)

    def add_argument(self, *args: Any, **settings: Any) -> argparse.Action:
        """Add an option whose named values a shell can complete."""
        action: argparse.Action = super().add_argument(*args, **settings)
        values = [a for a in get_args(settings.get("type")) if isinstance(a, str)]
        if values:
            # jsonargparse completes nothing for a Literal, which argcomplete does not bear.
            action.completer = lambda **_: values  # type: ignore[attr-defined]
        return action

    @property
    def names(self) -> list[str]:
        """Names of the options, as fields of the configuration are named."""
        options = [a.option_strings[0] for a in self._actions if a.option_strings]
        return [_field(name) for name in options if not name.startswith(("-h", "--print"))]

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Raise instead of printing the usage; every option is in ``--help``."""
        raise UserError(self._sentence(message)) from ex

    def _sentence(self, message: str) -> str:
        wrong_value = re.search(r'Parser key "([\w.]+)":(.*)', message, re.DOTALL)
        if wrong_value:
            name, detail = wrong_value.groups()
            got = re.findall(r"Got value: (.*)|Given value: (.*)", detail)
            value = "".join(got[-1]) if got else "something else"
            return f"expected {_option(name)} to be {self._kind(name)}, got {value!r}"
        unknown = re.search(r"unrecognized arguments: (.*)", message, re.IGNORECASE | re.DOTALL)
        if unknown:
            words = unknown.group(1).split()
            options = [word.split("=")[0] for word in words if word.startswith("--")]
            if options:
                return unknown_name(_field(options[0]), self.names, _option)
            return f"unexpected argument {words[0]!r}"
        return re.sub(r"\s+", " ", message)

    def _kind(self, name: str) -> str:
        return _kinds().get(name, "of another type")


class OwnOptions(argparse.ArgumentParser):
    """The options a command has beside those of ``ltdd distill``, which it hands on.

    ``parse_known_args`` returns the own ones and the words that are left over.
    """

    def __init__(self, **settings: Any) -> None:
        others = "All other options are those of ltdd distill; see ltdd distill --help."
        super().__init__(allow_abbrev=False, epilog=others, **settings)

    def error(self, message: str) -> NoReturn:
        """Raise instead of printing the usage."""
        raise UserError(message)


def _option(name: str) -> str:
    """Spell a field as its option: dashes at the top level, underscores inside a stage."""
    return "--" + (name if "." in name else name.replace("_", "-"))


def _field(option: str) -> str:
    return option.removeprefix("--").replace("-", "_")


def unknown_name(name: str, known: Sequence[str], spell: Any = str) -> str:
    """Say in one sentence that a name is unknown, which come close, and which there are."""
    stage, dot, _ = name.partition(".")
    scope = [k for k in known if k.startswith(f"{stage}.")] if dot and stage in STAGES else []
    if not scope:
        staged = {k.partition(".")[0]: None for k in known if "." in k}
        scope = [k for k in known if "." not in k] + [f"{stage}.<field>" for stage in staged]
    close = difflib.get_close_matches(name.replace("-", "_"), known, n=1)
    hint = f"; did you mean {spell(close[0])}?" if close else ";"
    return f"unknown option {spell(name)}{hint} allowed: {', '.join(spell(s) for s in scope)}"


def fields() -> Iterator[tuple[str, Any, Any, str]]:
    """Yield (dotted name, type, default, docstring) of every configuration field, in order."""
    docs = _field_docs()
    for prefix, cls in [("", DistillConfig), *((f"{n}.", c) for n, c in STAGES.items())]:
        hints = get_type_hints(cls)
        for spec in dataclasses.fields(cls):
            if spec.name in STAGES and not prefix:
                continue
            yield prefix + spec.name, hints[spec.name], spec.default, docs[cls.__name__, spec.name]


def _field_docs() -> dict[tuple[str, str], str]:
    """Read the string literal under each field; Python itself does not keep it."""
    docs = {}
    for cls in ast.parse(inspect.getsource(config_module)).body:
        if not isinstance(cls, ast.ClassDef):
            continue
        for field, doc in zip(cls.body, cls.body[1:], strict=False):
            if (
                isinstance(field, ast.AnnAssign)
                and isinstance(field.target, ast.Name)
                and isinstance(doc, ast.Expr)
                and isinstance(doc.value, ast.Constant)
            ):
                docs[cls.name, field.target.id] = " ".join(str(doc.value.value).split())
    return docs


def _kinds() -> dict[str, str]:
    """Describe the type of every field in words."""
    words = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}
    kinds = {"quiet": words[bool], "preset": words[str], "out": words[str]}
    kinds |= {"verbose": words[bool], "tensorboard": words[bool]}
    kinds |= {"checkpoint_seconds": words[float], "on_bad_image": "one of fail, skip"}
    for name, hint, _, _ in fields():
        args = [a for a in getattr(hint, "__args__", ()) if a is not type(None)]
        if hint in words:
            kinds[name] = words[hint]
        elif args and all(isinstance(a, str) for a in args):
            kinds[name] = "one of " + ", ".join(args)
        elif len(args) == 1:
            kinds[name] = words[args[0]] + " or null"
        else:
            kinds[name] = "a list such as [random_real]"
    return kinds


def add_on_bad_image(parser: Parser) -> None:
    """Add the option that says what to do with image files that cannot be read."""
    parser.add_argument(
        "--on-bad-image",
        type=OnBadImage,
        default="fail",
        help="What to do with an image file that cannot be read: fail, or skip it.",
    )


def add_watching(parser: Parser) -> None:
    """Add the options that say what to show and to write of what happens; see `event_sinks`."""
    parser.add_argument(
        "--quiet", action="store_true", help="Show nothing but errors and the path of the report."
    )
    parser.add_argument("--verbose", action="store_true", help="Show every event on stderr too.")
    parser.add_argument(
        "--tensorboard",
        action="store_true",
        help="Write a folder tensorboard beside events.jsonl too, with every loss; needs the "
        "package tensorboard.",
    )


def event_sinks(verbose: bool, tensorboard: bool, folder: Path) -> list[Sink]:
    """Return what receives the events of a run beside its log, which is in ``folder``."""
    from ltdd.engine.events import EventPrinter
    from ltdd.engine.tensorboard import TensorBoard

    sinks: list[Sink] = [EventPrinter()] if verbose else []
    return [*sinks, TensorBoard(folder / "tensorboard")] if tensorboard else sinks


def check_watching(quiet: bool, verbose: bool) -> None:
    """Raise a UserError if both were asked for."""
    if quiet and verbose:
        raise UserError("expected --quiet or --verbose, got both")


def distill_parser() -> Parser:
    """Return the parser of ``ltdd distill``: one option for every field of the configuration."""
    parser = Parser(
        prog="ltdd distill",
        usage="ltdd distill --data SPEC --out DIR [--preset NAME] [options]",
        description="Distil a long-tailed image set, train students on the result and write a "
        "report. The same command again goes on where a stopped run was.",
    )
    parser.add_argument(
        "--config", action="config", help="YAML file of fields, as --print_config writes it."
    )
    names = ", ".join(PRESETS)
    parser.add_argument("--preset", type=str | None, default=None, help=f"Named settings: {names}.")
    parser.add_argument("--out", type=str | None, default=None, help="Folder for the results.")
    add_watching(parser)
    parser.add_argument(
        "--checkpoint-seconds",
        type=float,
        default=CHECKPOINT_SECONDS,
        help="Time between two saves of an unfinished stage; it does not change the result.",
    )
    add_on_bad_image(parser)
    groups: dict[str, Any] = {"": parser.add_argument_group("run")}
    for name, hint, default, doc in fields():
        stage = name.rpartition(".")[0]
        if stage not in groups:
            summary = (STAGES[stage].__doc__ or "").strip().splitlines()[0]
            groups[stage] = parser.add_argument_group(f"{stage} - {summary}")
        # argparse formats help with %, so a literal one is doubled
        groups[stage].add_argument(
            _option(name), type=hint, default=default, help=doc.replace("%", "%%")
        )
    return parser


@dataclasses.dataclass(frozen=True)
class Request:
    """What the command line of ``ltdd distill`` asks for."""

    config: DistillConfig
    out: Path
    preset: str | None
    quiet: bool
    checkpoint_seconds: float = CHECKPOINT_SECONDS
    on_bad_image: OnBadImage = "fail"
    verbose: bool = False
    tensorboard: bool = False

    def run_options(self, out: Path) -> dict[str, Any]:
        """Return what `ltdd.pipeline.distill` takes besides a configuration and its folder."""
        sinks = event_sinks(self.verbose, self.tensorboard, out)
        names = ("preset", "quiet", "checkpoint_seconds", "on_bad_image")
        return {name: getattr(self, name) for name in names} | {"sinks": sinks}


def parse_distill(argv: Sequence[str]) -> Request:
    """Turn the arguments of ``ltdd distill`` into a checked configuration.

    Raises:
        UserError: unknown option, field or preset, wrong type or range, or no ``--out``.
        SystemExit: after ``--help`` and ``--print_config``.
    """
    argv = [_canonical(word) for word in argv]
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    first.add_argument("--config", action="append", default=[])
    try:
        files, rest = first.parse_known_args(argv)
        first.add_argument("--preset")
        first.add_argument("--data")
        first.add_argument("--image-size")
        first.add_argument("--ipc")
        chosen, _ = first.parse_known_args(rest)
    except argparse.ArgumentError as error:
        raise UserError(str(error)) from error
    stored: dict[str, Any] = {}
    for path in files.config:
        stored |= _read_config(Path(path))
    parser = distill_parser()
    name = chosen.preset or stored.get("preset")
    if name is not None:
        data = chosen.data or stored.get("data") or DistillConfig.data
        size = _whole(chosen.image_size or stored.get("image_size"))
        ipc = _whole(chosen.ipc or stored.get("ipc")) or DistillConfig.ipc
        parser.set_defaults(dict(_flatten(preset(name, data, size, ipc))))
    # Files first, whatever their place: the command line always overrides them.
    words = [word for path in files.config for word in ("--config", path)]
    values = parser.parse_args([*words, *rest]).as_dict()
    values.pop("config")
    preset_name, out, *others = (values.pop(key) for key in _RUN_OPTIONS)
    config = DistillConfig.from_dict(values)
    if out is None:
        raise UserError("expected --out DIR, a folder for the results, got none")
    request = Request(config, user_path(out), preset_name, *others)
    if not 0 <= request.checkpoint_seconds < math.inf:
        raise UserError(
            f"expected --checkpoint-seconds 0 or more, got {request.checkpoint_seconds:g}"
        )
    check_watching(request.quiet, request.verbose)
    return request


def _whole(value: Any) -> int | None:
    """Return a whole number; None for anything else, which the parser refuses if it is wrong."""
    return int(str(value)) if str(value).isdecimal() else None


def _canonical(word: str) -> str:
    """Accept dashes and underscores alike in the names of options."""
    if not word.startswith("--") or word == "--":
        return word
    name, equals, value = word.partition("=")
    field = _field(name)
    return ("--print_config" if field == "print_config" else _option(field)) + equals + value


def _flatten(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def _read_config(path: Path) -> dict[str, Any]:
    """Read a YAML file for its preset, data and names of fields; the parser reads it again."""
    try:
        values = jsonargparse.get_loader("yaml")(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"cannot read the config file {path}: {error.strerror}") from error
    except Exception as error:  # undecodable text, or whatever the YAML library raises
        reason = " ".join(str(error).split())
        raise UserError(f"expected YAML in the config file {path}, got {reason}") from error
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise UserError(f"expected fields and values in {path}, got a {type(values).__name__}")
    known = [name for name, *_ in fields()]
    for name, _ in _flatten(values):
        if name not in known and name not in _RUN_OPTIONS:
            raise UserError(f"{path}: " + unknown_name(name, [*known, *_RUN_OPTIONS]))
    return values
