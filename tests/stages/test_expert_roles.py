"""Losses of observers and teachers apart, and experts that imitate a stronger network."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.tiny_run import FINISHED, QUIET, TINY
from safetensors.torch import save_file
from torch import Tensor, nn

from ltdd import pipeline
from ltdd.config import ExpertsConfig, PlainExperts, UniMixExperts, with_form
from ltdd.data.augmentation.expert_batches import Batches
from ltdd.data.long_tailed_data import LongTailedData
from ltdd.engine.runtime import Runtime
from ltdd.engine.storage.stage_store import read_stage
from ltdd.engine.turns import finished
from ltdd.errors import UserError
from ltdd.models import build_model
from ltdd.models.inference import predict_logits
from ltdd.preflight import check_networks, expert_networks
from ltdd.stages.experts.objective import ExpertNetwork, Master, Objective
from ltdd.stages.experts.training import train_expert
from ltdd.stages.losses import matching_loss

FAST = ExpertsConfig(
    observer="convnet3_bn", epochs=10, batch_size=8, learning_rate=0.05, weight_decay=1e-3
)


def test_a_role_has_what_is_its_own_and_else_the_common() -> None:
    both = dataclasses.replace(
        FAST,
        teacher="convnet3",
        observer_debias_power=0.0,
        teacher_debias_power=1.2,
        teacher_resampling_power=0.5,
    )
    observer, teacher = both.of_role("observer"), both.of_role("teacher")
    assert (observer.debias_power, observer.resampling_power) == (0.0, 0.2)
    assert (teacher.debias_power, teacher.resampling_power) == (1.2, 0.5)
    assert observer.observer_debias_power is None
    assert observer.epochs == teacher.epochs == FAST.epochs
    mixed = dataclasses.replace(both, observer_debias_power=None, observer_loss="ce")
    assert isinstance(mixed.of_role("observer"), PlainExperts)
    assert isinstance(mixed.of_role("teacher"), ExpertsConfig)
    towards = with_form(FAST, "ce", teacher="convnet3", teacher_loss="unimix")
    assert isinstance(towards.of_role("teacher"), UniMixExperts)
    assert isinstance(towards.of_role("observer"), PlainExperts)


def test_a_master_imitates_nobody() -> None:
    config = dataclasses.replace(
        FAST, distil_from="resnet9", distil_share=0.5, observer_debias_power=0.0
    )
    assert config.of_role("master") == FAST
    assert config.of_role("observer").distil_share == 0.5


def test_a_master_has_settings_of_its_own() -> None:
    own = {"epochs": 80, "resizing": True, "randaugment": True}
    given = {f"distil_from_{name}": value for name, value in own.items()}
    config = dataclasses.replace(FAST, distil_from="resnet9_w96", **given)
    master = dataclasses.replace(FAST, epochs=80, progressive_resizing=True, randaugment=True)
    assert config.of_role("master") == master
    assert config.of_role("baseline") == FAST
    for role in ("observer", "teacher"):
        assert config.of_role(role) == config


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"teacher_debias_power": 1.0}, "experts.teacher to name the architecture .* got 'same'"),
        (
            {"observer_loss": "ce", "observer_debias_power": 1.0},
            "experts.observer_loss rldd with experts.observer_debias_power, got 'ce'",
        ),
        ({"distil_share": 0.5}, "experts.distil_from to name .* with experts.distil_share"),
        ({"distil_from_randaugment": False}, "with experts.distil_from_randaugment, got"),
        ({"distil_from_weights": "w.pt"}, "with experts.distil_from_weights, got null"),
        ({"distil_from": "resnet9", "distil_share": 1.5}, "distil_share between 0 and 1, got 1.5"),
    ],
)
def test_what_cannot_be_meant_is_refused(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        dataclasses.replace(FAST, **settings)


def experts_of(folder: Path, **settings: Any) -> set[str]:
    """Return the names of the experts of a run, which are what made them."""
    experts = dataclasses.replace(FINISHED.experts, **settings)
    pipeline.distill(dataclasses.replace(FINISHED, experts=experts), folder, options=QUIET)
    return {path.name for path in (folder / "stages").glob("experts-*")}


def test_only_the_network_of_the_role_is_another(tmp_path: Path) -> None:
    common = experts_of(tmp_path / "common", teacher="convnet3")
    observer = experts_of(tmp_path / "observer", teacher="convnet3", observer_debias_power=0.0)
    everybody = experts_of(tmp_path / "both", teacher="convnet3", debias_power=0.0)
    assert len(common) == len(observer) == len(everybody) == 2
    assert len(common & observer) == len(observer & everybody) == 1
    assert not common & everybody


class Permuted(nn.Module):
    """A master that knows the colour of the stripes and calls them by the next class's number."""

    def forward(self, images: Tensor) -> Tensor:
        return 8 * images.mean((2, 3)).roll(1, dims=1)


