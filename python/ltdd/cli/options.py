"""Options of ``ltdd distill``, made from the fields of ``config.py`` and their docstrings.

A value comes from the first of these that gives one: the command line, ``--config FILE``, the
preset of the recipe, the defaults. Importing this module does not import torch.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, NoReturn

import yaml

from ltdd.cli.parser import (
    Parser,
    default_words,
    option,
    read_value,
    read_yaml,
    unknown_name,
)
from ltdd.cli.shared_options import (
    add_on_bad_image,
    add_store,
    add_watching,
    check_watching,
    chosen_store,
    event_sinks,
    folder,
)
from ltdd.config import (
    STAGES,
    DistillConfig,
    OnBadImage,
    Stage,
    form_of,
    other_form,
    override,
)
from ltdd.config.settings import Field, Weight, check_value, choices, fields_of, placeholder, shown
from ltdd.engine.run_options import CHECKPOINT_SECONDS, RunOptions
from ltdd.errors import UserError
from ltdd.recipes import PRESETS, RECIPES, Recipe, find_recipe
from ltdd.recipes.presets import preset
from ltdd.recipes.rldd import RLDD

if TYPE_CHECKING:
    from ltdd.engine.watching.events import Sink

_RUN_OPTIONS: Mapping[str, Any] = {
    "recipe": str | None,
    "preset": str | None,
    "out": str | None,
    "quiet": bool,
    "verbose": bool,
    "tensorboard": bool,
    "checkpoint_seconds": Weight,
    "on_bad_image": OnBadImage,
    "store": str | None,
}
"""What a run has beside its configuration, in the order of the help."""
Forms = Mapping[str, Sequence[type[Stage]]]


def fields(forms: Forms = STAGES) -> Iterator[tuple[str, Field]]:
    """Yield dotted name and field of the configuration, in order, those of several forms once."""
    for spec in fields_of(DistillConfig):
        if spec.name not in STAGES:
            yield spec.name, spec
    for stage, choice in forms.items():
        specs = {spec.name: spec for form in reversed(choice) for spec in fields_of(form)}
        if key := choice[0].FORM:
            names = tuple(form.form() for form in STAGES[stage])
            doc = "; ".join(f"`{form.form()}`: {_summary(form)}" for form in STAGES[stage])
            yield (
                f"{stage}.{key}",
                Field(key, Literal[names], choice[0].form(), f"{doc}."),
            )
            del specs[key]
        for spec in specs.values():
            yield f"{stage}.{spec.name}", spec


def _summary(form: type) -> str:
    return (form.__doc__ or "").strip().splitlines()[0].rstrip(".")


def distill_parser(forms: Forms = STAGES, defaults: Mapping[str, Any] | None = None) -> Parser:
    """Return the parser of ``ltdd distill``: one option for every field of the configuration.

    Args:
        forms: stage -> forms whose fields are options.
        defaults: dotted name -> value, for the help, where it differs from the field's default.
    """
    parser = Parser(
        prog="ltdd distill",
        usage="ltdd distill --data SPEC --out DIR [--recipe NAME] [--preset NAME] [options]",
        description="Distil a long-tailed image set, train students on the result and write a "
        "report. The same command again goes on where a stopped run was.",
        add_help=False,
        formatter_class=functools.partial(argparse.HelpFormatter, max_help_position=30),
    )
    parser.add_argument(
        "-h", "--help", action="store_true", default=argparse.SUPPRESS,
        help="Show the options of the chosen forms of the stages, with their defaults.",
    )  # fmt: skip
    parser.add_argument(
        "--print_config", action="store_true", default=argparse.SUPPRESS,
        help="Print the configuration as a file for --config.",
    )  # fmt: skip
    parser.add_argument(
        "--config",
        action="append",
        default=[],
        metavar="FILE",
        help="YAML file of fields, as --print_config writes it.",
    )
    recipes = "; ".join(f"{r.name}: {r.title} ({r.paper})" for r in RECIPES.values())
    _named(parser, "--recipe", tuple(RECIPES), f"The method. {recipes}.")
    _named(
        parser,
        "--preset",
        PRESETS,
        "How much the run may cost: demo takes a minute, cpu an hour; paper: the settings that the "
        "method was published with.",
    )
    parser.add_argument(
        "--out", type=str | None, default=None, metavar="DIR", help="Folder for the results."
    )
    add_watching(parser)
    parser.add_argument(
        "--checkpoint-seconds",
        type=Weight,
        default=CHECKPOINT_SECONDS,
        help="Time between two saves of an unfinished stage; it does not change the result.",
    )
    add_on_bad_image(parser)
    add_store(parser)
    for action in parser._actions:  # what is not typed may come from a file
        action.default = [] if action.dest == "config" else argparse.SUPPRESS
    groups: dict[str, Any] = {"": parser.add_argument_group("run")}
    for name, spec in fields(forms):
        stage = name.rpartition(".")[0]
        if stage not in groups:
            groups[stage] = parser.add_argument_group(_title(forms[stage]))
        default = (defaults or {}).get(name, spec.default)
        shown_values = default_words(spec.hint, default)
        action = groups[stage].add_argument(
            option(name),
            default=argparse.SUPPRESS,
            dest=name,
            metavar=placeholder(spec.hint),
            # argparse formats help with %, so a literal one is doubled
            help=f"{spec.doc} ({shown_values})".replace("%", "%%"),
        )
        values = choices(spec.hint)
        action.completer = functools.partial(_completions, values)
    return parser


def _named(parser: Parser, name: str, values: Sequence[str], text: str) -> None:
    action = parser.add_argument(name, type=str | None, metavar="|".join(values), help=text)
    action.completer = functools.partial(_completions, values)  # type: ignore[attr-defined]


def _completions(values: Sequence[str], **_: Any) -> Sequence[str]:
    return values


def _title(forms: Sequence[type[Stage]]) -> str:
    stage = forms[0].STAGE
    if len(forms) > 1 or not forms[0].FORM:
        return f"{stage} - {_summary(forms[0])}"
    others = [form.form() for form in STAGES[stage] if form is not forms[0]]
    return (
        f"{stage} - {_summary(forms[0])} (the form {forms[0].form()}; --{stage}.{forms[0].FORM} "
        f"{'|'.join(others)} --help shows the others)"
    )


@dataclasses.dataclass(frozen=True)
class Request:
    """Request of a command line of ``ltdd distill``."""

    config: DistillConfig
    out: Path
    options: RunOptions = dataclasses.field(default_factory=RunOptions)


@dataclasses.dataclass(frozen=True)
class _Sinks:
    """`event_sinks` of a run; two that were asked for alike are equal."""

    verbose: bool
    tensorboard: bool

    def __call__(self, folder: Path) -> Sequence[Sink]:
        return event_sinks(self.verbose, self.tensorboard, folder)


class _Given(NamedTuple):
    """A value of a field or an option, as it was given.

    Attributes:
        name: dotted.
        value: text where it was typed.
        file: that says so; None for the command line.
    """

    name: str
    value: Any
    file: Path | None = None

    def checked(self, hint: Any) -> Any:
        """Return the value as a type has it; anything else is a UserError that names the place."""
        if self.file is None:
            if not isinstance(self.value, str):  # a flag, or read by the parser
                return self.value
            return read_value(option(self.name), hint, self.value)
        try:
            return check_value(self.name, hint, self.value)
        except UserError as error:
            self.refuse(str(error))

    def refuse(self, sentence: str) -> NoReturn:
        """Raise a sentence that begins with the name."""
        raise UserError(f"--{sentence}" if self.file is None else f"{self.file}: {sentence}")


def parse_distill(argv: Sequence[str], recipe: Recipe | None = None) -> Request:
    """Turn the arguments of ``ltdd distill`` into a checked configuration.

    Args:
        argv: the arguments.
        recipe: the method; None takes the one that they name.

    Raises:
        UserError: unknown option, field, recipe or preset, a field of a form that was not chosen,
            wrong type or range, or no ``--out``.
        SystemExit: after ``--help`` and ``--print_config``.
    """
    typed = vars(distill_parser().parse_args(argv))
    wants_help, prints = typed.pop("help", False), typed.pop("print_config", False)
    given: dict[str, _Given] = {}
    for path in typed.pop("config"):
        given |= _read_config(Path(path))
    given |= {name: _Given(name, value) for name, value in typed.items()}
    known = dict(fields())

    def top(name: str) -> Any:
        spec = known[name]
        return given[name].checked(spec.hint) if name in given else spec.default

    run = _run_options(given)
    recipe = recipe or find_recipe(run["recipe"])
    base = preset(run["preset"], top("data"), top("image_size"), top("ipc"), recipe)
    forms = {stage: _chosen_form(stage, given, base, known) for stage in STAGES}
    if wants_help:
        of_base = {
            f"{stage}.{name}": v for stage in STAGES for name, v in base.get(stage, {}).items()
        }
        of_run = {name: value for name, value in base.items() if name not in STAGES}
        distill_parser(
            {stage: (form,) for stage, form in forms.items()}, of_base | of_run
        ).print_help()
        raise SystemExit(0)
    changes: dict[str, Any] = {}
    for name, one in given.items():
        stage, _, field = name.rpartition(".")
        if stage:
            specs = {spec.name: spec.hint for spec in fields_of(forms[stage])}
            if field not in specs:
                one.refuse(str(other_form(forms[stage], field)))
            hint = known[name].hint if field == forms[stage].FORM else specs[field]
            changes.setdefault(stage, {})[field] = one.checked(hint)
        elif name not in _RUN_OPTIONS:
            changes[name] = top(name)
    config = DistillConfig.from_dict(override(base, changes))
    if prints:
        print(yaml.safe_dump(run | config.to_dict(), sort_keys=False, allow_unicode=True), end="")
        raise SystemExit(0)
    if run["out"] is None:
        raise UserError("expected --out DIR, a folder for the results, got none")
    check_watching(run["quiet"], run["verbose"], run["tensorboard"])
    options = RunOptions(
        recipe=run["recipe"],
        preset=run["preset"],
        quiet=run["quiet"],
        checkpoint_seconds=run["checkpoint_seconds"],
        on_bad_image=run["on_bad_image"],
        store=chosen_store(run["store"]),
        sinks=_Sinks(run["verbose"], run["tensorboard"]),
    )
    return Request(config, folder("--out", run["out"]), options)


def _run_options(given: Mapping[str, _Given]) -> dict[str, Any]:
    """Return the checked options that are not of the configuration."""
    values: dict[str, Any] = {
        "recipe": None,
        "preset": None,
        "out": None,
        "quiet": False,
        "verbose": False,
    }
    values |= {"tensorboard": False, "checkpoint_seconds": CHECKPOINT_SECONDS}
    values |= {"on_bad_image": "fail", "store": None}
    for name, hint in _RUN_OPTIONS.items():
        if name in given:
            values[name] = given[name].checked(hint)
    return values | ({"recipe": RLDD.name} if values["recipe"] is None else {})


def _chosen_form(
    stage: str, given: Mapping[str, _Given], base: Mapping[str, Any], known: Mapping[str, Field]
) -> type[Stage]:
    key = STAGES[stage][0].FORM
    name = f"{stage}.{key}"
    if name in given:
        return form_of(stage, given[name].checked(known[name].hint))
    return form_of(stage, base.get(stage, {}).get(key))


def _read_config(path: Path) -> dict[str, _Given]:
    """Read the fields and options of a YAML file."""
    content = read_yaml(path)
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise UserError(f"expected fields and values in {path}, got {shown(content)}")
    values: dict[Any, Any] = {}
    for name, value in content.items():
        if name in STAGES:
            if not isinstance(value, dict):
                raise UserError(
                    f"{path}: expected {name} to be a mapping of fields, got {shown(value)}"
                )
            values |= {f"{name}.{field}": inner for field, inner in value.items()}
        else:
            values[name] = value
    known = [*(name for name, _ in fields()), *_RUN_OPTIONS]
    for name in values:
        if name not in known:
            raise UserError(f"{path}: {unknown_name(str(name), known)}")
    return {name: _Given(name, value, path) for name, value in values.items()}
