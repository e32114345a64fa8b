"""Every public function refuses what its docstring excludes, in one sentence.

For each function there are arguments that work, and rows that change some of them, with a part of
the message: so it is the change that is refused.
"""

from __future__ import annotations

import functools
import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import tiny_run
from helpers.public_methods import methods
from helpers.tiny_run import FINISHED
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

import ltdd
from ltdd.config import STAGES
from ltdd.errors import UserError
from ltdd.results.distilled_set import DistilledSet

Arguments = Mapping[str, Any]
Row = tuple[Arguments, str]

IMAGES = np.random.default_rng(0).integers(0, 256, (24, 3, 8, 8), dtype=np.uint8)
CLASSES = np.arange(24) % 3
ITEMS = TensorDataset(torch.from_numpy(IMAGES), torch.from_numpy(CLASSES))


class Endless(IterableDataset[Any]):
    """No length, no positions."""

    def __iter__(self) -> Any:
        return iter(ITEMS)


class Failing:
    """A data set whose files are gone."""

    def __len__(self) -> int:
        return 3

    def __getitem__(self, position: int) -> Any:
        raise FileNotFoundError(2, "No such file or directory", f"{position}.png")


class Shifting:
    """A data set with a random transform."""

    generator = np.random.default_rng(1)

    def __len__(self) -> int:
        return len(IMAGES)

    def __getitem__(self, position: int) -> Any:
        return np.roll(IMAGES[position, 0], self.generator.integers(8)), int(CLASSES[position])


class Named(list[Any]):
    """A data set that names its classes."""

    def __init__(self, classes: Any) -> None:
        super().__init__((IMAGES[n, 0], int(CLASSES[n])) for n in range(24))
        self.classes = classes


def labeled(labels: Any, images: Any = IMAGES[:, 0]) -> list[Any]:
    return list(zip(images, labels, strict=True))


def of_stage(name: str, **changes: Any) -> ltdd.DistillConfig:
    """Make the configuration of a stage, and with it that of a run."""
    return ltdd.DistillConfig(**{name: STAGES[name][0](**changes)})


def in_folder(place: Mapping[str, Path], value: Any) -> Any:
    """Put paths into texts."""
    return value.format(**place) if isinstance(value, str) else value


FUNCTIONS: dict[str, tuple[Callable[..., Any], Arguments]] = {
    "distill": (ltdd.distill, {"config": FINISHED, "out": "{run}", "options": tiny_run.QUIET}),
    "load": (ltdd.load, {"folder": "{published}"}),
    "train_student": (
        ltdd.train_student,
        {"folder": "{published}", "model": nn.Sequential(nn.Flatten(), nn.Linear(64, 10)),
         "quiet": True},
    ),
    "export": (ltdd.export, {"folder": "{published}", "format": "npz", "to": "{tmp}/new"}),
    "data.load_data": (ltdd.data.load_data, {"source": "digits"}),
    "data.from_tensors": (
        ltdd.data.from_tensors,
        {"train_images": IMAGES, "train_labels": CLASSES,
         "test_images": 255 - IMAGES, "test_labels": CLASSES},
    ),
    "data.from_datasets": (ltdd.data.from_datasets, {"train": ITEMS, "test": ITEMS}),
    "DistilledSet.loader": (
        lambda folder, **changes: ltdd.load(folder).loader(**changes),
        {"folder": "{published}", "batch_size": 4},
    ),
    "DistillConfig": (ltdd.DistillConfig, {}),
    "DistillConfig.from_dict": (ltdd.DistillConfig.from_dict, {"values": FINISHED.to_dict()}),
    "RunOptions": (ltdd.RunOptions, {}),
    **{
        forms[0].__name__: (functools.partial(of_stage, name), {})
        for name, forms in STAGES.items()
    },
}  # fmt: skip

