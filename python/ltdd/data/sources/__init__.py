"""One module per kind of ``--data``, each giving `ltdd.data.reading.image_source.Parts`."""

from __future__ import annotations

from ltdd.config import OnBadImage
from ltdd.data.reading.image_source import Parts
from ltdd.data.sources.spec import read_spec
from ltdd.errors import UserError

SOURCES = (
    "digits",
    "imagefolder:PATH",
    "list:TRAIN[,TEST][@ROOT]",
    "npz:FILE",
    "torchvision:NAME",
    "cifar10",
    "cifar100",
    "hf:NAME_OR_PATH",
)
IN_PYTHON = ("tensors", "datasets")
"""Sources that only the Python API can give."""


def open_source(spec: str, on_bad_image: OnBadImage) -> Parts:
    """List the images of a source; pixels are not decoded yet.

    Args:
        spec: as in `ltdd.data.long_tailed_data.load_data`.
        on_bad_image: ``skip`` leaves unreadable pictures out, ``fail`` lets decoding refuse them.

    Raises:
        UserError: the source is unknown or cannot be used.
    """
    kind, _, place = spec.partition(":")
    shape = next((s for s in SOURCES if s.partition(":")[0] == kind), None)
    if shape is None or (":" in shape) != (":" in spec):
        if spec in IN_PYTHON:
            raise UserError(
                f"expected data that a command can load, got {spec!r}: this run was made from data "
                "given in Python, so give them again there, as data="
            )
        raise UserError(f"expected data among {', '.join(SOURCES)}; got {spec!r}")
    if ":" in shape and not place:
        raise UserError(f"expected {shape}, got nothing behind {kind}:")
    options = read_spec(kind, place)
    # Each kind has its own libraries, which the others do not need.
    match kind:
        case "digits":
            from ltdd.data.sources.digits import digits

            return digits()
        case "imagefolder":
            from ltdd.data.sources.image_folder import image_folder

            return image_folder(options, on_bad_image)
        case "list":
            from ltdd.data.sources.image_list import image_list

            return image_list(options, on_bad_image)
        case "npz":
            from ltdd.data.sources.npz import npz

            return npz(options)
        case "hf":
            from ltdd.data.sources.hugging_face import hugging_face

            return hugging_face(options, on_bad_image)
        case _:
            from ltdd.data.sources.torchvision_set import torchvision_set

            return torchvision_set(place or kind, on_bad_image)
