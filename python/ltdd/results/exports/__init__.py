"""A distilled set in the file formats of other libraries, one module a format.

Each module has ``write(distilled, folder)``, ``FILES``, what it writes, and ``LOAD``, code for the
card that reads the set back without this package.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

from ltdd.engine.public import public
from ltdd.errors import UserError

FORMATS = ("imagefolder", "npz", "ddranking", "parquet", "webdataset")
"""Modules of this package."""
INFO = "info.json"


@public()
def export(folder: str | Path, format: str, to: str | Path, license: str | None = None) -> Path:
    """Write a distilled set in another format, with a card that says how to use it.

    The new folder appears as a whole or not at all.

    Args:
        folder: a finished run or a published set.
        format: one of `FORMATS`.
        to: a folder that does not exist yet, or is empty.
        license: identifier such as ``cc-by-4.0`` for the card.

    Returns:
        The new folder.

    Raises:
        UserError: unknown format, no set in ``folder``, a set that the format cannot hold, a target
            that is not empty, a package that is missing, or a full disk.
    """
    if format not in FORMATS:
        raise UserError(f"expected a format among {', '.join(FORMATS)}; got {format!r}")
    from ltdd.engine.machine.surroundings import user_path
    from ltdd.engine.storage.files import new_folder, write_json
    from ltdd.results.card import Layout, write_card
    from ltdd.results.distilled_set import load

    distilled, target = load(folder), user_path(to)
    module = importlib.import_module(f"ltdd.results.exports.{format}")
    with new_folder(target) as temporary:
        module.write(distilled, temporary)
        write_json(temporary / INFO, _info(distilled.manifest))
        layout = Layout(format, module.FILES, module.LOAD)
        write_card(distilled, temporary, license, layout)
    return target


def _info(manifest: dict[str, Any]) -> dict[str, Any]:
    """Return what every format needs beside images and labels."""
    names = (
        "class_names",
        "counts",
        "normalization",
        "student_training",
        "split_sha256",
        "versions",
    )
    sources = {name: entry["sha256"] for name, entry in manifest["files"].items()}
    return {name: manifest[name] for name in names} | {"source_sha256": sources}
