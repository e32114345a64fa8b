"""Options that several commands have. Importing this module does not import torch."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ltdd.cli.parser import Parser
from ltdd.config import ImageSize, ImbalanceFactor, OnBadImage
from ltdd.config.settings import shown
from ltdd.engine.machine.surroundings import user_path
from ltdd.engine.run_options import NO_STORE, default_store
from ltdd.errors import UserError

if TYPE_CHECKING:
    from ltdd.engine.watching.events import Sink


def add_on_bad_image(parser: Parser) -> None:
    """Add the option that says what to do with image files that cannot be read."""
    parser.add_argument(
        "--on-bad-image",
        type=OnBadImage,
        default="fail",
        help="What to do with an image file that cannot be read: fail, or skip it.",
    )


def add_cut(parser: Parser) -> None:
    """Add the options that say how data are cut and read, as ``ltdd distill`` has them."""
    parser.add_argument(
        "--imbalance-factor",
        type=ImbalanceFactor | None,
        default=None,
        help="n_max / n_min, 1 or more.",
    )
    parser.add_argument(
        "--image-size", type=ImageSize | None, default=None, help="Side in pixels, 8..224."
    )
    add_on_bad_image(parser)


def add_store(parser: Parser) -> None:
    """Add the option that names the store of stage results; see `chosen_store`."""
    parser.add_argument(
        "--store",
        type=str | None,
        default=None,
        metavar="DIR",
        help="Folder in which runs share the results of stages, so that none is computed twice; "
        f"{NO_STORE}: share nothing. Without it LTDD_STORE, else ~/.cache/ltdd/stages.",
    )


def chosen_store(given: str | None) -> Path | None:
    """Return the folder that ``--store`` asks for."""
    if given is None:
        return default_store()
    return None if given == NO_STORE else folder("--store", given)


def folder(name: str, text: str) -> Path:
    """Return the folder that an option names, whether it exists or not.

    Raises:
        UserError: it is no name of a folder, or that of a file.
    """
    try:
        if "\0" in text:
            raise ValueError("it holds a null byte")
        path = user_path(text)
        blocked = [p for p in (path, *path.parents) if p.exists() and not p.is_dir()]
    except (RuntimeError, ValueError, OSError) as error:  # nobody's home, or no path at all
        reason = str(error).rstrip(".")
        raise UserError(f"expected {name} to be a folder, got {shown(text)}; {reason}") from error
    if not text.strip():
        raise UserError(f"expected {name} DIR, a folder, got {text!r}")
    if blocked:
        raise UserError(f"expected {name} to be a folder, got {shown(text)}; {blocked[0]} is none")
    return path


def add_watching(parser: Parser) -> None:
    """Add the options that say what to show and to write of what happens; see `event_sinks`."""
    parser.add_argument(
        "--quiet",
        action="store_true",
        help="Show nothing but errors and the path of the report.",
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
    from ltdd.engine.watching.events import EventPrinter
    from ltdd.engine.watching.tensorboard import TensorBoard

    sinks: list[Sink] = [EventPrinter()] if verbose else []
    return [*sinks, TensorBoard(folder / "tensorboard")] if tensorboard else sinks


def check_watching(quiet: bool, verbose: bool, tensorboard: bool) -> None:
    """Raise a UserError if both were asked for, or a package is missing."""
    if quiet and verbose:
        raise UserError("expected --quiet or --verbose, got both")
    if tensorboard:  # nothing is written before the first event
        event_sinks(verbose, tensorboard, Path())
