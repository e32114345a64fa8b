"""Experts: heads, schedules, averaging, learning, growing images, bad numbers."""

import dataclasses
import itertools
from typing import Any

import pytest
import torch
from helpers.colored import colored
from torch import Tensor, nn

from ltdd.config import ExpertsConfig, with_form
from ltdd.data.augmentation.crops import normalize
from ltdd.data.long_tailed_data import LongTailedData
from ltdd.engine.runtime import Runtime
from ltdd.engine.turns import finished
from ltdd.errors import UserError
from ltdd.models import Network, build_model
from ltdd.models.inference import predict_logits
from ltdd.stages.experts.objective import ExpertNetwork
from ltdd.stages.experts.training import _schedule, train_expert, training_size

FAST = ExpertsConfig(
    observer="convnet3_bn", epochs=6, batch_size=8, learning_rate=0.05, weight_decay=1e-3
)


def network(**settings: Any) -> ExpertNetwork:
    config = dataclasses.replace(FAST, projection_dim=5, **settings)
    return ExpertNetwork(build_model("convnet3_bn", 3, 8, 3), 3, config)


def test_heads_have_their_shapes() -> None:
    net = network()
    plain, rebalanced, z, p = net(torch.rand(2, 3, 8, 8))
    assert plain.shape == rebalanced.shape == (2, 3)
    assert z.shape == p.shape == (2, 5)
    assert not torch.equal(plain, rebalanced)
    # The backbone's own classifier is the debiased one, so inference uses it.
    net.eval()
    images = torch.rand(2, 3, 8, 8)
    assert torch.equal(net(images)[1], net.backbone(images))


def test_one_head_carries_both_terms_as_printed() -> None:
    plain, rebalanced, _, _ = network(variant="printed")(torch.rand(2, 3, 8, 8))
    assert torch.equal(plain, rebalanced)
    own = sum(p.numel() for p in network(variant="printed").parameters())
    both = sum(p.numel() for p in network().parameters())
    assert both - own == 128 * 3 + 3


@pytest.mark.parametrize("name", ["cosine", "one_cycle"])
def test_learning_rate_ends_near_zero(name: str) -> None:
    config = dataclasses.replace(FAST, schedule=name, epochs=20)
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=config.learning_rate)
    schedule, every_batch = _schedule(optimizer, config, steps=5)
    rates = []
    for _ in range(20):
        for _ in range(5):
            rates.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            if every_batch:
                schedule.step()
        if not every_batch:
            schedule.step()
    assert max(rates) == pytest.approx(0.05, rel=1e-3)
    assert rates.index(max(rates)) == (0 if name == "cosine" else pytest.approx(20, abs=1))
    assert rates[-1] < 0.01 * 0.05 or (name == "cosine" and rates[-1] < 0.02 * 0.05)


def test_warm_up_rises_to_the_peak_and_then_falls() -> None:
    config = dataclasses.replace(FAST, warmup_epochs=4, epochs=20)
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=config.learning_rate)
    schedule, every_batch = _schedule(optimizer, config, steps=5)
    assert not every_batch
    rates = []
    for _ in range(20):
        rates.append(optimizer.param_groups[0]["lr"] / config.learning_rate)
        optimizer.step()
        schedule.step()
    # The first epoch is the lowest of the rise, not one at the full rate.
    assert rates[:4] == pytest.approx([0.25, 0.5, 0.75, 1])
    assert all(later < earlier for earlier, later in itertools.pairwise(rates[3:]))
    assert rates[4] > 0.98
    assert 0 < rates[-1] < 0.02
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0, abs=1e-9)


def test_averaged_weights_have_statistics_of_their_own(
    data: LongTailedData, runtime: Runtime
) -> None:
    # Without padding a view is the image itself.
    config = with_form(FAST, "ce", epochs=8, crop_padding=0)
    plain = finished(train_expert("observer", "convnet3_bn", data, config, False, runtime))
    config = dataclasses.replace(config, averaging="ema")
    averaged = finished(train_expert("observer", "convnet3_bn", data, config, False, runtime))
    assert not torch.equal(averaged.classifier.weight, plain.classifier.weight)
    conv, norm = averaged.body[0][:2]
    images = normalize(data.train_images, torch.tensor(data.mean), torch.tensor(data.std))
    maps = conv(images)
    # Four whole batches of 8 of the 34 images, counted from zero, with equal weight.
    assert int(norm.num_batches_tracked) == 4
    spread = maps.std(dim=(0, 2, 3))
    assert float(((norm.running_mean - maps.mean((0, 2, 3))) / spread).abs().max()) < 0.1
    assert float((norm.running_var / maps.var(dim=(0, 2, 3)) - 1).abs().max()) < 0.2


def accuracy(model: nn.Module, data: LongTailedData, runtime: Runtime) -> Tensor:
    predictions = predict_logits(model, data.test_images, data.normalization, runtime).argmax(1)
    return (predictions == data.test_labels).float().view(data.num_classes, -1).mean(1)


