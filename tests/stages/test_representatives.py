"""Images that stand for their class."""

import pytest
import torch

from ltdd.stages.representatives import representatives


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


@pytest.mark.parametrize("count", [1, 2, 5, 128])
def test_a_class_with_no_more_images_than_clusters_shows_all(count: int) -> None:
    features = torch.randn(count, 3, generator=generator())
    assert representatives(features, 128, generator()).tolist() == list(range(count))


def test_every_group_has_its_middle_chosen() -> None:
    """Three groups far apart, and in each an image in the very middle."""
    around = torch.tensor([[0.0, 0.0], [1, 0], [-1, 0], [0, 1], [0, -1]])
    centres = torch.tensor([[0.0, 0.0], [100, 0], [0, 100]])
    features = (centres[:, None] + around).flatten(0, 1)
    seeds = range(20)
    found = [
        sorted(representatives(features, 3, torch.Generator().manual_seed(s)).tolist())
        for s in seeds
    ]
    assert [0, 5, 10] in found  # first centres of different groups
    for rows in found:
        assert len(set(rows)) == 3


def test_equal_images_stand_for_themselves_once() -> None:
    rows = representatives(torch.ones(10, 4), 4, generator())
    assert len(set(rows.tolist())) == 4


def test_a_cluster_costs_less_than_random_images() -> None:
    features = torch.randn(200, 8, generator=generator())
    chosen = features[representatives(features, 20, generator())]
    drawn = features[torch.randperm(200, generator=generator())[:20]]

    def cost(rows: torch.Tensor) -> float:
        return float(torch.cdist(features, rows).amin(1).square().sum())

    assert cost(chosen) < 0.95 * cost(drawn)