FOLDERS: list[Row] = [
    ({"folder": None}, "expected folder as a path, got None"),
    ({"folder": ""}, "expected folder as a path, got ''"),
    ({"folder": b"runs"}, "expected folder as a path, got b'runs'"),
    ({"folder": "a\0b"}, "expected folder as a path, got 'a\\x00b' (embedded null byte)"),
    ({"folder": Path("a\0b")}, "expected folder as a path, got 'a\\x00b' (embedded null byte)"),
    ({"folder": "x" * 300}, "(File name too long)"),
    ({"folder": "{tmp}/missing"}, "got no manifest.json there"),
    ({"folder": "{tmp}/file"}, "got no manifest.json there"),
    ({"folder": "{tmp}/full"}, "got no manifest.json there"),
]
CUTS: list[Row] = [
    ({"imbalance_factor": 0.5}, "expected an imbalance factor >= 1, got 0.5"),
    ({"imbalance_factor": float("nan")}, "expected imbalance_factor as a finite number or None"),
    ({"imbalance_factor": "10"}, "expected imbalance_factor as a finite number or None, got '10'"),
    ({"imbalance_factor": True}, "expected imbalance_factor as a finite number or None, got True"),
    ({"image_size": 7}, "expected an image size between 8 and 224, got 7"),
    ({"image_size": 8.0}, "expected image_size as a whole number or None, got 8.0"),
    ({"image_size": True}, "expected image_size as a whole number or None, got True"),
    ({"image_size": (8, 8)}, "expected image_size as a whole number or None, got a tuple"),
]
QUIET: Row = ({"quiet": 1}, "expected quiet as True or False, got 1")
NAMES: Row = ({"class_names": "abc"}, "expected class_names as a list or None, got 'abc'")

