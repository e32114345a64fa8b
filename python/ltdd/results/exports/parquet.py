"""A Parquet file with the features that Hugging Face ``datasets`` expects."""

from __future__ import annotations

import json
from pathlib import Path

from ltdd.engine.storage.files import write_bytes
from ltdd.errors import UserError
from ltdd.results.distilled_set import DistilledSet
from ltdd.results.exports.png import encode_png

FILES = """\
`data/train-00000-of-00001.parquet`: `image` (PNG, lossless), `label` and `logits` (K float32), in
the set's order."""
LOAD = """\
import json

import torch
from datasets import load_dataset
from torchvision.transforms.functional import pil_to_tensor

info = json.load(open("info.json", encoding="utf-8"))
rows = load_dataset("parquet", data_files="data/*.parquet", split="train")
images = torch.stack([pil_to_tensor(image) for image in rows["image"]])
labels = torch.tensor(rows["label"][:])
logits = torch.tensor(rows["logits"][:])
mean, std = (torch.tensor(info["normalization"][name]) for name in ("mean", "std"))"""


def write(distilled: DistilledSet, folder: Path) -> None:
    """Write the file.

    Raises:
        UserError: pyarrow is missing.
    """
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError as error:
        raise UserError(
            "expected the package pyarrow for --format parquet, got none; "
            "install it with: pip install 'ltdd[hf]'"
        ) from error
    features = {
        "image": {"_type": "Image"},
        "label": {"_type": "ClassLabel", "names": list(distilled.class_names)},
        "logits": {"_type": "Sequence", "feature": {"_type": "Value", "dtype": "float32"}},
    }
    digits = len(str(len(distilled) - 1))
    schema = pa.schema(
        {
            "image": pa.struct({"bytes": pa.binary(), "path": pa.string()}),
            "label": pa.int64(),
            "logits": pa.list_(pa.float32()),
        },
        metadata={"huggingface": json.dumps({"info": {"features": features}})},
    )
    images = [
        {"bytes": encode_png(image), "path": f"{number:0{digits}}.png"}
        for number, image in enumerate(distilled.images)
    ]
    columns = [images, distilled.labels.numpy(), list(distilled.logits.numpy())]
    arrays = [pa.array(c, field.type) for c, field in zip(columns, schema, strict=True)]
    sink = pa.BufferOutputStream()
    # Small groups of rows let viewers show the first images without reading the rest.
    pq.write_table(pa.Table.from_arrays(arrays, schema=schema), sink, row_group_size=1000)
    write_bytes(folder / "data/train-00000-of-00001.parquet", sink.getvalue().to_pybytes())
