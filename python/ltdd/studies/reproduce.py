"""Run one row of the published tables, and say whether its figure came out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ltdd.config import DistillConfig
from ltdd.data.long_tailed_data import LongTailedData
from ltdd.engine.distributed.session import session
from ltdd.engine.run_options import RunOptions
from ltdd.engine.runtime import resolve_device
from ltdd.engine.storage.files import write_text
from ltdd.errors import UserError
from ltdd.pipeline import distill, load_source
from ltdd.results.tables import percent
from ltdd.stages.metrics import THIRDS
from ltdd.studies.published_tables import Row

COLUMNS = (
    "row", "ours", "published", "teacher", "random real", "head", "medium", "tail", "seconds",
    "machine", "torch", "commit", "date", "command",
)  # fmt: skip


@dataclass(frozen=True)
class Outcome:
    """Outcome of a row.

    Attributes:
        row: the row.
        results: content of ``results.json``.
    """

    row: Row
    results: Mapping[str, Any]

    @property
    def difference(self) -> float:
        """Our accuracy minus the published one, in points."""
        return 100 * float(self.results["student"]["accuracy"]["mean"]) - self.row.published

    @property
    def inside(self) -> bool:
        """Whether the figure is reached, up to the row's tolerance; more is inside too."""
        return self.difference >= -self.row.tolerance

    def __str__(self) -> str:
        accuracy = self.results["student"]["accuracy"]
        verdict = "inside" if self.inside else "outside"
        return (
            f"{self.row.name}: {percent(accuracy)} (n = {accuracy['n']}), published "
            f"{self.row.published:.1f}, difference {self.difference:+.1f}: {verdict} "
            f"(at most {self.row.tolerance:.1f} below)"
        )


def reproduce(row: Row, config: DistillConfig, out: Path, options: RunOptions) -> Outcome:
    """Run a row.

    Args:
        row: the row.
        config: the configuration that answers it.
        out: folder of the run.
        options: rows of one data set share their experts through the store.

    Raises:
        UserError: the data are not those of the row, or as `distill`.
    """
    with session(resolve_device(config.device)) as ranks:
        data = load_source(config, options.of_rank(ranks.rank))
        check_split(row, data)
        results = distill(config, out, options=options)
    return Outcome(row, results)


def check_split(row: Row, data: LongTailedData) -> None:
    """Refuse data that cannot be those of the row.

    Raises:
        UserError: another number of classes or of training images.
    """
    if data.num_classes != row.data.classes:
        raise UserError(
            f"reproduce: expected the {row.data.classes} classes of {row.data.title}, got "
            f"{data.num_classes} in {data.source}"
        )
    expected, found = row.data.images.get(row.imbalance_factor), len(data.train_labels)
    if expected is not None and found != expected:
        raise UserError(
            f"reproduce: expected the {expected} training images of {row.data.title} at imbalance "
            f"factor {row.imbalance_factor}, got {found} in {data.source}"
        )


def page_text(path: Path) -> str:
    """Return a Markdown file that ends with a table of `COLUMNS`, or the start of a new one.

    Raises:
        UserError: the file ends with something else, or cannot be read.
    """
    header = f"| {' | '.join(COLUMNS)} |"
    if not path.exists():
        return f"# Accuracy\n\n{header}\n|{' --- |' * len(COLUMNS)}\n"
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read {path}: {error}") from error
    if not text.rstrip().rpartition("\n\n")[2].startswith(header):
        raise UserError(f"expected {path} to end with a table of the columns {header}")
    return text


def record(path: Path, outcome: Outcome, command: str) -> None:
    """Append a finished row to the table that a Markdown file ends with.

    Args:
        path: the file; made if it is missing.
        outcome: of `reproduce`.
        command: what anybody can type to get the row.

    Raises:
        UserError: as `page_text`.
    """
    line = f"| {' | '.join(_cells(outcome, command))} |"
    write_text(path, f"{page_text(path).rstrip()}\n{line}\n")


def _cells(outcome: Outcome, command: str) -> list[str]:
    results, origin = outcome.results, outcome.results["provenance"]
    student, accuracy = results["student"], results["student"]["accuracy"]
    random_real = results["baselines"].get("random_real")
    return [
        _row_id(outcome),
        f"{percent(accuracy)} ({accuracy['n']})",
        f"{outcome.row.published:.1f}",
        percent(results["teacher"]["accuracy"]),
        percent(random_real and random_real["accuracy"]),
        *(percent(student[group]) for group in THIRDS),
        f"{origin['seconds']:.0f}",
        f"{origin['machine']}, {origin['threads']} threads".replace("|", "/"),
        origin["torch"],
        origin["commit"] or "-",
        origin["date"][:10],
        f"`{command}`",
    ]


def _row_id(outcome: Outcome) -> str:
    """Return the name of the row, the preset and the commit: what tells its runs apart."""
    origin = outcome.results["provenance"]
    commit = (origin["commit"] or "")[:7]
    return "-".join(filter(None, [outcome.row.name, origin["preset"], commit]))
