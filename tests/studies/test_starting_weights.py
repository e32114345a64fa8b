"""Experts that start from weights of elsewhere: what is loaded, what is refused, what is said."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
import torchvision
from helpers.tiny_run import FINISHED, QUIET

import ltdd
from ltdd import pipeline
from ltdd.config import DistillConfig
from ltdd.errors import UserError
from ltdd.models import Network, build_model
from ltdd.models.weights import load_body, starting_weights
from ltdd.results.card import own_layout, render_card
from ltdd.results.pages.report import write_report


def starting_from(file: object, **settings: Any) -> DistillConfig:
    changes = {"init_weights": str(file)} | settings
    experts = dataclasses.replace(FINISHED.experts, **changes)
    return dataclasses.replace(FINISHED, experts=experts)


@pytest.fixture
def other(tmp_path: Path) -> tuple[Network, Path]:
    """A network of seven classes, with batch norms that have seen something, and its file."""
    network = build_model("convnet3_bn", 7, 8, 1)
    network(torch.rand(8, 1, 8, 8))
    file = tmp_path / "other.safetensors"
    safetensors.torch.save_file(network.state_dict(), file)
    return network, file


def test_all_but_the_classifier_is_taken(other: tuple[Network, Path]) -> None:
    theirs, file = other
    network = build_model("convnet3_bn", 10, 8, 1)
    classifier = network.classifier.weight.clone()
    load_body(network, starting_weights(str(file)))
    assert torch.equal(network.classifier.weight, classifier)
    expected = theirs.body.state_dict()
    for name, tensor in network.body.state_dict().items():
        assert torch.equal(tensor, expected[name]), name


def test_a_run_starts_from_a_file_and_says_so(other: tuple[Network, Path], tmp_path: Path) -> None:
    _, file = other
    out = tmp_path / "run"
    pipeline.distill(starting_from(file), out, options=QUIET)
    pipeline.distill(FINISHED, tmp_path / "fresh", options=QUIET)
    ours, fresh = (next((run / "stages").glob("experts-*")) for run in (out, tmp_path / "fresh"))
    assert ours.name != fresh.name
    distilled = ltdd.load(out)
    told = "Trained experts started from `other.safetensors`: they may have seen other data"
    assert told in render_card(distilled, None, own_layout(distilled))
    assert told.replace("`", "") in write_report(out).read_text()
    plain = ltdd.load(tmp_path / "fresh")
    assert "may have seen other data" not in render_card(plain, None, own_layout(plain))
    # Another file under the same name is another expert.
    safetensors.torch.save_file(build_model("convnet3_bn", 7, 8, 1).state_dict(), file)
    pipeline.distill(starting_from(file), out, options=QUIET)
    assert len(list((out / "stages").glob("experts-*"))) == 2


def test_published_weights_are_taken_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    published = torchvision.models.resnet18()

    def fetch(url: str, **options: Any) -> dict[str, torch.Tensor]:
        assert "resnet18" in url
        assert options["check_hash"]
        return published.state_dict()

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", fetch)
    network = build_model("torchvision:resnet18", 10, 32, 3)
    load_body(network, starting_weights("torchvision:resnet18"))
    body = network.state_dict()
    assert torch.equal(body["body.layer4.1.conv2.weight"], published.layer4[1].conv2.weight)
    assert network.classifier.weight.shape == (10, 512)


def test_a_failed_download_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def fetch(url: str, **options: Any) -> dict[str, torch.Tensor]:
        raise OSError("no route to host")

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", fetch)
    with pytest.raises(UserError, match=r"^cannot download .*: no route"):
        starting_weights("torchvision:resnet18")


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"init_weights": "none.pt"}, "experts.init_weights: cannot read none.pt"),
        ({"init_weights": "torchvision:resnet7"}, "network that torchvision has weights for, got"),
        ({"observer": "resnet9"}, "experts.init_weights: for experts.observer resnet9: .*expected"),
        ({"teacher": "convnet3"}, "experts.init_weights: for experts.teacher convnet3: .*expected"),
        ({"observer_weights": "w.pt"}, "where an expert is trained, got weights of each"),
    ],
)
def test_what_does_not_fit_is_refused(
    settings: dict[str, Any], said: str, other: tuple[Network, Path], tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=said):
        pipeline.distill(starting_from(other[1], **settings), tmp_path / "run", options=QUIET)
    assert not (tmp_path / "run").exists()
