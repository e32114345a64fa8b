"""What students are compared with: the bound of all real images with the teacher's labels."""

import dataclasses
from pathlib import Path

from helpers.tiny_run import FINISHED, QUIET

from ltdd import pipeline
from ltdd.data.long_tailed_data import load_data
from ltdd.engine.storage.stage_store import read_stage


def test_all_real_images_are_shown_in_as_many_steps(tmp_path: Path) -> None:
    evaluation = dataclasses.replace(
        FINISHED.evaluation, epochs=32, batch_size=25, baselines=("all_real_soft",)
    )
    config = dataclasses.replace(FINISHED, evaluation=evaluation)
    results = pipeline.distill(config, tmp_path / "run", options=QUIET)
    assert results["baselines"]["all_real_soft"]["accuracy"]["n"] == 1
    count = len(load_data(config.data, config.imbalance_factor).train_labels)
    assert count > 300
    tables = [
        read_stage(path).tensors["logits"].shape
        for path in (tmp_path / "run/stages").glob("relabeling-*")
    ]
    # 20 images are one step an epoch; 25 and more of all images are a step each.
    steps = -(-count // 25)
    epochs = -(-32 // steps)
    assert (32, 20, 10) in tables
    assert (epochs, count, 10) in tables
    assert 32 <= epochs * steps < 32 + steps
