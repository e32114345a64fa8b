"""Check everything a run folder holds: ``ltdd verify``."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ltdd.config import DistillConfig
from ltdd.data.image_spec import to_uint8
from ltdd.data.packed_logits import pack
from ltdd.engine.finite import is_finite
from ltdd.engine.storage.files import fingerprint, read_json, read_sealed_tensors
from ltdd.engine.storage.stage_store import read_stage
from ltdd.engine.watching.events import EVENTS
from ltdd.errors import UserError
from ltdd.results.distilled_set import DATA, FKD, DistilledSet, load
from ltdd.stages.label_calibration import label_shift


@dataclass(frozen=True)
class Finding:
    """Finding about one file.

    Attributes:
        name: path below the run folder.
        problem: what is wrong, None if nothing is.
        note: something worth knowing that is not wrong.
    """

    name: str
    problem: str | None
    note: str = ""


def verify(folder: Path) -> list[Finding]:
    """Check every file of a run folder, finished or not; nothing is changed.

    Checked are hashes, formats, shapes, types, finite values, and that configuration, split,
    distilled set and recovered images belong together.

    Raises:
        UserError: the folder is not that of a run.
    """
    if not (folder / "run.json").exists() and not (folder / "manifest.json").exists():
        raise UserError(f"expected the folder of a run at {folder}, got no run.json there")
    return list(_findings(folder))


def _findings(folder: Path) -> Iterator[Finding]:
    run: dict[str, Any] | None = None
    if (folder / "run.json").exists():
        run, finding = _tried("run.json", lambda: _run(folder))
        yield finding
    distilled: DistilledSet | None = None
    if (folder / "manifest.json").exists():
        distilled, finding = _tried("data.safetensors, manifest.json", lambda: _set(folder, run))
        yield finding
    else:
        yield Finding("manifest.json", None, "not there yet; the same command finishes the run")
    stages = folder / "stages"
    yield from _each(folder, stages.glob("*.safetensors"), lambda path: _stage(path, distilled))
    yield from _each(folder, stages.glob("*.checkpoint"), read_sealed_tensors)
    for path in sorted(stages.glob("*")):
        if path.suffix not in (".safetensors", ".checkpoint"):
            yield Finding(f"stages/{path.name}", None, "not a file of this program")
    if distilled is not None and stages.is_dir():
        yield _tried("soft labels", lambda: _labels(folder, distilled))[1]
    for pattern in ("results.json", "evaluations/*.json"):
        yield from _each(folder, folder.glob(pattern), _results)
    for pattern in (EVENTS, f"evaluations/*/{EVENTS}"):
        yield from _each(folder, folder.glob(pattern), _events)


def _each(
    folder: Path, paths: Iterable[Path], check: Callable[[Path], object]
) -> Iterator[Finding]:
    for path in sorted(paths):
        yield _tried(path.relative_to(folder).as_posix(), functools.partial(check, path))[1]


def _tried(name: str, check: Callable[[], Any]) -> tuple[Any, Finding]:
    try:
        return check(), Finding(name, None)
    except UserError as error:
        return None, Finding(name, str(error))
    except OSError as error:
        return None, Finding(name, error.strerror or str(error))


def _run(folder: Path) -> dict[str, Any]:
    run = read_json(folder / "run.json")
    if run.get("fingerprint") != fingerprint([run.get("config"), run.get("split_sha256")]):
        raise UserError("configuration and split differ from their fingerprint")
    return run


def _set(folder: Path, run: dict[str, Any] | None) -> DistilledSet:
    distilled = load(folder)
    distilled.fkd_logits()
    manifest = distilled.manifest
    for name in ("config", "split_sha256") if run is not None else ():
        if run is not None and fingerprint(manifest.get(name)) != fingerprint(run.get(name)):
            raise UserError(f"{name} differs from the one in run.json")
    return distilled


def _stage(path: Path, distilled: DistilledSet | None) -> None:
    stored = read_stage(path)
    if path.stem.rpartition("-")[2] != stored.key[:16]:
        raise UserError("the name differs from the key inside")
    for name, tensor in stored.tensors.items():
        if not is_finite(tensor):
            raise UserError(f"expected finite values in {name!r}, got NaN or infinity")
    if distilled is None or not path.name.startswith("recovery-"):
        return
    if not torch.equal(to_uint8(stored.tensors["images"]), distilled.images):
        raise UserError("the recovered images are not those of data.safetensors")


def _labels(folder: Path, distilled: DistilledSet) -> None:
    """Check that published labels are those of a stage, as far as stages are there."""
    manifest = distilled.manifest
    settings = DistillConfig.from_dict(manifest["config"]).relabeling
    tau = float(manifest["student_training"].get("calibration_tau", 0.0))
    shift = label_shift(tau, manifest["counts"])
    found: dict[int, list[Tensor]] = {2: [], 3: []}  # static logits, logits of every view
    stage = "recovery" if settings.labels == "learned" else "relabeling"
    for path in sorted((folder / "stages").glob(f"{stage}-*.safetensors")):
        with contextlib.suppress(UserError):  # damaged, which is said of the file itself
            logits = read_stage(path).tensors.get("logits")
            if logits is not None and logits.ndim in found:
                found[logits.ndim].append(logits)
    table = distilled.fkd_logits()
    _one_of(distilled.logits, [pack(logits - shift, settings)[:] for logits in found[2]], DATA)
    if table is not None:
        raw = dataclasses.replace(table, shift=None)
        _one_of(raw[:], [pack(logits, settings)[:] for logits in found[3]], FKD)


def _one_of(published: Tensor, stored: list[Tensor], file: str) -> None:
    if stored and not any(torch.equal(published, logits) for logits in stored):
        raise UserError(f"expected the labels of {file} in a stage, got only others")


def _results(path: Path) -> None:
    results = read_json(path)
    try:
        accuracy = results["student"]["accuracy"]["mean"]
        good = 0 <= float(accuracy) <= 1
    except (KeyError, TypeError, ValueError) as error:
        raise UserError("expected the accuracy of a student, got none") from error
    if not good:
        raise UserError(f"expected an accuracy between 0 and 1, got {accuracy}")


def _events(path: Path) -> None:
    # A killed run leaves half a line, which the next one ends and readers skip: only its start is
    # certain.
    for number, line in enumerate(path.read_bytes().splitlines(), 1):
        if not line.startswith(b'{"time": "'[: len(line)]):
            raise UserError(f"expected an event in line {number}, got something else")
