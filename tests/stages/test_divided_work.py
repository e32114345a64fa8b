"""Work that ranks divide, stage by stage: the same bytes as of one process."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from helpers.ranks import stage_hashes, with_ranks
from helpers.stripes import Recorder, make_data
from helpers.tiny_run import QUIET, TINY
from torch import Tensor

from ltdd.config import DistributionMatching, GradientMatching, TrajectoryRecovery
from ltdd.data import nearest_rows as search
from ltdd.data.image_spec import ImageSet
from ltdd.data.long_tailed_data import LongTailedData
from ltdd.engine.distributed.ranks import alone, current
from ltdd.engine.distributed.session import session
from ltdd.engine.distributed.together import CommonCheckpoint
from ltdd.engine.distributed.units import Shares
from ltdd.engine.runtime import Runtime
from ltdd.engine.storage.checkpoint import StageCheckpoint
from ltdd.engine.storage.files import read_tensors, write_tensors
from ltdd.stages.nearest_images import nearest_images
from ltdd.stages.recovery import distribution
from ltdd.stages.recovery.distribution import match_distributions
from ltdd.stages.recovery.gradient import _Gradients, match_gradients
from ltdd.stages.run import InitialImages, Run
from ltdd.stages.trajectories import train_trajectories

CPU = torch.device("cpu")
SIZES = (9, 6, 4, 2, 1)  # training images of the classes; with four ranks one class each, and two
WORLDS = [2, 3, 4]

Work = Callable[[LongTailedData, Runtime], dict[str, Tensor]]


def start_of(data: LongTailedData, ipc: int) -> InitialImages:
    labels = torch.arange(data.num_classes).repeat_interleave(ipc)
    shape = (len(labels), *data.train_images.shape[1:])
    images = torch.rand(shape, generator=torch.Generator().manual_seed(5))
    return InitialImages(images, labels, torch.full_like(labels, -1))


def made_by(world: int, work: Work, file: Path) -> tuple[dict[str, Tensor], list[float]]:
    """Return what every one of so many ranks makes, and the losses that the first one logs."""

    def process(rank: int) -> None:
        log = Recorder()
        with session(CPU) as ranks:
            made = work(make_data(SIZES), Runtime(CPU, seed=3, log=log, quiet=True))
            theirs = ranks.share_tensors(made)
            assert all(torch.equal(made[name], theirs[name]) for name in theirs)
        if rank == 0:
            losses = torch.tensor([e["loss"] for e in log.of("recover")], dtype=torch.float64)
            write_tensors(file, {**made, "losses": losses}, {})

    with_ranks(world, process)
    tensors, _ = read_tensors(file)
    return tensors, tensors.pop("losses").tolist()


def is_same(work: Work, world: int, folder: Path) -> None:
    expected, losses = made_by(1, work, folder / "one")
    found, their_losses = made_by(world, work, folder / "several")
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert their_losses == losses


# --- matching: classes ---

DSA = GradientMatching(
    network="convnet3_w32", outer=2, inner=2, synthetic_batch=2, network_batch=8, network_epochs=1,
    augmentation=("flip", "color", "crop"), network_augmentation=("flip", "crop"),
)  # fmt: skip
DREAM = dataclasses.replace(
    DSA, distance="squared", parameters="convolutions", pixels="unit", clamp=True, formation=2,
    representatives="clusters", interval=2, real_batch=3, network_data="long_tailed",
    network_images=20, network_cutmix=0.5,
)  # fmt: skip
IDM = DistributionMatching(
    network="convnet3_w32", iterations=4, pool=3, pool_start=2, pool_period=2, trained_networks=2,
    network_steps=1, network_batch=8, augmentation=("color", "crop", "cutout", "flip"),
)  # fmt: skip
CSDM = dataclasses.replace(
    IDM, distance="characteristic", frequencies=16, augmentation=(), network_data="balanced"
)


@pytest.mark.parametrize("world", WORLDS)
@pytest.mark.parametrize("config", [DSA, DREAM], ids=["dsa", "dream"])
def test_gradients_are_matched_class_by_class(
    config: GradientMatching, world: int, tmp_path: Path
) -> None:
    def work(data: LongTailedData, runtime: Runtime) -> dict[str, Tensor]:
        start = start_of(data, 3)
        return {"images": match_gradients(start, data, data.spec(flip=True), config, runtime)}

    is_same(work, world, tmp_path)


@pytest.mark.parametrize("world", [1, 3])
def test_what_two_ranks_have_begun_others_end(world: int, tmp_path: Path) -> None:
    """In the last step the images that clusters chose in the one before it are matched."""

    def work(stop: bool, kept: Path) -> Work:
        def match(data: LongTailedData, runtime: Runtime) -> dict[str, Tensor]:
            with StageCheckpoint(kept, "0" * 64, 0.0) as own, pytest.MonkeyPatch.context() as patch:
                kept_by_all = own if current().world == 1 else CommonCheckpoint(own, current())
                surroundings = dataclasses.replace(runtime, checkpoint=kept_by_all)
                start, spec = start_of(data, 3), data.spec(flip=True)
                if stop:
                    patch.setattr(
                        _Gradients, "advance", _stopped_before_the_last(_Gradients.advance)
                    )
                    with pytest.raises(InterruptedError):
                        match_gradients(start, data, spec, DREAM, surroundings)
                    return {}
                return {"images": match_gradients(start, data, spec, DREAM, surroundings)}

        return match

    expected, _ = made_by(1, work(False, tmp_path / "none"), tmp_path / "one")
    made_by(2, work(True, tmp_path / "kept"), tmp_path / "begun")
    assert (tmp_path / "kept").exists()
    found, losses = made_by(world, work(False, tmp_path / "kept"), tmp_path / "ended")
    assert torch.equal(found["images"], expected["images"])
    assert len(losses) == 1  # of the second network; that of the first was logged before


def _stopped_before_the_last(advance: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def stopped(self: _Gradients, outer: int, inner: int) -> Tensor:
        if (outer, inner) == (DREAM.outer - 1, DREAM.inner - 1):
            raise InterruptedError
        return advance(self, outer, inner)

    return stopped


@pytest.mark.parametrize("world", WORLDS)
@pytest.mark.parametrize("config", [IDM, CSDM], ids=["idm", "csdm"])
def test_distributions_are_matched_class_by_class(
    config: DistributionMatching, world: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(distribution, "SCALE_SAMPLE", 2 * len(SIZES))  # fewer than a class has

    def work(data: LongTailedData, runtime: Runtime) -> dict[str, Tensor]:
        start = start_of(data, 2)
        return {"images": match_distributions(start, data, data.spec(flip=True), config, runtime)}

    is_same(work, world, tmp_path)


def test_a_rank_looks_at_its_own_classes_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    distance = distribution._Distributions._distance

    def noted(self: distribution._Distributions, member: object, label: int, step: int) -> object:
        seen.append(label)
        return distance(self, member, label, step)  # type: ignore[arg-type]

    monkeypatch.setattr(distribution._Distributions, "_distance", noted)

    def work(rank: int) -> None:
        data = make_data(SIZES)
        with session(CPU) as ranks:
            runtime = Runtime(CPU, seed=3, quiet=True)
            match_distributions(start_of(data, 2), data, data.spec(flip=True), IDM, runtime)
            everybody = [label for labels in ranks.all(sorted(set(seen))) for label in labels]
        assert sorted(everybody) == list(range(len(SIZES)))

    with_ranks(3, work)


def test_rows_of_units_are_gathered_in_order() -> None:
    lengths = [2, 0, 3, 1, 1]
    rows = [torch.full((n, 2), float(unit)) for unit, n in enumerate(lengths)]

    def work(rank: int) -> None:
        with session(CPU):
            shares = Shares([1.0, 5.0, 2.0, 2.0, 1.0])
            own = torch.cat([torch.empty(0, 2), *(rows[unit] for unit in shares.mine)])
            found = shares.gather(own, lengths)
            assert all(torch.equal(a, b) for a, b in zip(found, rows, strict=True))
            with alone():
                assert Shares([1.0, 1.0]).mine == [0, 1]

    with_ranks(7, work)  # two have none


# --- nearest: training images ---


@pytest.mark.parametrize("world", WORLDS)
def test_nearest_images_are_looked_for_in_batches(
    world: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(search, "BATCH", 4)  # 22 training images, and 15 distilled ones beside them
    monkeypatch.setattr(search, "HELD_BYTES", 2000)  # ten rows of pixels a block

    def work(data: LongTailedData, runtime: Runtime) -> dict[str, Tensor]:
        training = ImageSet(data.train_images, data.train_labels)
        copies = training.images[torch.tensor([0, 0, 21, 5, 9])]  # of several ranks
        shown = ImageSet(copies, torch.tensor([0, 1, 2, 3, 4]))
        twice = ImageSet(
            torch.cat([training.images, training.images]), training.labels.repeat(2)
        )  # equally near ones, on other ranks

        def lengths_one(images: Tensor) -> Tensor:
            return torch.nn.functional.normalize(images.flatten(1).float() - 128, dim=1)

        return nearest_images(shown, twice, data.num_classes, lengths_one, runtime)

    is_same(work, world, tmp_path)


# --- trajectories: experts ---

PATHS = TrajectoryRecovery(
    network="convnet1", trajectories=3, trajectory_epochs=2, trajectory_batch_size=12,
    start_max=1, expert_epochs=1, iterations=2, steps=2, phases="decoupled", classifier_steps=2,
    classifier_epochs=2,
)  # fmt: skip


@pytest.mark.parametrize("world", WORLDS)
def test_ranks_train_an_expert_each(world: int, tmp_path: Path) -> None:
    config = dataclasses.replace(TINY, data="stripes", imbalance_factor=None, recovery=PATHS)

    def work(out: Path) -> Callable[[int], None]:
        def process(rank: int) -> None:
            with session(CPU) as ranks:
                found = train_trajectories(Run.create(config, make_data(SIZES), out, QUIET))
                assert found is not None
                keys = [path.key for path in found.paths]
                assert ranks.share(keys) == keys
                assert len(set(keys)) == PATHS.trajectories

        return process

    with_ranks(1, work(tmp_path / "one"))
    with_ranks(world, work(tmp_path / "several"))
    one, several = (stage_hashes(tmp_path / name) for name in ("one", "several"))
    assert len(one) == 2 * PATHS.trajectories
    assert several == one
