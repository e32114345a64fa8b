"""Soft labels in few bytes: what is kept, what it costs, and that bad parts are refused."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from helpers.saved_set import save_set
from hypothesis import given
from hypothesis import strategies as st
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from ltdd.config import RelabelingConfig
from ltdd.data.image_spec import ImageSet
from ltdd.data.packed_logits import PackedLogits, check_packing, pack, packed_bytes
from ltdd.errors import UserError
from ltdd.results.distilled_set import load


def settings(packing: str, top: int = 3) -> RelabelingConfig:
    return RelabelingConfig(packing=packing, packing_top=top)


@pytest.fixture(scope="module")
def logits() -> Tensor:
    """Logits of a linear classifier for 300 real digits."""
    digits = load_digits()
    model = LogisticRegression(max_iter=500).fit(digits.data[:600] / 16, digits.target[:600])
    return torch.from_numpy(model.decision_function(digits.data[600:900] / 16)).float()


def test_no_packing_keeps_every_bit(logits: Tensor) -> None:
    packed = pack(logits, settings("none"))
    assert packed.packing == "none"
    assert torch.equal(packed[:], logits)


def test_fp16_takes_two_bytes_and_rounds(logits: Tensor) -> None:
    packed = pack(logits, settings("fp16"))
    assert packed.nbytes == 2 * logits.numel()
    assert torch.equal(packed[:], logits.half().float())
    assert float((packed[:] - logits).abs().max()) <= float(logits.abs().max()) * 2**-11


def test_topk_keeps_the_largest_and_the_mean_of_the_others(logits: Tensor) -> None:
    packed = pack(logits, settings("topk"))
    full = packed[:]
    assert full.shape == packed.shape == logits.shape
    assert torch.equal(full.argmax(1), logits.argmax(1))
    kept = torch.zeros_like(logits, dtype=torch.bool).scatter(1, logits.topk(3).indices, True)
    assert torch.equal(full[kept], logits.half().float()[kept])
    others = logits.masked_fill(kept, 0).sum(1) / 7
    torch.testing.assert_close(
        full[~kept].view(-1, 7), others[:, None].expand(-1, 7), rtol=1e-3, atol=2e-3
    )
    torch.testing.assert_close(full.mean(1), logits.mean(1), rtol=1e-3, atol=2e-3)
    # Of all constants the mean is the nearest: no other one has a smaller squared error.
    error = ((full - logits) ** 2).mean()
    for shift in (-0.05, 0.05):
        moved = torch.where(kept, full, full + shift)
        assert ((moved - logits) ** 2).mean() > error


@pytest.mark.parametrize("packing", ["none", "fp16", "topk"])
@pytest.mark.parametrize("classes", [10, 300])
def test_bytes_are_known_before(packing: str, classes: int) -> None:
    table = torch.randn(4, 6, classes, generator=torch.Generator().manual_seed(0)).half()
    packed = pack(table, settings(packing))
    assert packed.nbytes == packed_bytes(settings(packing), 24, classes, 2)
    assert packed.shape == table.shape
    assert torch.equal(packed[2, 1:3], packed[:][2, 1:3])


@given(st.lists(st.integers(-3, 3), min_size=5, max_size=5), st.integers(1, 4))
def test_packing_again_changes_nothing(row: list[int], top: int) -> None:
    """Ties included: equal logits give equal bytes, and packed labels stay as they are."""
    logits = torch.tensor([row, row], dtype=torch.float32)
    packed = pack(logits, settings("topk", top))
    assert all(torch.equal(part[0], part[1]) for part in packed.tensors("x").values())
    assert torch.equal(pack(packed[:], settings("topk", top))[:], packed[:])


@pytest.mark.parametrize("packing", ["fp16", "topk"])
def test_a_shift_is_subtracted_when_rows_are_read(logits: Tensor, packing: str) -> None:
    packed, shift = pack(logits, settings(packing)), torch.linspace(-1, 1, 10)
    moved = dataclasses.replace(packed, shift=shift)
    assert torch.equal(moved[3:5], packed[3:5] - shift)
    back = PackedLogits.from_tensors("logits", moved.tensors("logits"), 10)
    assert torch.equal(back[:], packed[:] - shift)
    with pytest.raises(UserError, match=r"shift float32 \(9,\)"):
        dataclasses.replace(packed, shift=shift[:9])


def test_too_large_logits_and_too_many_kept_are_refused() -> None:
    with pytest.raises(UserError, match="within float16's range, got 70000"):
        pack(torch.tensor([[7e4, 0.0]]), settings("fp16"))
    with pytest.raises(UserError, match="fewer than the 3 classes, got 3"):
        pack(torch.zeros(1, 3), settings("topk"))
    check_packing(settings("fp16"), 3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"logits": None}, "a tensor 'logits', got none"),
        ({"logits": torch.zeros(2, 3, dtype=torch.int64)}, "int64"),
        ({"logits_rest": None}, "parts of packed ones"),
        ({"logits_classes": None}, "parts of packed ones"),
        ({"logits_classes": torch.zeros(2, 3, dtype=torch.int16)}, "int16"),
        ({"logits_classes": torch.full((2, 3), 10, dtype=torch.uint8)}, "from 0 to 9, got 10"),
        ({"logits_rest": torch.zeros(3, dtype=torch.float16)}, r"rest float16 \(3,\)"),
    ],
)
def test_parts_that_do_not_fit_are_refused(change: dict[str, Tensor | None], message: str) -> None:
    parts = {
        "logits": torch.zeros(2, 3, dtype=torch.float16),
        "logits_classes": torch.zeros(2, 3, dtype=torch.uint8),
        "logits_rest": torch.zeros(2, dtype=torch.float16),
    }
    assert PackedLogits.from_tensors("logits", parts, 10).packing == "topk"
    given = {name: part for name, part in (parts | change).items() if part is not None}
    with pytest.raises(UserError, match=message):
        PackedLogits.from_tensors("logits", given, 10)


def save(out: Path, logits: Tensor | PackedLogits, fkd: PackedLogits | None = None) -> None:
    digits = load_digits()
    images = torch.from_numpy(digits.images[600:900] * 15).to(torch.uint8).unsqueeze(1)
    shown = ImageSet(images, torch.from_numpy(digits.target[600:900]))
    names, counts = [str(c) for c in range(10)], list(range(20, 10, -1))
    save_set(out, shown, logits, names, counts, fkd)


@pytest.mark.parametrize("packing", ["none", "fp16", "topk"])
def test_a_set_comes_back_with_its_labels(tmp_path: Path, logits: Tensor, packing: str) -> None:
    packed = pack(logits, settings(packing))
    views = pack(torch.stack([logits, -logits]).half(), settings(packing))
    save(tmp_path, packed, views)
    distilled = load(tmp_path)
    assert torch.equal(distilled.logits, packed[:])
    table = distilled.fkd_logits()
    assert table is not None
    assert torch.equal(table[:], views[:])
    described = distilled.manifest["soft_labels"]
    assert described["static"] == {"shape": [300, 10], "packing": packing, "bytes": packed.nbytes}
    assert described["fkd"]["bytes"] == views.nbytes
    content = (tmp_path / "data.safetensors").read_bytes()
    save(tmp_path, packed, views)
    assert (tmp_path / "data.safetensors").read_bytes() == content


def test_labels_of_other_images_are_refused(tmp_path: Path, logits: Tensor) -> None:
    save(tmp_path, logits, pack(logits[None, :7], settings("fp16")))
    with pytest.raises(UserError, match=r"expected logits \(epochs, 300, 10\) .* got \(1, 7, 10\)"):
        load(tmp_path).fkd_logits()
