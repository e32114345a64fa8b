"""Published labels are those of the stage, and students of the run learn from them."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from ltdd.config import DistillConfig
from ltdd.data.packed_logits import pack
from ltdd.engine.storage.files import new_folder, read_json, remove_leftovers
from ltdd.engine.storage.stage_store import StageStore, read_stage
from ltdd.results.distilled_set import load
from ltdd.results.verify import verify


def stages(folder: Path) -> dict[int, Path]:
    """Return the files of the relabeling stage: 2, static logits; 3, those of every view."""
    files = (folder / "stages").glob("relabeling-*.safetensors")
    return {read_stage(path).tensors["logits"].ndim: path for path in files}


def test_the_run_publishes_packed_labels_and_their_bytes(run: Path) -> None:
    distilled, results = load(run), read_json(run / "results.json")
    settings = DistillConfig.from_dict(distilled.manifest["config"]).relabeling
    table = distilled.fkd_logits()
    assert table is not None
    assert table.packing == "topk"
    for dimensions, published in ((2, distilled.logits), (3, table[:])):
        full = read_stage(stages(run)[dimensions]).tensors["logits"]
        assert torch.equal(pack(full, settings)[:], published)
        assert not torch.equal(full.float(), published)
    # 4 values of 2 bytes, their classes and the mean of the others, a row
    row = 4 * (2 + 1) + 2
    assert results["label_bytes"] == {"static": 20 * row, "fkd": 2 * 20 * row}
    assert results["bytes"]["labels"] == 3 * 20 * row


@pytest.mark.parametrize(("dimensions", "file"), [(2, "data"), (3, "fkd")])
def test_verify_finds_labels_of_another_teacher(
    run: Path, tmp_path: Path, dimensions: int, file: str
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(run, folder)
    assert all(finding.problem is None for finding in verify(folder))
    stored = read_stage(stages(folder)[dimensions])
    other = {"logits": -stored.tensors["logits"]}
    StageStore(folder).put("relabeling", stored.key, other, stored.meta)
    (bad,) = [finding for finding in verify(folder) if finding.problem]
    assert bad.name == "soft labels"
    assert bad.problem is not None
    assert f"expected the labels of {file}.safetensors in a stage" in bad.problem


def test_a_killed_export_is_swept_up(tmp_path: Path) -> None:
    with new_folder(tmp_path / "out") as temporary:
        (temporary / "file").write_text("half")
        shutil.copytree(temporary, tmp_path / ".out.1.tmp")
    assert (tmp_path / "out/file").read_text() == "half"
    remove_leftovers(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
