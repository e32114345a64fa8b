"""Stage results in a run folder, and in the store that runs share."""

from __future__ import annotations

import errno
import os
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest
import torch
from torch import Tensor

from ltdd.engine.run_options import default_store
from ltdd.engine.storage.files import fingerprint
from ltdd.engine.storage.stage_store import StageStore, entries, limit_bytes, prune
from ltdd.errors import UserError

KEY = fingerprint("inputs")
RESULT = {"weight": torch.arange(3.0)}


def put(run: Path, store: Path, key: str = KEY, result: dict[str, Tensor] = RESULT) -> StageStore:
    """Store and share the result of a stage of a run."""
    own = StageStore(run, store)
    own.put("experts", key, result, {"seconds": 4.0})
    own.share("experts", key)
    return own


def test_a_result_reaches_the_store_and_other_runs(tmp_path: Path) -> None:
    store = tmp_path / "store"
    put(tmp_path / "a", store)
    other = StageStore(tmp_path / "b", store)
    assert not other.holds("experts", KEY)
    found = other.get("experts", KEY)
    assert found is not None
    assert torch.equal(found.tensors["weight"], RESULT["weight"])
    assert found.meta == {"seconds": 4.0}
    assert other.holds("experts", KEY)
    names = {path.relative_to(tmp_path).parts[0] for path in tmp_path.rglob("experts-*")}
    assert names == {"a", "b", "store"}
    assert len({path.stat().st_ino for path in tmp_path.rglob("experts-*")}) == 1  # stored once
    assert other.get("experts", fingerprint("other inputs")) is None
    alone = StageStore(tmp_path / "b")  # complete without the store
    (store / other.path("experts", KEY).name).unlink()
    assert alone.get("experts", KEY) is not None


def test_replacing_a_result_leaves_the_other_runs_alone(tmp_path: Path) -> None:
    store = tmp_path / "store"
    put(tmp_path / "a", store)
    second = StageStore(tmp_path / "b", store)
    assert second.get("experts", KEY) is not None
    put(tmp_path / "a", store, result={"weight": torch.zeros(3)})
    found = second.get("experts", KEY)
    assert found is not None
    assert torch.equal(found.tensors["weight"], RESULT["weight"])


def test_a_store_on_another_disk_is_copied_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(source: Path, target: Path) -> None:
        raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))

    monkeypatch.setattr(os, "link", refuse)
    store = tmp_path / "store"
    put(tmp_path / "a", store)
    other = StageStore(tmp_path / "b", store)
    assert other.get("experts", KEY) is not None
    assert other.path("experts", KEY).read_bytes() == next(store.iterdir()).read_bytes()


def test_a_damaged_result_of_the_store_is_named_and_not_taken(tmp_path: Path) -> None:
    store = tmp_path / "store"
    put(tmp_path / "a", store)
    other = StageStore(tmp_path / "b", store)
    damaged = store / other.path("experts", KEY).name
    content = bytearray(damaged.read_bytes())
    content[-1] ^= 1
    damaged.write_bytes(content)
    with pytest.raises(UserError, match=f"{damaged}.*delete the file"):
        other.get("experts", KEY)


def use(path: Path, hours_ago: float) -> None:
    when = (datetime.now(timezone.utc) - timedelta(hours=hours_ago)).timestamp()
    os.utime(path, (when, path.stat().st_mtime))


def test_the_store_forgets_what_only_it_holds_and_was_used_longest_ago(tmp_path: Path) -> None:
    store = tmp_path / "store"
    keys = [fingerprint(number) for number in range(4)]
    for number, key in enumerate(keys):
        path = put(tmp_path / str(number), store, key).path("experts", key)
        use(path, hours_ago=10 - number)
        if number != 1:  # the second run keeps its folder
            path.unlink()
    size = entries(store)[0].size
    assert [entry.alone for entry in entries(store)] == [True, False, True, True]
    # A run that takes the oldest makes it the newest.
    (taken := StageStore(tmp_path / "again", store)).get("experts", keys[0])
    taken.path("experts", keys[0]).unlink()
    removed = prune(store, 2 * size)
    assert [entry.path.name for entry in removed] == [taken.path("experts", keys[2]).name]
    left = {entry.path.name for entry in entries(store)}
    assert left == {taken.path("experts", keys[n]).name for n in (0, 1, 3)}
    prune(store, 0)
    assert [entry.alone for entry in entries(store)] == [False]


def test_sharing_keeps_the_store_below_its_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = tmp_path / "store"
    monkeypatch.setenv("LTDD_STORE_GB", "0")
    first = put(tmp_path / "a", store)
    first.path("experts", KEY).unlink()
    put(tmp_path / "b", store, fingerprint("other"))
    assert [entry.alone for entry in entries(store)] == [False]


@pytest.mark.parametrize("text", ["much", "-1", "nan"])
def test_a_limit_that_is_no_number_is_refused(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LTDD_STORE_GB", text)
    with pytest.raises(UserError, match=f"LTDD_STORE_GB: expected a number .*, got '{text}'"):
        limit_bytes()


def test_the_place_of_the_store(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/somebody")
    monkeypatch.delenv("LTDD_DATA")
    for name, place in [
        ("", "/home/somebody/.cache/ltdd/stages"),
        ("~/mine", "/home/somebody/mine"),
        ("none", None),
    ]:
        monkeypatch.setenv("LTDD_STORE", name)
        assert default_store() == (None if place is None else Path(place))
    monkeypatch.setenv("LTDD_STORE", "")
    monkeypatch.setenv("LTDD_DATA", "/scratch")
    assert default_store() == Path("/scratch/stages")
