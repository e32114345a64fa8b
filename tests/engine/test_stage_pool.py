"""Stage results that several runs share."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
import torch

from ltdd.engine.files import fingerprint
from ltdd.engine.run_folder import StageStore
from ltdd.errors import UserError

KEY = fingerprint("inputs")
RESULT = {"weight": torch.arange(3.0)}


def test_a_result_reaches_the_pool_and_other_runs(tmp_path: Path) -> None:
    pool = tmp_path / "pool"
    StageStore(tmp_path / "a", pool).put("experts", KEY, RESULT, {"seconds": 4.0})
    other = StageStore(tmp_path / "b", pool)
    found = other.get("experts", KEY)
    assert found is not None
    assert torch.equal(found[0]["weight"], RESULT["weight"])
    assert found[1] == {"seconds": 4.0}
    names = {path.relative_to(tmp_path).parts[0] for path in tmp_path.rglob("experts-*")}
    assert names == {"a", "b", "pool"}
    assert len({path.stat().st_ino for path in tmp_path.rglob("experts-*")}) == 1  # stored once
    assert other.get("experts", fingerprint("other inputs")) is None
    alone = StageStore(tmp_path / "b")  # complete without the pool
    (pool / other.path("experts", KEY).name).unlink()
    assert alone.get("experts", KEY) is not None


def test_replacing_a_result_leaves_the_other_runs_alone(tmp_path: Path) -> None:
    pool = tmp_path / "pool"
    first, second = (StageStore(tmp_path / name, pool) for name in "ab")
    first.put("experts", KEY, RESULT, {})
    assert second.get("experts", KEY) is not None
    first.put("experts", KEY, {"weight": torch.zeros(3)}, {})
    found = second.get("experts", KEY)
    assert found is not None
    assert torch.equal(found[0]["weight"], RESULT["weight"])


def test_a_pool_on_another_disk_is_copied_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(source: Path, target: Path) -> None:
        raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))

    monkeypatch.setattr(os, "link", refuse)
    pool = tmp_path / "pool"
    StageStore(tmp_path / "a", pool).put("experts", KEY, RESULT, {})
    store = StageStore(tmp_path / "b", pool)
    assert store.get("experts", KEY) is not None
    assert store.path("experts", KEY).read_bytes() == next(pool.iterdir()).read_bytes()


def test_a_damaged_result_of_the_pool_is_named_and_not_taken(tmp_path: Path) -> None:
    pool = tmp_path / "pool"
    StageStore(tmp_path / "a").put("experts", KEY, RESULT, {})
    store = StageStore(tmp_path / "b", pool)
    damaged = pool / store.path("experts", KEY).name
    pool.mkdir()
    content = bytearray((tmp_path / "a/stages" / damaged.name).read_bytes())
    content[-1] ^= 1
    damaged.write_bytes(content)
    with pytest.raises(UserError, match=f"{damaged}.*delete the file"):
        store.get("experts", KEY)
    assert not store.path("experts", KEY).exists()
