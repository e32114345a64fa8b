"""Sort local files into the splits of a data set for Hugging Face's ``datasets``."""

from __future__ import annotations

import re
from pathlib import Path

from ltdd.data.reading.image_files import Folder, files_below
from ltdd.data.reading.litter import has_image_suffix, suffix_of
from ltdd.data.splitting.splits import split_kind
from ltdd.errors import UserError

_TABLES = (".parquet", ".arrow", ".csv", ".tsv", ".json", ".jsonl", ".zip", ".tar", ".gz", ".txt")
_SHARD = re.compile(r"[-_.]?[0-9]+(-of-[0-9]+)?$")


def parquet_splits(path: Path) -> dict[str, list[str]] | None:
    """Group the parquet files of a folder by the split in their names, or in those of folders.

    The library knows fewer names of splits: it would put ``Testing.parquet`` among the training
    images, and leave out files of other names without a word.

    Returns:
        Paths by split; None where the folder describes itself, or no name is that of a split.

    Raises:
        UserError: there are only images, which another source reads.
    """
    folder = Folder(path, str(path))
    files = list(files_below(folder))
    if any(map(has_image_suffix, files)) and not any(suffix_of(n) in _TABLES for n in files):
        raise UserError(
            f"expected parquet files or another table in {path}, got images; give "
            f"imagefolder:{path}"
        )
    tables = sorted(name for name in files if suffix_of(name) == ".parquet")
    card = path / "README.md"
    if not tables or (card.is_file() and "configs:" in card.read_text("utf-8", "replace")):
        return None
    splits: dict[str, list[str]] = {}
    for table in tables:
        splits.setdefault(_split_of(Path(table).relative_to(path)), []).append(table)
    return splits if any(map(split_kind, splits)) else None


def _split_of(table: Path) -> str:
    """Return the split that a file's name or a folder above says, else the first of these names."""
    names = [_SHARD.sub("", table.stem), *reversed(table.parts[:-1])]
    names = [re.sub(r"\W+", "_", name) for name in names if name]
    return next(filter(split_kind, names), names[0] if names else "train")