def test_an_expert_learns_what_its_master_says(data: LongTailedData, runtime: Runtime) -> None:
    master = Master(Permuted(), torch.zeros(data.num_classes))
    for loss in ("rldd", "ce", "unimix"):
        config = with_form(FAST, loss, distil_from="resnet9", distil_share=1.0)
        model = finished(
            train_expert("observer", "convnet3_bn", data, config, False, runtime, None, master)
        )
        logits = predict_logits(model, data.test_images, data.normalization, runtime)
        agreed = (logits.argmax(1) == (data.test_labels + 1) % data.num_classes).float().mean()
        assert float(agreed) > 0.8, loss


def test_the_loss_is_a_share_of_both(data: LongTailedData, runtime: Runtime) -> None:
    """(1 - w) own + w T^2 KL, of the logits that the expert keeps and the shifted ones."""
    torch.manual_seed(0)
    network = ExpertNetwork(build_model("convnet3_bn", 3, 8, 3), 3, FAST).eval()
    shift = torch.tensor([0.5, 0.0, -1.0])
    told = Permuted()
    config = dataclasses.replace(
        FAST, distil_from="resnet9", distil_share=0.3, distil_temperature=2.0
    )
    batches = Batches(data, config, False, runtime)
    generator = runtime.stream("test")
    own = Objective(network, batches, data, runtime)
    drawn = own.draw(torch.arange(8), generator)
    share = torch.tensor(0.25)
    both = Objective(network, batches, data, runtime, Master(told, shift))
    views = batches.mix_views(drawn)[0]
    kept = network(views)[1]
    distance = matching_loss(kept, told(views) - shift, "kl", 2.0)
    expected = 0.7 * own.loss(drawn, share, 8) + 0.3 * 4 * distance
    torch.testing.assert_close(both.loss(drawn, share, 8), expected)


def test_a_run_trains_the_master_first(tmp_path: Path) -> None:
    first = experts_of(tmp_path / "first", distil_from="convnet3", distil_prior=1.0)
    again = experts_of(tmp_path / "again", distil_from="convnet3", distil_prior=0.0)
    alone = experts_of(tmp_path / "alone")
    # Another shift of its logits is another expert, and the same master.
    assert len(first) == len(again) == 2
    assert len(first & again) == 1
    assert not alone & (first | again)


def test_a_wrong_master_is_refused_before_any_work(data: LongTailedData) -> None:
    for field, value in (("distil_from", "resnet7"), ("distil_from_weights", "none.pt")):
        changes = {"distil_from": "resnet9"} | {field: value}
        experts = dataclasses.replace(FAST, **changes)
        with pytest.raises(UserError, match=f"experts.{field}: .*{value}"):
            check_networks(dataclasses.replace(TINY, experts=experts), data)


def test_no_master_is_trained_where_all_weights_are_given(tmp_path: Path) -> None:
    imitating = dataclasses.replace(FINISHED.experts, distil_from="convnet1_bn")
    made = pipeline.distill(
        dataclasses.replace(FINISHED, experts=imitating), tmp_path / "trained", options=QUIET
    )
    stages = tmp_path / "trained" / "stages"
    assert len(list(stages.glob("experts-*"))) == 2
    found = {
        stage.tensors["classifier.weight"].shape: stage
        for stage in map(read_stage, stages.glob("experts-*"))
    }
    deeper = found[min(found)]
    save_file(deeper.tensors, tmp_path / "observer.safetensors")
    given = dataclasses.replace(imitating, observer_weights=str(tmp_path / "observer.safetensors"))
    config = dataclasses.replace(FINISHED, experts=given)
    assert [name for _, name, _ in expert_networks(given)] == ["convnet3_bn"]
    again = pipeline.distill(config, tmp_path / "given", options=QUIET)
    assert len(list((tmp_path / "given" / "stages").glob("experts-*"))) == 1
    assert again["teacher"]["accuracy"] == made["teacher"]["accuracy"]
