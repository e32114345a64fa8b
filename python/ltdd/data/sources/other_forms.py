"""Places that hold no class folders but another form of data: refused with the source to give."""

from __future__ import annotations

from ltdd.data.reading.archives import SUFFIXES
from ltdd.data.reading.decoded_cache import cache_folder
from ltdd.data.reading.image_files import Folder
from ltdd.data.reading.litter import suffix_of
from ltdd.errors import UserError

# A file that only this set has -> what it is, and the source that reads the set.
_CIFAR10 = "cifar10 (torchvision:CIFAR10)"
_CIFAR100 = "cifar100 (torchvision:CIFAR100)"
_MNIST = ("MNIST's idx files", "torchvision:MNIST or another set of this form")
_PACKED = {
    "data_batch_1": ("CIFAR-10's Python pickles", _CIFAR10),
    "data_batch_1.bin": ("CIFAR-10's binary files", _CIFAR10),
    "data_batch_1.mat": ("CIFAR-10's Matlab files", _CIFAR10),
    "fine_label_names.txt": ("CIFAR-100's binary files", _CIFAR100),
    "train-images-idx3-ubyte": _MNIST,
    "train-images-idx3-ubyte.gz": _MNIST,
    "train_32x32.mat": ("SVHN's Matlab files", "torchvision:SVHN"),
    "train_X.bin": ("STL-10's binary files", "torchvision:STL10"),
}
_PICKLES_OF_CIFAR100 = {"meta", "train", "test"}

_READ_BY = {
    ".npz": "npz:",
    ".csv": "list:",
    ".tsv": "list:",
    ".txt": "list:",
    ".json": "list:",
    ".parquet": "hf:",
}


def refuse_other_forms(given: Folder) -> None:
    """Refuse a file, and files of sets that torchvision reads.

    Raises:
        UserError: names what there is, and the source that reads it.
    """
    if given.path.is_file():
        source = _READ_BY.get(suffix_of(given.path.name))
        hint = f"give {source}{given}" if source else f"archives are {', '.join(SUFFIXES)}"
        raise UserError(f"expected a folder at {given}, got a file; {hint}")
    for folder in (given, *given.folders):
        found = [_PACKED[name] for name in folder.files if name in _PACKED]
        if set(folder.files) >= _PICKLES_OF_CIFAR100:
            found.append(("CIFAR-100's Python pickles", _CIFAR100))
        for what, source in found:
            raise UserError(
                f"expected folders of images in {folder}, got {what}; give {source}, which takes "
                f"them from {cache_folder()} (LTDD_DATA) or downloads them"
            )
    inside = [name for name in given.files if name.lower().endswith(SUFFIXES)]
    if inside and not given.folders:
        raise UserError(
            f"expected one folder per class in {given}, got no folder but {inside[0]}; unpack it "
            "first"
        )
