"""The distilled set on disk: ``data.safetensors`` and the ``manifest.json`` that explains it."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from ltdd import __version__
from ltdd.data.image_spec import ImageSet, Normalization
from ltdd.data.packed_logits import PackedLogits
from ltdd.engine.finite import is_finite
from ltdd.engine.machine.surroundings import user_path
from ltdd.engine.public import public
from ltdd.engine.storage.files import (
    file_sha256,
    fingerprint,
    read_json,
    read_tensors,
    write_json,
    write_tensors,
)
from ltdd.errors import UserError

DATA, MANIFEST, RESULTS = "data.safetensors", "manifest.json", "results.json"
FKD = "fkd.safetensors"
"""Logits of every view of the students' training, where a run has them."""
_FORMAT, _FORMAT_VERSION = "ltdd-distilled-set", 2
_SEAL = "manifest_sha256"


class Origin(NamedTuple):
    """Facts about the real images that a distilled set carries.

    Attributes:
        class_names: K different names in label order.
        counts: real training images of each class.
        split_sha256: hash of the training split.
        normalization: of the images that the teacher was trained on.
    """

    class_names: tuple[str, ...]
    counts: tuple[int, ...]
    split_sha256: str
    normalization: Normalization


@dataclass(frozen=True)
class DistilledSet:
    """A distilled image set, as ``load`` returns it.

    Args:
        images: uint8 (M, C, H, W), M = ipc * K.
        labels: int64 (M,), positions in ``class_names``.
        logits: float32 (M, K), the teacher's answer to each un-augmented image, or what recovery
            learned for it (`student_training.labels` of the manifest), unpacked.
        class_names: K names in label order.
        normalization: what the teacher saw and a student should see.
        manifest: everything else known about the set (split hash, configuration, versions, ...).
        results: accuracies of students trained on the set, None before they are evaluated.
        root: the folder it was read from.

    Example:
        >>> import ltdd
        >>> distilled = ltdd.load("runs/demo")                       # doctest: +SKIP
        >>> for images, labels, logits in distilled.loader(25):      # doctest: +SKIP
        ...     loss = torch.nn.functional.mse_loss(student(images), logits)
    """

    images: Tensor
    labels: Tensor
    logits: Tensor
    class_names: tuple[str, ...]
    normalization: Normalization
    manifest: dict[str, Any]
    results: dict[str, Any] | None
    root: Path

    def __len__(self) -> int:
        return len(self.labels)

    @public()
    def fkd_logits(self) -> PackedLogits | None:
        """Read the logits (epochs, M, K) of every view; None if the set has only static ones.

        Where students are shown f^2 images of each stored one, M counts these.

        Raises:
            UserError: the file does not belong to this set.
        """
        if FKD not in self.manifest["files"]:
            return None
        tensors, _ = read_tensors(self.root / FKD)
        table = PackedLogits.from_tensors("logits", tensors, len(self.class_names))
        shown = len(self) * int(self.manifest["student_training"].get("decode", 1)) ** 2
        if len(table.shape) != 3 or table.shape[1] != shown:
            raise UserError(
                f"expected logits (epochs, {shown}, {len(self.class_names)}) in "
                f"{self.root / FKD}, got {tuple(table.shape)}"
            )
        return table

    @public()
    def loader(
        self, batch_size: int, shuffle: bool = True, seed: int = 0
    ) -> DataLoader[tuple[Tensor, Tensor, Tensor]]:
        """Return a loader of (images, labels, logits) batches, without augmentation.

        Args:
            batch_size: images per batch, 1 or more; the last batch may be smaller.
            shuffle: draw a new order every epoch.
            seed: of the orders; equal seeds give equal epochs.

        Returns:
            Batches of images float32 (N, C, H, W) normalised by ``normalization``, labels int64
            (N,) and logits float32 (N, K).

        Raises:
            UserError: an argument is out of range.
        """
        if batch_size < 1:
            raise UserError(f"loader: expected batch_size 1 or more, got {batch_size}")
        if not 0 <= seed < 2**63:
            raise UserError(f"loader: expected seed from 0 to 2^63 - 1, got {seed}")
        # Batches are indexed as a whole: one gather instead of one call per image.
        return DataLoader(
            _Batches(self),
            sampler=_Order(len(self), batch_size, seed if shuffle else None),
            batch_size=None,
        )


