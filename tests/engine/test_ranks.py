"""Several processes on one run: the same bytes as one, and experts that differ by rounding."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from helpers.ranks import given_experts, hashes, start_ranks, with_ranks
from helpers.stripes import Recorder, make_data
from helpers.tiny_run import QUIET, TINY, Forked, smaller
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from ltdd import pipeline
from ltdd.config import DistillConfig, RecoveryConfig, RelabelingConfig, form_of
from ltdd.data.reading import decoded_cache
from ltdd.engine.chunks import Chunks, agreed
from ltdd.engine.distributed import ranks as ranks_module
from ltdd.engine.distributed.ranks import Ranks, current
from ltdd.engine.distributed.session import session
from ltdd.engine.distributed.units import each, share_out
from ltdd.engine.runtime import Runtime
from ltdd.engine.storage.files import read_json, read_tensors, write_tensors
from ltdd.engine.turns import finished
from ltdd.engine.watching.events import read_events
from ltdd.models.normalization import SyncedBatchNorm
from ltdd.stages.experts.training import train_expert

CPU = torch.device("cpu")


# --- how ranks speak ---


def check_primitives(ranks: Ranks) -> None:
    rank, world = ranks.rank, ranks.world
    assert ranks.share({"rank": rank}, world - 1) == {"rank": world - 1}
    assert ranks.all(rank**2) == [r**2 for r in range(world)]
    assert [ranks.any(rank == r) for r in (0, world - 1, world)] == [True, True, False]
    assert ranks.first_only(lambda: [rank, None]) == [0, None]
    assert ranks.in_turn(lambda: rank) == rank
    dtypes = (torch.uint8, torch.int64, torch.float16, torch.bfloat16, torch.float64, torch.bool)
    mine = {str(d): torch.arange(6).view(2, 3).remainder(2).to(d) + rank for d in dtypes[:-1]}
    mine |= {"empty": torch.empty(0, 3), "scalar": torch.tensor(rank), "b": torch.tensor([True])}
    theirs = ranks.share_tensors(mine if rank == world - 1 else {}, world - 1)
    for name, tensor in mine.items():
        expected = tensor if name in ("empty", "b") else tensor - rank + world - 1
        assert theirs[name].dtype == tensor.dtype
        assert torch.equal(theirs[name], expected)
    assert ranks.sum(torch.tensor([rank, 1])).tolist() == [sum(range(world)), world]
    rows = torch.full((rank, 2), float(rank))  # the first one has none
    joined = ranks.join(rows, list(range(world)))
    assert joined[:, 0].tolist() == [float(r) for r in range(world) for _ in range(r)]


@pytest.mark.parametrize(("world", "packet"), [(2, 2**20), (4, 2**20), (3, 20), (2, 1)])
def test_ranks_pass_values_and_tensors(
    world: int, packet: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ranks_module, "PACKET", packet)  # all, two or three, or one tensor

    def work(rank: int) -> None:
        with session(CPU) as ranks:
            assert (ranks.rank, ranks.world) == (rank, world)
            check_primitives(ranks)
        assert current().world == 1

    with_ranks(world, work)


def test_a_process_group_that_is_there_is_used(tmp_path: Path) -> None:
    def work(rank: int) -> None:
        store = dist.FileStore(str(tmp_path / "store"), 2)
        dist.init_process_group("gloo", store=store, rank=rank, world_size=2)
        for _ in range(2):  # one run after the other
            with session(CPU) as ranks, session(CPU) as inner:
                assert inner is ranks
                check_primitives(ranks)
        assert dist.is_initialized()
        dist.destroy_process_group()

    processes = [Forked(functools.partial(work, rank)) for rank in range(2)]
    assert [process.wait() for process in processes] == [0, 0]


def test_one_process_needs_no_others() -> None:
    with session(CPU) as ranks:
        assert ranks.world == 1
        check_primitives(ranks)


@given(st.lists(st.floats(0, 100), max_size=30), st.integers(1, 9))
def test_units_are_shared_out_evenly(costs: list[float], world: int) -> None:
    shares = share_out(costs, world)
    assert sorted(n for share in shares for n in share) == list(range(len(costs)))
    assert all(share == sorted(share) for share in shares)
    loads = [sum(costs[n] for n in share) for share in shares]
    assert max(loads) - min(loads) <= max(costs, default=0) + 1e-6


def test_events_of_other_ranks_reach_the_first(tmp_path: Path) -> None:
    def work(rank: int) -> None:
        log = Recorder()
        runtime = Runtime(CPU, log=log, quiet=True)

        def compute(unit: int, runtime: Runtime) -> dict[str, Tensor]:
            assert current().world == 1  # nothing in a unit waits for others
            runtime.log.write("made", unit=unit, rank=rank)
            return {"x": torch.tensor(unit)}

        with session(CPU):
            made = each("squares", range(5), compute, runtime)
            assert [int(m["x"]) for m in made] == list(range(5))
        if rank == 0:
            told = {event["unit"]: event["rank"] for event in log.events}
            assert told == {0: 0, 1: 1, 2: 0, 3: 1, 4: 0}

    with_ranks(2, work)


def test_all_ranks_lower_a_chunk_that_is_too_large_for_one() -> None:
    def work(rank: int) -> None:
        tried = []

        def step(chunk: int) -> int:
            def own() -> int:
                tried.append(chunk)
                if rank == 1 and chunk > 3:
                    raise MemoryError
                return chunk

            return agreed(own)

        with session(CPU):
            assert Chunks("recovery", 8, Runtime(CPU, quiet=True)).fit(step, 8) == 2
        assert tried == [8, 4, 2]

    with_ranks(2, work)


# --- the same bytes ---


def divided(folder: Path) -> DistillConfig:
    """Three classes, one batch of images that ranks divide, stored labels of changed pictures."""
    config = smaller(folder)
    return dataclasses.replace(
        config,
        ipc=8,
        recovery=RecoveryConfig(iterations=4, max_batch=24),
        relabeling=RelabelingConfig(labels="fkd"),
        evaluation=dataclasses.replace(
            config.evaluation, randaugment=True, baselines=("random_real_soft",), epochs=5
        ),
    )


def in_batches(folder: Path) -> DistillConfig:
    """Four batches of images, an observer and a teacher, students asked online."""
    config = smaller(folder)
    return dataclasses.replace(
        config,
        ipc=4,
        experts=dataclasses.replace(config.experts, teacher="convnet3"),
        recovery=RecoveryConfig(iterations=2, max_batch=3),
        relabeling=RelabelingConfig(labels="online"),
        evaluation=dataclasses.replace(config.evaluation, seeds=3, baselines=(), epochs=2),
    )


def run(config: DistillConfig, out: Path, rank: int = 0) -> None:
    options = dataclasses.replace(QUIET, checkpoint_seconds=0.1)
    results = pipeline.distill(config, out, options=options)
    assert results["student"] == read_json(out / "results.json")["student"]


Finished = tuple[DistillConfig, Path]


@pytest.fixture(scope="module", params=[divided, in_batches])
def alone(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """A configuration and the folder of its run by one process."""
    folder = tmp_path_factory.mktemp("alone")
    config = request.param(folder / "data")
    assert Forked(lambda: run(config, folder / "run")).wait() == 0
    return config, folder / "run"


@pytest.mark.parametrize("world", [2, 3, 4])
def test_every_stage_but_experts_has_the_same_bytes(
    alone: Finished, world: int, tmp_path: Path
) -> None:
    config, finished = alone
    out = given_experts(finished, tmp_path / "run")
    with_ranks(world, functools.partial(run, config, out))
    assert hashes(out) == hashes(finished)
    assert list(out.glob("stages/*.checkpoint")) == []
    events = [read_events(folder / "events.jsonl") for folder in (out, finished)]
    kept = ("recover", "student")  # every loss is there, whoever computed it
    losses = [
        sorted(
            (e["event"], e.get("batch", e.get("who")), e.get("seed", 0), e["loss"])
            for e in log
            if e["event"] in kept
        )
        for log in events
    ]
    assert losses[0] == losses[1]


def test_one_process_finds_what_several_have_stored(tmp_path: Path) -> None:
    config, store = divided(tmp_path / "data"), tmp_path / "store"
    shared = dataclasses.replace(QUIET, store=store)
    first, second = tmp_path / "first", tmp_path / "second"
    with_ranks(2, lambda rank: pipeline.distill(config, first, options=shared))
    assert Forked(lambda: pipeline.distill(config, second, options=shared)).wait() == 0
    assert hashes(first) == hashes(second)
    ends = [e for e in read_events(second / "events.jsonl") if e["event"] == "stage_end"]
    assert ends
    assert all(event["reused"] for event in ends)


def test_one_rank_decodes_and_all_map(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config, decoded = smaller(tmp_path / "data"), tmp_path / "decoded"
    monkeypatch.setenv("LTDD_DATA", str(tmp_path / "cache"))
    write = decoded_cache._write

    def noted(*arguments: Any) -> None:
        with decoded.open("a") as file:
            file.write(f"{current().rank}\n")
        write(*arguments)

    monkeypatch.setattr(decoded_cache, "_write", noted)

    def work(rank: int) -> None:
        with session(CPU):
            data = pipeline.load_source(config, QUIET)
            assert len(data.train_images) == 34
            assert f"{tmp_path / 'cache'}" in Path("/proc/self/maps").read_text()

    with_ranks(3, work)
    assert decoded.read_text() == "0\n"


def test_ranks_with_other_data_are_refused(tmp_path: Path) -> None:
    def work(rank: int) -> None:
        data = make_data((9 + rank, 6, 4))
        pipeline.distill(TINY_STRIPES, tmp_path / "run", data=data, options=QUIET)

    processes = start_ranks(2, work)
    assert [process.wait() for process in processes] == [1, 1]
    assert not (tmp_path / "run").exists()


TINY_STRIPES = dataclasses.replace(TINY, data="stripes", imbalance_factor=None)


# --- experts ---


@pytest.fixture
def train(tmp_path: Path) -> Callable[..., tuple[dict[str, Tensor], list[float]]]:
    """Train an expert for 20 steps in float64 on some ranks; return its state and losses."""
    data = make_data((60, 30, 10))

    def start(world: int, loss: str, architecture: str, **settings: Any) -> Any:
        config = form_of("experts", loss)(
            epochs=5, batch_size=25, learning_rate=0.05, schedule="one_cycle", **settings
        )

        def work(rank: int) -> None:
            torch.set_default_dtype(torch.float64)
            log = Recorder()
            runtime = Runtime(CPU, seed=3, log=log, quiet=True)
            with session(CPU):
                model = finished(
                    train_expert("observer", architecture, data, config, True, runtime)
                )
            if rank == 0:
                losses = torch.tensor([event["loss"] for event in log.of("train")])
                write_tensors(tmp_path / "expert", {**model.state_dict(), "losses": losses}, {})

        with_ranks(world, work)
        state, _ = read_tensors(tmp_path / "expert")
        return state, state.pop("losses")

    return start


@pytest.mark.parametrize(
    ("loss", "architecture", "settings"),
    [
        ("rldd", "convnet3_bn", {"randaugment": True}),
        ("rldd", "resnet32_w16", {}),
        ("ce", "convnet3_bn", {"crop_min_scale": 0.5, "averaging": "ema"}),
        ("unimix", "convnet3_bn", {"color_jitter": 0.2}),
    ],
)
def test_experts_of_several_ranks_equal_those_of_one(
    train: Callable[..., Any], loss: str, architecture: str, settings: dict[str, Any]
) -> None:
    """Up to rounding, which the steps of a deep network enlarge.

    In one process of ResNet-32 weights that differ by 3e-15 differ by 1e-11 after these steps, by
    3e-9 by 1e-5, and by 3e-8 by 2e-2: in float32 no two ways of rounding end in the same place.
    """
    expected, losses = train(1, loss, architecture, **settings)
    found, their_losses = train(3, loss, architecture, **settings)  # 8, 8 and 9 images
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(their_losses, losses, rtol=0, atol=1e-9)


def test_experts_repeat_their_bytes_for_equal_world_sizes(train: Callable[..., Any]) -> None:
    (first, _), (second, _) = (train(2, "rldd", "convnet3_bn") for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_a_batch_too_small_to_be_divided_is_computed_by_all_who_say_so() -> None:
    data = make_data((9, 6, 4))
    config = form_of("experts", "ce")(epochs=1, batch_size=4)

    def train(log: Recorder) -> dict[str, Tensor]:
        runtime = Runtime(CPU, seed=3, log=log, quiet=True)
        return finished(
            train_expert("observer", "convnet1_bn", data, config, True, runtime)
        ).state_dict()

    alone = train(quiet := Recorder())
    assert quiet.of("batch_not_divided") == []

    def work(rank: int) -> None:
        with session(CPU):
            found = train(log := Recorder())
        assert [event["batch_size"] for event in log.of("batch_not_divided")] == [4]
        assert all(torch.equal(found[name], alone[name]) for name in alone)

    with_ranks(3, work)


def test_synced_batch_norms_are_one_over_the_whole_batch() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(7, 3, 4, 5, generator=generator, dtype=torch.float64) * 3 + 100
    weights = torch.randn(x.shape, generator=generator, dtype=torch.float64)
    for momentum in (0.1, None):
        whole = nn.BatchNorm2d(3, momentum=momentum).double()
        own = x.clone().requires_grad_()
        for _ in range(2):
            y = whole(own)
        (y * weights).sum().backward()
        expected = [y, own.grad, whole.weight.grad, *whole.buffers()]

        def work(rank: int, momentum: float | None = momentum, expected: Any = expected) -> None:
            rows = (slice(0, 2), slice(2, 7))[rank]
            part = x[rows].clone().requires_grad_()
            norm = SyncedBatchNorm(3, momentum=momentum).double()
            with session(CPU) as ranks:
                for _ in range(2):
                    y = norm(part)
                (y * weights[rows]).sum().backward()
                found = [y, part.grad, ranks.sum(norm.weight.grad), *norm.buffers()]
            for mine, theirs in zip(found, expected, strict=True):
                sliced = theirs[rows] if theirs.shape == x.shape else theirs
                torch.testing.assert_close(mine, sliced, rtol=1e-9, atol=1e-9)

        with_ranks(2, work)
