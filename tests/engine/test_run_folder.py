"""Atomic files, the stage store, the run lock and the distilled set."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.saved_set import SPLIT, save_set
from sklearn.datasets import load_digits

from ltdd.config import DistillConfig, ExpertsConfig
from ltdd.data.image_spec import ImageSet, Normalization
from ltdd.engine.storage.files import (
    fingerprint,
    read_json,
    read_tensors,
    write_json,
    write_tensors,
)
from ltdd.engine.storage.run_folder import RunLock, open_run
from ltdd.engine.storage.stage_store import StageStore
from ltdd.engine.watching.events import EventLog, read_events
from ltdd.errors import UserError
from ltdd.results.distilled_set import load, record_files


def digits_set(out: Path, **changes: Any) -> dict[str, Any]:
    """Save 20 real digits, two of each class, as if they were distilled."""
    digits = load_digits()
    order = np.concatenate([np.flatnonzero(digits.target == c)[:2] for c in range(10)])
    images = torch.from_numpy(digits.images[order] / 16 * 255).round().to(torch.uint8)
    labels = torch.from_numpy(digits.target[order]).long()
    images = changes.pop("images", images.unsqueeze(1))
    parts: dict[str, object] = {
        "shown": ImageSet(images, changes.pop("labels", labels)),
        "logits": torch.nn.functional.one_hot(labels, 10).float() * 3,
        "class_names": [str(c) for c in range(10)],
        "counts": list(range(20, 10, -1)),
    }
    return save_set(out, **(parts | changes))  # type: ignore[arg-type]


def test_fingerprint_ignores_order_and_sees_values() -> None:
    assert fingerprint({"a": 1, "b": (1, 2)}) == fingerprint({"b": [1, 2], "a": 1})
    assert fingerprint(ExpertsConfig()) == fingerprint(dataclasses.asdict(ExpertsConfig()))
    assert fingerprint(ExpertsConfig()) != fingerprint(ExpertsConfig(epochs=1))
    with pytest.raises(ValueError, match="JSON compliant"):
        fingerprint(float("nan"))


def test_tensor_files_are_equal_for_equal_content_in_every_process(tmp_path: Path) -> None:
    code = (
        "import sys, torch; from pathlib import Path\n"
        "from ltdd.engine.storage.files import write_tensors\n"
        "x = torch.arange(24.).view(1, 2, 3, 4)\n"
        "write_tensors(Path(sys.argv[1]), {'x': x.to(memory_format=torch.channels_last),"
        " 'slice': x[..., 1:]}, {k: k for k in 'qwertyuiop'})\n"
    )
    files = [tmp_path / f"{i}.safetensors" for i in range(3)]
    for file in files:
        subprocess.run([sys.executable, "-c", code, file], check=True)
    assert len({file.read_bytes() for file in files}) == 1
    tensors, metadata = read_tensors(files[0])
    assert torch.equal(tensors["x"], torch.arange(24.0).view(1, 2, 3, 4))
    assert metadata == {k: k for k in "qwertyuiop"}


def test_damaged_files_are_named(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    with pytest.raises(UserError, match=r"cannot read .*x\.safetensors: No such file"):
        read_tensors(path)
    write_tensors(path, {"x": torch.ones(100)}, {})
    path.write_bytes(path.read_bytes()[:-7])
    with pytest.raises(UserError, match="expected a safetensors file"):
        read_tensors(path)
    for content in (b"{", b"\xff\xfe", b"[" * 100_000):
        (tmp_path / "x.json").write_bytes(content)
        with pytest.raises(UserError, match="expected JSON"):
            read_json(tmp_path / "x.json")
    (tmp_path / "x.json").write_text("[]")
    with pytest.raises(UserError, match="JSON object"):
        read_json(tmp_path / "x.json")


def test_a_failed_write_keeps_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    write_json(path, {"accuracy": 0.5})
    with pytest.raises(ValueError, match="JSON compliant"):
        write_json(path, {"accuracy": float("nan")})
    with pytest.raises(UserError, match="cannot write"):
        write_json(path / "below" / "a_file.json", {})
    assert read_json(path) == {"accuracy": 0.5}
    assert [p.name for p in tmp_path.iterdir()] == ["results.json"]


def test_a_full_disk_is_one_sentence(tmp_path: Path) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("needs /dev/full")
    path = tmp_path / "x.json"
    temporary = tmp_path / f".x.json.{os.getpid()}.tmp"
    temporary.symlink_to("/dev/full")
    with pytest.raises(UserError, match="No space left on device"):
        write_json(path, {"x": 1})
    assert list(tmp_path.iterdir()) == []


def test_a_killed_writer_never_leaves_half_a_file(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    code = (
        "import sys, torch; from pathlib import Path\n"
        "from ltdd.engine.storage.files import write_tensors\n"
        "for i in range(10**6):\n"
        "    write_tensors(Path(sys.argv[1]), {'x': torch.full((200_000,), float(i))}, {})\n"
    )
    for _ in range(3):
        previous = path.stat().st_mtime_ns if path.exists() else 0
        writer = subprocess.Popen([sys.executable, "-c", code, path])
        while not path.exists() or path.stat().st_mtime_ns == previous:
            assert writer.poll() is None
            time.sleep(0.01)
        time.sleep(0.05)
        writer.send_signal(signal.SIGKILL)
        writer.wait()
        x = read_tensors(path)[0]["x"]
        assert x.shape == (200_000,)
        assert bool((x == x[0]).all())


def test_stage_store_returns_what_was_put_under_the_same_key(tmp_path: Path) -> None:
    store = StageStore(tmp_path)
    key, other = fingerprint("a"), fingerprint("b")
    assert store.get("experts", key) is None
    store.put("experts", key, {"w": torch.eye(2)}, {"arch": "resnet18", "n": [1, 2]})
    stored = store.get("experts", key) or pytest.fail("not found")
    assert torch.equal(stored.tensors["w"], torch.eye(2))
    assert stored.meta == {"arch": "resnet18", "n": [1, 2]}
    assert store.get("experts", other) is None
    assert store.get("recovery", key) is None
    # equal first digits do not make an equal key
    assert store.get("experts", key[:16] + other[16:]) is None


def test_event_log_goes_on_after_half_a_line(tmp_path: Path) -> None:
    path = tmp_path / "run" / "events.jsonl"
    EventLog(path).write("train", epoch=0, loss=1.5)
    with path.open("a") as file:
        file.write('{"event": "tra')
    EventLog(path).write("train", epoch=1, loss=1.0)
    events = read_events(path)
    assert [(e["event"], e["epoch"], e["loss"]) for e in events] == [
        ("train", 0, 1.5),
        ("train", 1, 1.0),
    ]
    assert all(e["time"].endswith("+00:00") for e in events)


def test_a_run_folder_takes_only_its_own_run(tmp_path: Path) -> None:
    out = tmp_path / "new" / "run"
    config = DistillConfig().to_dict()
    with open_run(out, config, SPLIT):
        (out / ".results.json.1.tmp").write_text("{")
    with open_run(out, config, SPLIT):
        assert not (out / ".results.json.1.tmp").exists()
    changed = config | {"recovery": config["recovery"] | {"iterations": 7}}
    message = r"different run, with recovery.iterations = 2000 \(now 7\); choose another --out"
    with pytest.raises(UserError, match=message):
        open_run(out, changed, SPLIT)
    with pytest.raises(UserError, match=r"other training images \(split abababababab, now cd"):
        open_run(out, config, "cd" * 32)
    assert read_json(out / "run.json")["config"] == config


def test_foreign_folders_and_files_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("precious")
    with pytest.raises(UserError, match=r"holds 'thesis.tex'; choose another --out"):
        open_run(tmp_path, {}, SPLIT)
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]
    with pytest.raises(UserError, match="expected a folder, got the file"):
        open_run(tmp_path / "thesis.tex", {}, SPLIT)
    with pytest.raises(UserError, match="cannot create"):
        open_run(tmp_path / "thesis.tex" / "run", {}, SPLIT)


def test_a_run_begun_by_another_process_meanwhile_is_not_foreign(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = Path.glob

    def begin_and_list(self: Path, pattern: str) -> list[Path]:
        monkeypatch.setattr(Path, "glob", original)
        open_run(self, {}, SPLIT).release()
        return list(self.glob(pattern))

    monkeypatch.setattr(Path, "glob", begin_and_list)
    open_run(tmp_path, {}, SPLIT).release()
    assert Path.glob is original


def test_a_second_process_is_refused_and_a_killed_one_is_taken_over(tmp_path: Path) -> None:
    code = (
        "import sys, time; from pathlib import Path\n"
        "from ltdd.engine.storage.run_folder import open_run\n"
        "lock = open_run(Path(sys.argv[1]), {}, 's'); print('held', flush=True); time.sleep(60)\n"
    )
    holder = subprocess.Popen([sys.executable, "-c", code, tmp_path], stdout=subprocess.PIPE)
    assert holder.stdout is not None
    assert holder.stdout.readline() == b"held\n"
    with pytest.raises(UserError, match=rf"in use by process {holder.pid} on .* since 20"):
        open_run(tmp_path, {}, "s")
    holder.kill()
    holder.wait()
    holder.stdout.close()
    with open_run(tmp_path, {}, "s"), pytest.raises(UserError, match=f"process {os.getpid()} on"):
        RunLock(tmp_path)


def test_a_distilled_set_comes_back(tmp_path: Path) -> None:
    digits_set(tmp_path)
    distilled = load(tmp_path, class_names=[str(c) for c in range(10)])
    assert len(distilled) == 20
    assert distilled.images.shape == (20, 1, 8, 8)
    assert distilled.images.dtype == torch.uint8
    assert distilled.class_names[3] == "3"
    assert distilled.normalization == ((0.3,), (0.4,))
    assert distilled.results is None
    assert distilled.manifest["counts"][0] == 20
    assert set(distilled.manifest["versions"]) == {"ltdd", "torch", "python"}
    write_json(tmp_path / "results.json", {"student": {}})
    record_files(tmp_path, ["results.json"])
    assert load(tmp_path).results == {"student": {}}


def test_loader_normalises_covers_and_repeats(tmp_path: Path) -> None:
    digits_set(tmp_path)
    distilled = load(tmp_path)
    batches = list(distilled.loader(8, shuffle=False))
    assert [len(labels) for _, labels, _ in batches] == [8, 8, 4]
    images = torch.cat([images for images, _, _ in batches])
    torch.testing.assert_close(images * 0.4 + 0.3, distilled.images.float() / 255)
    orders = [
        torch.cat([logits for _, _, logits in distilled.loader(8, seed=seed)]) for seed in (0, 0, 1)
    ]
    assert torch.equal(orders[0], orders[1])
    assert not torch.equal(orders[0], orders[2])
    assert torch.equal(orders[0].sum(0), distilled.logits.sum(0))


@pytest.mark.parametrize("name", ["data.safetensors", "teacher.safetensors"])
def test_changed_or_missing_files_are_refused(tmp_path: Path, name: str) -> None:
    write_tensors(tmp_path / "teacher.safetensors", {"w": torch.ones(4)}, {})
    digits_set(tmp_path)
    record_files(tmp_path, ["teacher.safetensors"])
    content = bytearray((tmp_path / name).read_bytes())
    content[-1] ^= 1
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=f"{name} differs from its SHA-256"):
        load(tmp_path)
    (tmp_path / name).unlink()
    with pytest.raises(UserError, match=f"expected the file .*{name}"):
        load(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": "other"}, "expected format 'ltdd-distilled-set'"),
        ({"format_version": 3}, "version 3"),
        ({"files": {}}, "expected data.safetensors among"),
        ({"files": {"../x": {}, "data.safetensors": {}}}, "inside"),
        ({"files": {"data.safetensors": {}}}, "incomplete"),
        ({"class_names": None}, "incomplete"),
        ({"class_names": ["a"] * 10}, "different class names"),
        ({"class_names": ["a", "b"]}, r"expected logits .*\(\.\.\., 2\)"),
        ({"normalization": {"mean": [0.5]}}, "incomplete"),
        ({"normalization": {"mean": [0, 0], "std": [1, 1]}}, "each of 1 channels"),
        ({"normalization": {"mean": [0], "std": [0]}}, "positive std"),
    ],
)
def test_hostile_manifests_are_refused(
    tmp_path: Path, change: dict[str, object], message: str
) -> None:
    manifest = digits_set(tmp_path)
    (tmp_path / "manifest.json").write_text(json.dumps(manifest | change))
    with pytest.raises(UserError, match=message):
        load(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"images": torch.zeros(20, 1, 8, 8)}, "images uint8"),
        ({"images": torch.zeros(0, 1, 8, 8, dtype=torch.uint8)}, "M > 0"),
        ({"labels": torch.zeros(20)}, "labels int64"),
        ({"labels": torch.full((20,), -1)}, "labels from 0 to 9, got -1"),
        ({"logits": torch.zeros(20, 9)}, "logits float32"),
        ({"logits": torch.full((20, 10), torch.nan)}, "finite logits"),
        ({"normalization": Normalization((0.1, 0.2), (1.0, 1.0))}, "each of 1 channels"),
    ],
)
def test_parts_that_do_not_fit_are_not_written(
    tmp_path: Path, change: dict[str, object], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        digits_set(tmp_path, **change)
    assert list(tmp_path.iterdir()) == []


def test_another_class_order_is_refused(tmp_path: Path) -> None:
    digits_set(tmp_path)
    order = ["0", "2", "1", *map(str, range(3, 10))]
    with pytest.raises(UserError, match="expected class 1 to be '2', the set has '1'"):
        load(tmp_path, class_names=order)
    with pytest.raises(UserError, match="expected class 9 to be None, the set has '9'"):
        load(tmp_path, class_names=[str(c) for c in range(9)])
    with pytest.raises(UserError, match="expected a distilled set in"):
        load(tmp_path / "nowhere")
