"""Label calibration takes out exactly the prior that was put in."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from helpers.tiny_run import FINISHED, QUIET
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ltdd import load, pipeline
from ltdd.config import RelabelingConfig
from ltdd.results.verify import verify
from ltdd.stages.label_calibration import (
    calibration_strength,
    confidence_spread,
    label_shift,
    log_prior,
)

profiles = st.lists(st.integers(1, 5000), min_size=3, max_size=12).filter(
    lambda counts: max(counts) >= 3 * min(counts)
)


def bayes_problem(counts: list[int], strength: float, seed: int) -> tuple[Tensor, Tensor]:
    """Return logits and labels of a Bayes classifier that believes in the classes' prior.

    Class i is a normal distribution around the i-th axis. The images of every class are those of
    class 0 with the axes turned, so without a prior the classifier treats all classes alike.
    """
    classes, per_class, distance = len(counts), 20, 2.0
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(per_class, classes, generator=generator, dtype=torch.float64)
    first = noise + distance * torch.eye(classes, dtype=torch.float64)[0]
    images = torch.cat([first.roll(label, dims=1) for label in range(classes)])
    likelihood = distance * images  # up to what is the same for all classes
    labels = torch.arange(classes).repeat_interleave(per_class)
    return likelihood + strength * log_prior(counts), labels


@settings(max_examples=40, deadline=None)
@given(profiles, st.floats(0.1, 1.9), st.integers(0, 2**32))
def test_the_strength_of_the_prior_is_recovered(
    counts: list[int], strength: float, seed: int
) -> None:
    logits, labels = bayes_problem(counts, strength, seed)
    assert calibration_strength(logits, labels, counts) == pytest.approx(strength, abs=1e-3)


@settings(max_examples=20, deadline=None)
@given(profiles, st.integers(0, 2**32))
def test_a_bayes_classifier_needs_the_whole_prior(counts: list[int], seed: int) -> None:
    logits, labels = bayes_problem(counts, 1.0, seed)
    tau = calibration_strength(logits, labels, counts)
    assert tau == pytest.approx(1, abs=1e-3)
    assert confidence_spread(logits, labels, log_prior(counts), tau) <= 1e-4
    fair, _ = bayes_problem(counts, 0.0, seed)
    torch.testing.assert_close(
        (logits - label_shift(tau, counts)).softmax(1), fair.softmax(1), atol=1e-3, rtol=0
    )


def test_nothing_is_done_where_nothing_is_gained() -> None:
    fair, labels = bayes_problem([500, 50, 5], 0.0, 0)
    assert calibration_strength(fair, labels, [500, 50, 5]) == pytest.approx(0, abs=1e-4)
    tail_heavy, labels = bayes_problem([500, 50, 5], -0.5, 0)  # asks for less than nothing
    assert calibration_strength(tail_heavy, labels, [500, 50, 5]) == 0
    prior_shifted, labels = bayes_problem([500, 50, 5], 1.0, 0)
    assert calibration_strength(prior_shifted, labels, [7, 7, 7]) == 0  # no prior to take out


def test_the_search_ends_at_its_bound() -> None:
    logits, labels = bayes_problem([500, 50, 5], 3.0, 0)
    assert calibration_strength(logits, labels, [500, 50, 5]) == pytest.approx(2, abs=1e-4)


def test_the_shift_is_the_scaled_log_prior() -> None:
    shift = label_shift(0.5, [90, 9, 1])
    expected = 0.5 * torch.tensor([0.9, 0.09, 0.01]).log()
    torch.testing.assert_close(shift, expected)
    assert label_shift(0.0, [90, 9, 1]).abs().max() == 0


def test_a_given_strength_is_taken_from_every_label(tmp_path: Path) -> None:
    """Static and stored labels alike; the set says so and verifies."""
    plain = dataclasses.replace(FINISHED, relabeling=RelabelingConfig(packing="none"))
    relabeling = RelabelingConfig(packing="none", prior=0.5)
    pipeline.distill(plain, tmp_path / "plain", options=QUIET)
    results = pipeline.distill(
        dataclasses.replace(plain, relabeling=relabeling), tmp_path / "given", options=QUIET
    )
    own, shifted = load(tmp_path / "plain"), load(tmp_path / "given")
    shift = label_shift(0.5, own.manifest["counts"])
    torch.testing.assert_close(shifted.logits, own.logits - shift)
    torch.testing.assert_close(shifted.fkd_logits()[:], own.fkd_logits()[:] - shift)
    assert results["calibration"] == {"method": "none", "tau": 0.5}
    assert all(finding.problem is None for finding in verify(tmp_path / "given"))


def test_calibration_goes_on_from_what_is_taken_already(tmp_path: Path) -> None:
    plain = dataclasses.replace(FINISHED, relabeling=RelabelingConfig(calibration="adsa"))
    also = dataclasses.replace(plain, relabeling=RelabelingConfig(calibration="adsa", prior=0.05))
    taken = [
        pipeline.distill(config, tmp_path / name, options=QUIET)["calibration"]["tau"]
        for name, config in (("plain", plain), ("also", also))
    ]
    assert taken[1] >= 0.05
    assert taken[1] == pytest.approx(max(taken[0], 0.05), abs=2e-3)