class _Order(Sampler[list[int]]):
    """Batches of positions. torch's own samplers stop in programs with another default device."""

    def __init__(self, count: int, batch_size: int, seed: int | None) -> None:
        self._count, self._batch_size = count, batch_size
        self._generator = None if seed is None else torch.Generator().manual_seed(seed)

    def __len__(self) -> int:
        return -(-self._count // self._batch_size)

    def __iter__(self) -> Iterator[list[int]]:
        order = torch.arange(self._count, device="cpu")
        if self._generator is not None:
            order = torch.randperm(self._count, generator=self._generator, device="cpu")
        yield from (batch.tolist() for batch in order.split(self._batch_size))


class _Batches(Dataset[tuple[Tensor, Tensor, Tensor]]):
    """A distilled set indexed by lists of positions, with normalised images."""

    def __init__(self, distilled: DistilledSet) -> None:
        self._set = distilled
        self._mean = torch.tensor(distilled.normalization.mean).view(-1, 1, 1)
        self._std = torch.tensor(distilled.normalization.std).view(-1, 1, 1)

    def __len__(self) -> int:
        return len(self._set)

    def __getitem__(self, positions: list[int]) -> tuple[Tensor, Tensor, Tensor]:
        images = (self._set.images[positions].float() / 255 - self._mean) / self._std
        return images, self._set.labels[positions], self._set.logits[positions]


def save_distilled(
    out: Path,
    shown: ImageSet,
    logits: Tensor | PackedLogits,
    origin: Origin,
    config: Mapping[str, Any],
    student_training: Mapping[str, Any],
    views: PackedLogits | None = None,
) -> dict[str, Any]:
    """Write ``data.safetensors`` and ``manifest.json``; the folder can be published as it is.

    Args:
        out: the run folder.
        shown: images and labels.
        logits: (M, K), static logits; a float32 tensor is stored as it is.
        origin: what is said about the real images.
        config: the run's configuration.
        student_training: how to train on the set (architecture, optimizer, augmentation, labels).
        views: (epochs, M, K), teacher logits of every view.

    Returns:
        The manifest.

    Raises:
        UserError: the parts do not fit together, or the folder cannot be written.
    """
    images, labels = shown
    if isinstance(logits, Tensor):
        logits = PackedLogits(logits, logits.shape[-1])
    _check(shown, logits[:], origin.class_names, origin.normalization)
    tensors = {"images": images, "labels": labels, **logits.tensors("logits")}
    write_tensors(out / DATA, tensors, {})
    soft_labels, files = {"static": _describe_labels(logits)}, [DATA]
    if views is not None:
        write_tensors(out / FKD, views.tensors("logits"), {})
        soft_labels["fkd"] = _describe_labels(views)
        files.append(FKD)
    mean, std = origin.normalization
    learned = student_training.get("labels") == "learned"
    source = "learned with the images" if learned else "teacher, un-augmented image"
    manifest: dict[str, Any] = {
        "format": _FORMAT,
        "format_version": _FORMAT_VERSION,
        "class_names": list(origin.class_names),
        "counts": list(origin.counts),
        "split_sha256": origin.split_sha256,
        "normalization": {"mean": list(mean), "std": list(std)},
        "tensors": {
            "images": _describe(images, "M C H W, 0..255"),
            "labels": _describe(labels, "M, position in class_names"),
            "logits": _describe(logits.values, f"M K, {source}"),
        },
        "soft_labels": soft_labels,
        "student_training": dict(student_training),
        "config": dict(config),
        "versions": {
            "ltdd": __version__,
            "torch": str(torch.__version__),
            "python": ".".join(str(part) for part in sys.version_info[:3]),
        },
        "files": {name: _describe_file(out, name) for name in files},
    }
    return _write_manifest(out, manifest)


def _write_manifest(out: Path, manifest: Mapping[str, Any]) -> dict[str, Any]:
    content = {name: value for name, value in manifest.items() if name != _SEAL}
    sealed = content | {_SEAL: fingerprint(content)}
    write_json(out / MANIFEST, sealed)
    return sealed


def record_files(out: Path, names: Sequence[str]) -> None:
    """Put the size and SHA-256 of files that were written or changed later into the manifest."""
    manifest = read_json(out / MANIFEST)
    manifest["files"] = manifest["files"] | {name: _describe_file(out, name) for name in names}
    _write_manifest(out, manifest)


def _describe(tensor: Tensor, layout: str) -> dict[str, Any]:
    dtype = str(tensor.dtype).removeprefix("torch.")
    return {"dtype": dtype, "shape": list(tensor.shape), "layout": layout}


def _describe_labels(logits: PackedLogits) -> dict[str, Any]:
    return {"shape": list(logits.shape), "packing": logits.packing, "bytes": logits.nbytes}


def _describe_file(out: Path, name: str) -> dict[str, Any]:
    return {"bytes": (out / name).stat().st_size, "sha256": file_sha256(out / name)}


def read_manifest(folder: Path) -> dict[str, Any]:
    """Return the manifest of a distilled set, without checking the files it lists.

    Raises:
        UserError: no distilled set is there, or one of another format.
    """
    if not (folder / MANIFEST).is_file():
        raise UserError(f"expected a distilled set in {folder}, got no {MANIFEST} there")
    manifest = read_json(folder / MANIFEST)
    if (manifest.get("format"), manifest.get("format_version")) != (_FORMAT, _FORMAT_VERSION):
        found = f"{manifest.get('format')!r} version {manifest.get('format_version')!r}"
        raise UserError(
            f"expected format {_FORMAT!r} version {_FORMAT_VERSION} in {folder}, got {found}"
        )
    return manifest


@public()
def load(folder: str | Path, class_names: Sequence[str] | None = None) -> DistilledSet:
    """Read a distilled set and check every file against its manifest.

    Args:
        folder: a run folder.
        class_names: the class order the caller's own data use; another order in the set is refused.

    Returns:
        The set, on the CPU.

    Raises:
        UserError: no finished set there, a file that is missing or differs from its SHA-256, parts
            that do not fit together, or another class order.
    """
    root = user_path(folder)
    manifest = read_manifest(root)
    try:
        _check_files(root, manifest["files"])
        names = tuple(str(name) for name in manifest["class_names"])
        stored = manifest["normalization"]
        mean, std = (tuple(float(x) for x in stored[key]) for key in ("mean", "std"))
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{root / MANIFEST} is incomplete: {error!r}") from error
    if class_names is not None and tuple(class_names) != names:
        position, (wanted, found) = _first_difference(class_names, names)
        raise UserError(f"expected class {position} to be {wanted!r}, the set has {found!r}")
    tensors, _ = read_tensors(root / DATA)
    missing = sorted({"images", "labels", "logits"} - set(tensors))
    if missing:
        raise UserError(f"expected a tensor {missing[0]!r} in {root / DATA}, got none")
    images, labels = tensors["images"], tensors["labels"]
    logits = PackedLogits.from_tensors("logits", tensors, len(names))[:]
    normalization = Normalization(mean, std)
    _check(ImageSet(images, labels), logits, names, normalization)
    _check_seal(root, manifest)
    results = read_json(root / RESULTS) if (root / RESULTS).exists() else None
    return DistilledSet(images, labels, logits, names, normalization, manifest, results, root)


def _first_difference(
    wanted: Sequence[str], found: Sequence[str]
) -> tuple[int, tuple[str | None, str | None]]:
    def pairs() -> Iterator[tuple[str | None, str | None]]:
        for i in range(max(len(wanted), len(found))):
            yield wanted[i] if i < len(wanted) else None, found[i] if i < len(found) else None

    return next((i, pair) for i, pair in enumerate(pairs()) if pair[0] != pair[1])


def _check_files(root: Path, files: Mapping[str, Mapping[str, Any]]) -> None:
    if DATA not in files:
        raise UserError(f"expected {DATA} among the files of {root / MANIFEST}, got none")
    for name, entry in files.items():
        # A manifest from elsewhere must not make us read outside its own folder.
        if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
            raise UserError(f"expected file names inside {root}, got {name!r}")
        if not (root / name).is_file():
            raise UserError(f"expected the file {root / name}, which the manifest lists")
        if _describe_file(root, name) != {"bytes": entry["bytes"], "sha256": entry["sha256"]}:
            raise UserError(
                f"{root / name} differs from its SHA-256 in {MANIFEST}; it is damaged or "
                "was changed after the run"
            )


def _check_seal(root: Path, manifest: Mapping[str, Any]) -> None:
    content = {name: value for name, value in manifest.items() if name != _SEAL}
    try:
        intact = manifest.get(_SEAL) == fingerprint(content)
    except ValueError:  # NaN, which JSON has not and we do not write
        intact = False
    if not intact:
        raise UserError(f"{root / MANIFEST} differs from its own SHA-256; it is damaged")


def _check(
    shown: ImageSet, logits: Tensor, class_names: tuple[str, ...], normalization: Normalization
) -> None:
    """Check shapes, types and ranges of a distilled set, when it is written and when it is read."""
    images, labels = shown
    classes, count = len(class_names), len(images)
    if len(set(class_names)) != classes:
        raise UserError("distilled set: expected different class names, got one twice")
    if images.dtype != torch.uint8 or images.ndim != 4 or count == 0:
        raise UserError(
            "distilled set: expected images uint8 (M, C, H, W) with M > 0, "
            f"got {images.dtype} {tuple(images.shape)}"
        )
    if labels.dtype != torch.int64 or labels.shape != (count,):
        raise UserError(
            f"distilled set: expected labels int64 ({count},), "
            f"got {labels.dtype} {tuple(labels.shape)}"
        )
    if not 0 <= int(labels.min()) <= int(labels.max()) < classes:
        raise UserError(
            f"distilled set: expected labels from 0 to {classes - 1}, "
            f"got {int(labels.min())} to {int(labels.max())}"
        )
    if logits.dtype != torch.float32 or logits.shape != (count, classes):
        raise UserError(
            f"distilled set: expected logits float32 ({count}, {classes}), "
            f"got {logits.dtype} {tuple(logits.shape)}"
        )
    if not is_finite(logits):
        raise UserError("distilled set: expected finite logits, got NaN or infinity")
    if not len(normalization.mean) == len(normalization.std) == images.shape[1]:
        raise UserError(
            f"distilled set: expected a mean and a std for each of {images.shape[1]} channels, "
            f"got {normalization}"
        )
    if not all(value > 0 for value in normalization.std):
        raise UserError(f"distilled set: expected positive std, got {normalization.std}")