@pytest.mark.parametrize("loss", ["rldd", "ce", "unimix"])
def test_an_expert_learns(data: LongTailedData, runtime: Runtime, log: Any, loss: str) -> None:
    config = with_form(FAST, loss, epochs=10)
    model = finished(train_expert("observer", "convnet3_bn", data, config, False, runtime))
    assert isinstance(model, Network)
    assert not model.training
    assert not any(p.requires_grad for p in model.parameters())
    scores = accuracy(model, data, runtime)
    assert float(scores[:2].mean()) > 0.9
    events = log.of("train")
    assert [event["epoch"] for event in events] == list(range(10))
    assert all((e["stage"], e["role"]) == ("experts", "observer") for e in events)
    assert events[-1]["loss"] < events[0]["loss"]


def test_seed_and_role_decide_the_expert(data: LongTailedData, runtime: Runtime) -> None:
    config = dataclasses.replace(FAST, epochs=1)

    def weights(role: str = "observer", seed: int = 0) -> Tensor:
        own = dataclasses.replace(runtime, seed=seed)
        return finished(
            train_expert(role, "convnet3_bn", data, config, True, own)
        ).classifier.weight

    first = weights()
    assert torch.equal(weights(), first)
    assert not torch.equal(weights("teacher"), first)
    assert not torch.equal(weights(seed=1), first)


def test_training_leaves_global_randomness_alone(data: LongTailedData, runtime: Runtime) -> None:
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    finished(
        train_expert(
            "observer", "convnet3_bn", data, dataclasses.replace(FAST, epochs=1), True, runtime
        )
    )
    assert torch.equal(torch.random.get_rng_state(), before)


def test_fewer_images_than_a_batch(data: LongTailedData, runtime: Runtime, log: Any) -> None:
    config = dataclasses.replace(FAST, epochs=1, batch_size=1000)
    model = finished(train_expert("observer", "convnet3_bn", data, config, False, runtime))
    # All 34 images make the one step.
    assert int(model.body[0][1].num_batches_tracked) == 1


def test_numbers_that_are_not_finite_stop_the_stage(data: LongTailedData, runtime: Runtime) -> None:
    config = dataclasses.replace(FAST, learning_rate=1e30)
    with pytest.raises(UserError, match="experts: observer: expected a finite loss at step"):
        finished(train_expert("observer", "convnet3_bn", data, config, False, runtime))


def test_images_grow_with_the_epochs() -> None:
    config = dataclasses.replace(FAST, epochs=10, progressive_resizing=True)
    sizes = {size: [training_size(config, e, size) for e in range(10)] for size in (64, 32, 28, 8)}
    assert sizes[64] == [32] * 4 + [48] * 3 + [64] * 3
    assert sizes[32] == [16] * 4 + [24] * 3 + [32] * 3
    assert sizes[28] == [16] * 4 + [21] * 3 + [28] * 3  # never below 16
    assert sizes[8] == [8] * 10
    plain = dataclasses.replace(config, progressive_resizing=False)
    assert {training_size(plain, epoch, 64) for epoch in range(10)} == {64}


@pytest.mark.parametrize("loss", ["rldd", "ce", "unimix"])
def test_the_network_sees_images_as_they_grow(
    runtime: Runtime, monkeypatch: pytest.MonkeyPatch, loss: str
) -> None:
    seen: list[int] = []
    original = Network.features

    def watch(self: Network, images: Tensor) -> Tensor:
        if self.training:
            seen.append(images.shape[2])
        return original(self, images)

    monkeypatch.setattr(Network, "features", watch)
    config = with_form(FAST, loss, epochs=10, batch_size=25, progressive_resizing=True)
    finished(train_expert("observer", "resnet9", colored(32), config, False, runtime))
    assert seen == [16] * 4 + [24] * 3 + [32] * 3


def test_a_network_of_one_image_size_cannot_see_smaller_ones(runtime: Runtime) -> None:
    config = dataclasses.replace(FAST, progressive_resizing=True)
    message = "expected a network that takes images of any size .* got one of 32 px only"
    with pytest.raises(UserError, match=message):
        finished(train_expert("observer", "convnet3_bn", colored(32), config, False, runtime))


def test_a_small_set_gets_more_epochs_until_it_has_the_fewest_steps(
    runtime: Runtime, log: Any
) -> None:
    data = colored(8)  # 25 images are 3 steps of 8
    for min_steps, epochs in ((None, 2), (5, 2), (10, 4)):
        log.events.clear()
        config = dataclasses.replace(FAST, epochs=2, min_steps=min_steps)
        finished(train_expert("observer", "convnet3_bn", data, config, False, runtime))
        assert max(event["epoch"] for event in log.of("train")) == epochs - 1