REFUSED_BY_USER: dict[str, list[Row]] = {
    "distill": [
        ({"options": {"quiet": True}}, "expected options as a RunOptions or None, got a dict"),
        ({"config": FINISHED.to_dict()}, "as a DistillConfig, got a dict; make one of a dict with"),
        ({"config": None}, "expected config as a DistillConfig, got None"),
        ({"config": ltdd.DistillConfig}, "got the class DistillConfig"),
        ({"out": None}, "expected out as a path, got None"),
        ({"out": ""}, "expected out as a path, got ''"),
        ({"out": b"run"}, "expected out as a path, got b'run'"),
        ({"out": "a\0b"}, "(embedded null byte)"),
        ({"out": "x" * 300}, "(File name too long)"),
        ({"out": "{tmp}/file"}, "out: expected a folder, got the file"),
        ({"out": "{tmp}/file/run"}, "out: cannot create"),
        ({"out": "{tmp}/full"}, "got one that holds 'note.txt'"),
        ({"data": ITEMS}, "got a TensorDataset; make it with ltdd.data.from_datasets"),
        ({"data": (IMAGES, CLASSES)}, "as a LongTailedData or None, got a tuple"),
        ({"data": "cifar10"}, "expected data as a LongTailedData or None, got 'cifar10'"),
    ],
    "RunOptions": [
        QUIET,
        ({"preset": 3}, "expected preset as text or None, got 3"),
        ({"checkpoint_seconds": "60"}, "expected checkpoint_seconds as a finite number, got '60'"),
        ({"checkpoint_seconds": float("nan")}, "as a finite number, got nan"),
        ({"checkpoint_seconds": -1}, "checkpoint_seconds: expected 0 or more"),
        ({"on_bad_image": "ignore"}, "expected on_bad_image as 'fail', 'skip', got 'ignore'"),
        ({"store": 3}, "expected store as a path or None, got 3"),
        ({"sinks": 3}, "expected sinks as a Callable, got 3"),
    ],
    "load": [
        *FOLDERS, NAMES,
        ({"class_names": ["a"]}, "expected class 0 to be 'a', the set has '0'"),
        ({"class_names": list("9876543210")}, "expected class 0 to be '9', the set has '0'"),
    ],
    "train_student": [
        *FOLDERS, QUIET,
        ({"model": None}, "expected model as an nn.Module, got None"),
        ({"labels": "soft"}, "expected labels as 'static', 'fkd', 'hard' or None, got 'soft'"),
        ({"test": IMAGES}, "expected test as (images, labels), got a uint8 ndarray"),
        ({"test": (IMAGES, CLASSES)}, "expected test images (N, 1, 8, 8)"),
        ({"device": None}, "expected device as 'auto', 'cpu', 'cuda', got None"),
        ({"device": "gpu"}, "expected device as 'auto', 'cpu', 'cuda', got 'gpu'"),
        ({"precision": "fp8"}, "expected precision as 'auto', 'bf16', 'fp32', got 'fp8'"),
        ({"momentum": "high"}, "evaluation.momentum"),
        ({"epochs": True}, "evaluation.epochs"),
        ({"optimiser": "sgd"}, "optimiser"),
        ({"full_epochs": 3}, "expected no full_epochs, which only a run reads"),
    ],
    "export": [
        *FOLDERS,
        ({"format": "zip"}, "expected a format among imagefolder, npz"),
        ({"format": None}, "expected format as text, got None"),
        ({"to": None}, "expected to as a path, got None"),
        ({"to": ""}, "expected to as a path, got ''"),
        ({"to": "{tmp}/full"}, "got one that holds data"),
        ({"to": "{tmp}/file"}, "file"),
        ({"to": "{tmp}/file/new"}, "cannot write"),
        ({"to": "{published}"}, "got one that holds data"),
        ({"license": "cc by\n"}, "expected a licence such as cc-by-4.0"),
        ({"license": 4}, "expected license as text or None, got 4"),
    ],
    "data.load_data": [
        *CUTS, QUIET,
        ({"source": None}, "expected source as text, got None"),
        ({"source": ITEMS}, "expected source as text, got a TensorDataset"),
        ({"source": ""}, "digits"),
        ({"source": "nothing:here"}, "digits"),
        ({"source": "imagefolder:{tmp}/missing"}, "missing"),
        ({"source": "npz:{tmp}/file"}, "file"),
        ({"on_bad_image": None}, "expected on_bad_image as 'fail', 'skip', got None"),
    ],
    "data.from_tensors": [
        *CUTS, NAMES,
        ({"train_images": ITEMS}, "got a TensorDataset; a data set goes to from_datasets"),
        ({"train_images": None}, "train_images as a tensor or an array, got None"),
        ({"train_images": "images"}, "train_images as a tensor or an array, got 'images'"),
        ({"train_images": [IMAGES[0], IMAGES[1, :, :4]]}, "train_images as a tensor or an array"),
        ({"train_images": IMAGES.astype(np.int64)}, "got pixels of type int64"),
        ({"train_images": IMAGES.astype(np.float32)}, "from 0 to 255, not in [0, 1]"),
        ({"train_images": IMAGES / 100 - 1}, "not in [0, 1]"),
        ({"train_images": IMAGES > 9}, "got pixels of type bool"),
        ({"train_images": IMAGES // 200}, "expected train images from 0 to 255, or floating point"),
        ({"train_images": IMAGES / 255 / 255}, "brighter than 1 of 255; give 0 and 1 as float"),
        ({"test_images": IMAGES // 200}, "expected test images from 0 to 255, or floating point"),
        ({"train_images": IMAGES + 1j}, "got pixels of type complex128"),
        ({"train_images": np.ma.masked_array(IMAGES)}, "as a tensor or an array without a mask"),
        ({"train_images": torch.from_numpy(IMAGES).to_sparse()}, "with plain values"),
        ({"train_images": torch.from_numpy(IMAGES).to("meta")}, "with plain values"),
        ({"train_images": IMAGES[:0]}, "expected train_images of shape"),
        ({"train_images": IMAGES[:, :2]}, "expected train_images with 1 or 3 channels"),
        ({"train_labels": CLASSES[:5]}, "one label for each of the 24 train_images, got 5"),
        ({"train_labels": CLASSES.astype(str)}, "train_labels as whole numbers"),
        ({"train_labels": CLASSES / 1}, "train_labels as whole numbers"),
        ({"train_labels": CLASSES == 1}, "train_labels as whole numbers"),
        ({"train_labels": np.eye(3)[CLASSES]}, "got float64 (24, 3); of one row an image take"),
        ({"train_labels": CLASSES * 10**12}, "expected train_labels below"),
        ({"train_labels": CLASSES * 1000}, "number the classes from 0 without gaps"),
        ({"train_labels": None}, "train_labels as a tensor or an array, got None"),
        ({"test_labels": CLASSES + 1}, "expected test labels 0 to 2, got 3"),
        ({"class_names": ["a", "b"]}, "expected labels in 0..1, got 0..2"),
        ({"class_names": ["a", "b", "a"]}, "expected different class names"),
    ],
    "data.from_datasets": [
        *CUTS, NAMES,
        ({"train": None}, "expected train data with a length"),
        ({"train": DataLoader(ITEMS)}, "got a DataLoader; give its .dataset"),
        ({"train": Endless()}, "expected train data with a length"),
        ({"train": []}, "expected images in the train data, got none"),
        ({"train": {"image": 1}}, "got KeyError: 0 at 0"),
        ({"train": Failing()}, "got FileNotFoundError: [Errno 2]"),
        ({"train": [{"image": IMAGES[0], "label": 0}]}, "pairs in the train data, got a dict at 0"),
        ({"train": [(IMAGES[0, 0], 0, 1)]}, "pairs in the train data, got a tuple of 3 at 0"),
        ({"train": TensorDataset(torch.from_numpy(IMAGES))}, "got a tuple of 1 at 0"),
        ({"train": [(0, IMAGES[0])]}, "of shape (3, 8, 8); are image and class swapped?"),
        ({"train": labeled(["cat"] * 24)}, "a whole number, in the train data at 0, got 'cat'"),
        ({"train": labeled(CLASSES / 1)}, "a whole number, in the train data at 0, got"),
        ({"train": labeled(CLASSES == 1)}, "a whole number, in the train data at 0, got"),
        ({"train": labeled(torch.eye(3)[CLASSES])}, "got a float32 Tensor of shape (3,)"),
        ({"train": labeled(torch.eye(3).long()[CLASSES])}, "got a int64 Tensor of shape (3,)"),
        ({"train": labeled(CLASSES == 1, torch.rand(24, 8, 8))}, "a whole number"),
        ({"train": labeled(torch.from_numpy(CLASSES == 1))}, "got tensor(False)"),
        ({"train": labeled([None] * 24)}, "a whole number, in the train data at 0, got None"),
        ({"train": labeled(CLASSES, IMAGES[:, 0] * 1.0)}, "not in [0, 1]"),
        ({"train": labeled(CLASSES, IMAGES[:, 0].astype(int))}, "pixels of type int64"),
        ({"train": labeled(CLASSES, ["a.png"] * 24)}, "a str, not an image, array or tensor"),
        ({"train": Shifting()}, "differ at 0; leave out random transforms"),
        ({"train": Named("abc")}, "expected classes of a data set as a list, got 'abc'"),
        (
            {"train": Named(["a", "b", "c"]), "test": Named(["a", "c", "b"])},
            "expected the same classes in both data sets",
        ),
    ],
    "DistilledSet.loader": [
        ({"batch_size": 0}, "loader: expected batch_size 1 or more, got 0"),
        ({"batch_size": 2.5}, "loader: expected batch_size as a whole number, got 2.5"),
        ({"batch_size": None}, "loader: expected batch_size as a whole number, got None"),
        ({"batch_size": True}, "loader: expected batch_size as a whole number, got True"),
        ({"shuffle": "no"}, "loader: expected shuffle as True or False, got 'no'"),
        ({"seed": -1}, "loader: expected seed from 0 to 2^63 - 1, got -1"),
        ({"seed": 2**64}, "loader: expected seed from 0 to 2^63 - 1"),
        ({"seed": None}, "loader: expected seed as a whole number, got None"),
    ],
    "DistillConfig": [
        ({"data": None}, "data"), ({"ipc": 0}, "ipc"), ({"ipc": "10"}, "ipc"),
        ({"ipc": 2.5}, "ipc"), ({"ipc": True}, "ipc"), ({"ipc": None}, "ipc"),
        ({"imbalance_factor": 0.5}, "imbalance_factor"),
        ({"imbalance_factor": float("inf")}, "imbalance_factor"),
        ({"imbalance_factor": "10"}, "imbalance_factor"),
        ({"image_size": 4}, "image_size"), ({"horizontal_flip": 1}, "horizontal_flip"),
        ({"seed": -1}, "seed"), ({"backend": "triton"}, "backend"), ({"device": "tpu"}, "device"),
        ({"precision": "fp8"}, "precision"), ({"deterministic": "yes"}, "deterministic"),
    ],
    "DistillConfig.from_dict": [
        ({"values": None}, "config"), ({"values": [("ipc", 3)]}, "config"),
        ({"values": {"images": 3}}, "images"), ({"values": {"experts": 3}}, "experts"),
        ({"values": {"experts": {"epoch": 3}}}, "epoch"),
        ({"values": {"ipc": "3"}}, "ipc"),
    ],
    "ExpertsConfig": [
        ({"observer": 18}, "experts.observer"), ({"epochs": 0}, "experts.epochs"),
        ({"batch_size": 1}, "experts.batch_size"), ({"loss": "focal"}, "experts.loss"),
        ({"extra_observers": "resnet18"}, "experts.extra_observers"),
        ({"learning_rate": float("nan")}, "experts.learning_rate"),
    ],
    "StatisticsConfig": [
        ({"batch_size": 0}, "statistics.batch_size"),
        ({"class_target": "biased"}, "statistics.class_target"),
    ],
    "InitializationConfig": [
        ({"method": "zeros"}, "initialization.method"),
        ({"crop_min_scale": 2}, "initialization.crop_min_scale"),
    ],
    "RecoveryConfig": [
        ({"iterations": -1}, "recovery.iterations"), ({"max_batch": 0}, "recovery.max_batch"),
        ({"learning_rate": -0.1}, "recovery.learning_rate"),
    ],
    "RelabelingConfig": [
        ({"labels": "soft"}, "relabeling.labels"), ({"packing_top": 0}, "relabeling.packing_top"),
    ],
    "EvaluationConfig": [
        ({"epochs": 1.5}, "evaluation.epochs"), ({"ema_decay": 1}, "evaluation.ema_decay"),
        ({"baselines": ("none",)}, "evaluation.baselines"),
        ({"cutmix": 1}, "evaluation.cutmix"),
    ],
}  # fmt: skip


@pytest.fixture
def place(run: Path, published: Path, tmp_path: Path) -> dict[str, Path]:
    """Folders by name: a finished run to change, a set, and one with a file and a full folder."""
    (tmp_path / "file").write_text("text")
    (tmp_path / "full").mkdir()
    (tmp_path / "full/note.txt").write_text("text")
    return {"run": shutil.copytree(run, tmp_path / "run"), "published": published, "tmp": tmp_path}


def call(name: str, changes: Arguments, place: Mapping[str, Path]) -> Any:
    function, good = FUNCTIONS[name]
    return function(**{k: in_folder(place, v) for k, v in {**good, **changes}.items()})


@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions_take_the_arguments_that_rows_change(
    name: str, place: Mapping[str, Path]
) -> None:
    call(name, {}, place)


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [(name, *row) for name, rows in REFUSED_BY_USER.items() for row in rows],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_functions_refuse_in_one_sentence(
    name: str, changes: Arguments, message: str, place: Mapping[str, Path]
) -> None:
    before = snapshot(place["tmp"])
    with pytest.raises(UserError) as caught:
        call(name, changes, place)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert snapshot(place["tmp"]) == before or "new" in str(changes.get("out"))


def snapshot(folder: Path) -> dict[str, int]:
    return {str(p): p.stat().st_mtime_ns for p in folder.rglob("*") if p.is_file()}


def test_numbers_of_numpy_are_numbers() -> None:
    """They come out of a user's loop."""
    data = ltdd.data.from_tensors(
        IMAGES, CLASSES, 255 - IMAGES, CLASSES,
        imbalance_factor=np.float32(2), image_size=np.int64(8),
    )  # fmt: skip
    assert data.image_size == 8
    assert ltdd.data.load_data("digits", quiet=np.bool_(True)).num_classes == 10


@pytest.mark.parametrize("values", [{"ipc": np.int64(3)}, {"imbalance_factor": np.float64(3)}])
def test_a_configuration_of_numbers_of_numpy_is_the_same_or_refused(values: Arguments) -> None:
    plain = ltdd.DistillConfig(**{name: value.item() for name, value in values.items()})
    try:
        config = ltdd.DistillConfig(**values)
    except UserError as error:
        assert next(iter(values)) in str(error)  # noqa: PT017
        return
    assert json.dumps(config.to_dict()) == json.dumps(plain.to_dict())


def test_the_settings_of_the_program_around_change_no_bit(run: Path, tmp_path: Path) -> None:
    torch.set_default_device("meta")
    torch.set_default_dtype(torch.float64)
    try:
        with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
            ltdd.distill(FINISHED, tmp_path / "run", options=tiny_run.QUIET)
            distilled = ltdd.load(tmp_path / "run")
            ltdd.export(tmp_path / "run", "npz", tmp_path / "npz")
            loader = distilled.loader(6)
            batches = [loader.dataset[positions] for positions in loader.sampler]
            with pytest.raises(UserError):
                ltdd.load(tmp_path)
        assert torch.get_default_device().type == "meta"
        assert torch.get_default_dtype() == torch.float64
    finally:
        torch.set_default_device(None)
        torch.set_default_dtype(torch.float32)
    for name in ("data.safetensors", "fkd.safetensors"):
        assert (tmp_path / "run" / name).read_bytes() == (run / name).read_bytes()
    for ours, plain in zip(batches, ltdd.load(run).loader(6), strict=True):
        for mine, theirs in zip(ours, plain, strict=True):
            assert mine.dtype == theirs.dtype
            assert torch.equal(mine, theirs)


def test_missing_and_unknown_arguments_name_the_function() -> None:
    with pytest.raises(TypeError, match=r"^load: missing a required argument: 'folder'"):
        ltdd.load()  # type: ignore[call-arg]
    with pytest.raises(TypeError, match=r"^distill: got an unexpected keyword argument 'ipc'"):
        ltdd.distill(FINISHED, "run", ipc=3)  # type: ignore[call-arg]


def test_every_public_name_has_rows() -> None:
    """A new function comes with what it refuses."""
    names = set(ltdd.__all__) - {"__version__", "data"}
    names |= {f"data.{name}" for name in ltdd.data.__all__ if name != "LongTailedData"}
    names |= {forms[0].__name__ for forms in STAGES.values()} | methods(DistilledSet)
    assert names - {"DistilledSet.fkd_logits"} <= set(REFUSED_BY_USER)  # it has no arguments
    assert set(REFUSED_BY_USER) == set(FUNCTIONS)
