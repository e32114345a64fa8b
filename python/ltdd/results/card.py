"""The dataset card: a README.md about what a distilled set is, where it is from, how to use it."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
import yaml

from ltdd.engine.storage.files import write_text
from ltdd.errors import UserError
from ltdd.results.distilled_set import DATA, FKD, DistilledSet
from ltdd.results.method import method_of
from ltdd.results.nearness import COLUMNS, class_rows, describe_nearness, overall_rows
from ltdd.results.tables import found_images, percent, unmeasured
from ltdd.stages.metrics import THIRDS

CARD = "README.md"
_SIZES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"))
_ROWS = {
    "student": "**the distilled images**",
    "random_real": "as many random real images",
    "full_long_tailed": "all real images",
    "all_real_soft": "all real images, with the teacher's labels",
    "teacher": "the teacher itself",
}
_LISTED_CLASSES = 100  # more would bury the rest of the card

_FILES = f"""\
`{DATA}`: `images` uint8 (M, C, H, W), `labels` int64 (M,), `logits`, the teacher's, (M, K);
`manifest.json`: class names in order, normalization, recipe, configuration, SHA-256 of the files;
`results.json`: accuracies, and how near the images are to real ones; `{FKD}`, where there is one:
the teacher's logits of every view of the recipe. These files are the whole set. A run also leaves
`stages/`, `report/`, `report.html` and `events.jsonl`; the first three hold **real images**: leave
them out where those are not public."""
_LOAD = f"""\
import json

import torch
from safetensors.torch import load_file

info = json.load(open("manifest.json", encoding="utf-8"))
tensors = load_file("{DATA}")
images, labels, logits = tensors["images"], tensors["labels"], tensors["logits"].float()
mean, std = (torch.tensor(info["normalization"][name]) for name in ("mean", "std"))"""
_UNPACK = """
# Only the largest logits are stored, and the mean of the others.
others = tensors["logits_rest"].float()[:, None].repeat(1, len(info["class_names"]))
logits = others.scatter(1, tensors["logits_classes"].long(), logits)"""


class Layout(NamedTuple):
    """Description of the files beside a card.

    Attributes:
        format: one of `exports.FORMATS`; None for the set's own files.
        files: what they are called and hold, in Markdown.
        load: code that reads them into ``images``, ``labels``, ``logits``, ``mean`` and ``std``.
    """

    format: str | None
    files: str
    load: str


def write_card(
    distilled: DistilledSet, folder: Path, license: str | None = None, layout: Layout | None = None
) -> Path:
    """Write ``README.md``.

    Args:
        distilled: the set.
        folder: where its files are.
        license: identifier such as ``cc-by-4.0``; None says that it is unknown.
        layout: of its files; None for the set's own.

    Raises:
        UserError: no such identifier, or the file cannot be written.
    """
    write_text(folder / CARD, render_card(distilled, license, layout or own_layout(distilled)))
    return folder / CARD


def own_layout(distilled: DistilledSet) -> Layout:
    """Return the layout of the set as a run leaves it."""
    packing = distilled.manifest["soft_labels"]["static"]["packing"]
    return Layout(None, _FILES, _LOAD + (_UNPACK if packing == "topk" else ""))


def render_card(distilled: DistilledSet, license: str | None, layout: Layout) -> str:
    """Return the text of the card; arguments and failures as `write_card`."""
    if license is not None and not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9.+-]*", license):
        raise UserError(f"expected a licence such as cc-by-4.0, got {license!r}")
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("ltdd.results.pages"),
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
        autoescape=False,
        keep_trailing_newline=True,
    )
    manifest = distilled.manifest
    matter = _front_matter(distilled, license, layout.format)
    return environment.get_template("card.md.j2").render(
        front_matter=yaml.safe_dump(matter, sort_keys=False, allow_unicode=True, width=100),
        title=matter["pretty_name"],
        format=layout.format,
        files=layout.files,
        load=layout.load,
        license=license,
        distilled=distilled,
        source=source_name(distilled),
        manifest=manifest,
        method=method_of(distilled),
        config=json.dumps(manifest["config"], indent=2),
        recipe=manifest["student_training"],
        static=_static_bytes(distilled),
        rows=_rows(distilled.results),
        found=found_images(distilled.results or {}),
        unmeasured=_plain(unmeasured(distilled.results)) if distilled.results else "",
        nearest=_nearness(distilled),
        classes=[
            (_plain(name), count)
            for name, count in zip(distilled.class_names, manifest["counts"], strict=True)
        ]
        if len(distilled.class_names) <= _LISTED_CLASSES
        else None,
        provenance=(distilled.results or {}).get("provenance", {}),
    )


def source_name(distilled: DistilledSet) -> str:
    """Return the data source without the folders above it."""
    kind, colon, rest = str(distilled.manifest["config"]["data"]).partition(":")
    return _plain(Path(rest).name or rest) if colon else kind


def _front_matter(
    distilled: DistilledSet, license: str | None, format: str | None
) -> dict[str, Any]:
    count, classes = len(distilled), len(distilled.class_names)
    ipc = count // classes
    matter: dict[str, Any] = {
        "license": (license or "unknown").lower(),
        "pretty_name": f"{source_name(distilled)}, distilled to {ipc} "
        f"image{'s' if ipc > 1 else ''} per class",
        "task_categories": ["image-classification"],
        "tags": ["dataset-distillation", "long-tailed", "synthetic", "soft-labels"],
        "size_categories": [next((name for end, name in _SIZES if count < end), "n>1M")],
    }
    if format != "parquet":
        return matter | {"viewer": False}  # a hub would guess, and show results.json as data
    names = {str(label): name for label, name in enumerate(distilled.class_names)}
    return matter | {
        "configs": [
            {"config_name": "default", "data_files": [{"split": "train", "path": "data/*.parquet"}]}
        ],
        "dataset_info": {
            "features": [
                {"name": "image", "dtype": "image"},
                {"name": "label", "dtype": {"class_label": {"names": names}}},
                {"name": "logits", "sequence": "float32"},
            ],
            "splits": [{"name": "train", "num_examples": count}],
        },
    }


def _static_bytes(distilled: DistilledSet) -> dict[str, Any]:
    """Return the bytes of the static logits and their share of the images' bytes in percent."""
    count = distilled.manifest["soft_labels"]["static"]["bytes"]
    return {"bytes": count, "percent": 100 * count / distilled.images.numel()}


def _rows(results: Mapping[str, Any] | None) -> list[tuple[str, list[str], int]]:
    """Return name, accuracies in percent and number of networks of everything that was trained."""
    if results is None:
        return []
    scores = {"student": results["student"], **results["baselines"], "teacher": results["teacher"]}
    return [
        (
            _ROWS.get(who, who),
            [percent(row[group]) for group in ("accuracy", *THIRDS)],
            row["accuracy"]["n"],
        )
        for who, row in scores.items()
    ]


def _nearness(distilled: DistilledSet) -> dict[str, Any] | None:
    """Return how near the images are to real ones; None where nobody has measured it."""
    nearest = (distilled.results or {}).get("nearest")
    if nearest is None:
        return None
    tables = {"all": overall_rows(nearest)}
    if len(distilled.class_names) <= _LISTED_CLASSES:
        tables |= class_rows(nearest, [_plain(name) for name in distilled.class_names])
    return {"told": describe_nearness(nearest), "columns": COLUMNS, "tables": tables}


def _plain(text: str) -> str:
    """Keep a name from being read as Markdown or HTML."""
    return re.sub(r"([\\`*_{}\[\]<>#|~])", r"\\\1", " ".join(text.split()))
