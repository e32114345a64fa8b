"""Command lines and YAML files: how words become checked values, each mistake one sentence.

Importing this module does not import torch.
"""

from __future__ import annotations

import argparse
import difflib
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

import yaml

from ltdd.config.settings import bounds, check_value, choices, is_optional, is_text, placeholder
from ltdd.errors import UserError

_LONGEST_FILE = 1 << 20  # bytes of a configuration


class _Loader(yaml.SafeLoader):  # type: ignore[misc]
    """YAML whose numbers are decimal: 1e-3 is one, 010, 1_000 and 1:30 are text, as are dates."""


_DIGITS = "(0|[1-9][0-9]*)"
_OTHER_TAGS = [f"tag:yaml.org,2002:{name}" for name in ("int", "float", "timestamp")]
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag not in _OTHER_TAGS]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
for _tag, _pattern in {
    "int": rf"[-+]?{_DIGITS}",
    "float": rf"[-+]?({_DIGITS}(\.[0-9]*)?|\.[0-9]+)([eE][-+]?[0-9]+)?|[-+]?\.inf|\.nan",
}.items():
    _Loader.add_implicit_resolver(
        f"tag:yaml.org,2002:{_tag}", re.compile(f"(?:{_pattern})$"), list("-+.0123456789")
    )


class Parser(argparse.ArgumentParser):
    """An argument parser whose complaints are a `UserError` of one sentence.

    The ``type`` of an argument is a type, such as ``int | None``, in place of a function.
    """

    def __init__(self, **settings: Any) -> None:
        # Whole names only: an abbreviation changes its meaning when an option is added.
        super().__init__(allow_abbrev=False, **settings)
        self._hints: dict[str, Any] = {}

    def add_argument(
        self, *names: str, type: Any = None, group: Any = None, **settings: Any
    ) -> argparse.Action:
        """Add an argument whose values are checked and, where they have names, completed.

        Args:
            names: as in argparse.
            type: what a value may be; None for flags.
            group: of `add_argument_group`, in which the help shows it.
            settings: as in argparse.
        """
        add: Callable[..., argparse.Action] = group.add_argument if group else super().add_argument
        action = add(*names, **settings)
        if type is not None:
            self._hints[action.dest] = type
            if action.option_strings and action.metavar is None:
                action.metavar = placeholder(type)
            names_of_values = choices(type)
            action.completer = lambda **_: names_of_values  # type: ignore[attr-defined]
        return action

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Return the arguments, checked."""
        words = canonical_words(args or [])
        if "_ARGCOMPLETE" in os.environ:
            import argcomplete

            argcomplete.autocomplete(self)
        values, rest = self.parse_known_args(words, namespace)
        if rest:
            self._refuse(rest)
        for action in self._actions:
            hint, value = self._hints.get(action.dest), vars(values).get(action.dest)
            if hint is not None and value is not None and value is not action.default:
                name = action.option_strings[0] if action.option_strings else action.dest
                many = isinstance(value, list)
                checked = [read_value(name, hint, text) for text in (value if many else [value])]
                setattr(values, action.dest, checked if many else checked[0])
        return values

    def error(self, message: str) -> NoReturn:
        """Raise instead of printing the usage; every option is in ``--help``."""
        raise UserError(" ".join(message.split()))

    def _refuse(self, words: Sequence[str]) -> NoReturn:
        known = [a.option_strings[0] for a in self._actions if a.option_strings]
        known = [name for name in known if name not in ("-h", "--help", "--print_config")]
        names = [word.partition("=")[0] for word in words if word.startswith("-")]
        unknown = [n for n in names if n.strip("-")[:1].isalpha() and n not in known]
        if not unknown:
            raise UserError(f"unexpected argument {words[0]!r}")
        raise UserError(unknown_name(unknown[0], known))


class OwnOptions(argparse.ArgumentParser):
    """The options a command has beside those of ``ltdd distill``, which it hands on.

    ``parse_known_args`` returns the own ones and the words that are left over.
    """

    def __init__(self, **settings: Any) -> None:
        others = "All other options are those of ltdd distill; see ltdd distill --help."
        super().__init__(allow_abbrev=False, epilog=others, **settings)

    def error(self, message: str) -> NoReturn:
        """Raise instead of printing the usage."""
        raise UserError(" ".join(message.split()))


def option(name: str) -> str:
    """Spell a field as its option: dashes at the top level, underscores inside a stage."""
    return "--" + (name if "." in name else name.replace("_", "-"))


def canonical_words(words: Sequence[str]) -> list[str]:
    """Spell options with dashes, and join negative numbers to theirs, such as ``-1e-3``.

    Dashes and underscores are alike in the names of options. argparse takes some negative numbers
    for options.
    """
    spelled: list[str] = []
    for word in words:
        last = spelled[-1] if spelled else ""
        if last.startswith("--") and "=" not in last and re.match(r"-\.?[0-9]|-\.inf", word):
            spelled[-1] += f"={word}"
            continue
        name, equals, value = word.partition("=")
        if name.startswith("--") and name.strip("-"):
            field = name.removeprefix("--").replace("-", "_")
            name = "--print_config" if field == "print_config" else option(field)
        spelled.append(name + equals + value)
    return spelled


def unknown_name(name: str, known: Sequence[str]) -> str:
    """Say in one sentence that an option is unknown, which come close, and which there are.

    Args:
        name: as it was given, an option or a field of a file.
        known: the options or the fields that there are.
    """
    stage, dot, _ = name.partition(".")
    scope = [k for k in known if k.startswith(f"{stage}.")] if dot else []
    if not scope:
        staged = {k.partition(".")[0]: None for k in known if "." in k}
        scope = [k for k in known if "." not in k] + [f"{stage}.<field>" for stage in staged]
    close = difflib.get_close_matches(name, known, n=1)
    hint = f"; did you mean {close[0]}?" if close else ";"
    return f"unknown option {name}{hint} allowed: {', '.join(scope)}"


def read_value(name: str, hint: Any, text: str) -> Any:
    """Turn a word of the command line into a value.

    Args:
        name: the option, for the message.
        hint: what a value may be.
        text: as typed; YAML, where the type is not text.

    Raises:
        UserError: it is of another type or out of range.
    """
    if is_optional(hint) and text == "null":
        return None
    value: Any = text
    if not is_text(hint):
        try:
            value = yaml.load(text, _Loader)
        except Exception:  # whatever the YAML library raises
            value = text
        if value is None or isinstance(value, dict):
            value = text
    return check_value(name, hint, value)


def read_yaml(path: Path) -> Any:
    """Read a YAML file of decimal numbers; None if it is empty.

    Raises:
        UserError: it cannot be read, is too large or no YAML.
    """
    try:
        with path.open("rb") as file:
            content = file.read(_LONGEST_FILE + 1)
        if len(content) > _LONGEST_FILE:
            raise UserError(
                f"expected a config file of at most {_LONGEST_FILE >> 20} MiB, got more in {path}"
            )
        return yaml.load(content.decode("utf-8"), _Loader)
    except UserError:
        raise
    except OSError as error:
        raise UserError(f"cannot read the config file {path}: {error.strerror}") from error
    except Exception as error:  # undecodable text, or whatever the YAML library raises
        reason = " ".join(str(error).split())[:300]
        raise UserError(f"expected YAML in the config file {path}, got {reason}") from error


def default_words(hint: Any, default: Any) -> str:
    """Describe the range of an option and its default, for the help."""
    words = yaml.safe_dump(default, default_flow_style=True, width=10**6).splitlines()[0]
    limits = bounds(hint)
    return f"{limits}; default: {words}" if limits else f"default: {words}"
