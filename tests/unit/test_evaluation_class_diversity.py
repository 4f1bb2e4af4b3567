"""Diversity within classes is what all pairs of a class say, from sums that any number of processes can share."""

import pytest
import torch

from scalegan.evaluation.class_diversity import ClassSums, diversity_in_class


def thumbs(count: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, 256, (count, 32, 32), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)


def by_pairs(images: torch.Tensor) -> float:
    """Root mean square difference over all pairs, pair by pair."""
    return float((torch.pdist(images.flatten(1).double()).square().mean() / 1024).sqrt())


def test_it_is_the_root_mean_square_over_all_pairs_of_a_class():
    images, labels = thumbs(30), torch.tensor([0] * 12 + [1] * 2 + [2] * 16)
    images[labels == 2] //= 4
    found = ClassSums.of(images, labels, 3).diversity()
    assert found.tolist() == pytest.approx([by_pairs(images[labels == c]) for c in range(3)], rel=1e-12)


def test_two_images_differ_by_what_they_differ():
    pair = torch.stack([torch.full((32, 32), 10, dtype=torch.uint8), torch.full((32, 32), 50, dtype=torch.uint8)])
    assert ClassSums.of(pair, torch.zeros(2, dtype=torch.int64), 1).diversity().tolist() == [40.0]


def test_the_parts_of_several_processes_add_up_to_the_same_bits():
    images, labels = thumbs(40), torch.arange(40) % 4
    whole, parts = ClassSums.of(images, labels, 4), ClassSums.none(4)
    for rows in torch.randperm(40, generator=torch.Generator().manual_seed(1)).split(7):
        parts.add(images[rows], labels[rows])
    assert torch.equal(whole.diversity(), parts.diversity())


def test_copies_do_not_differ_at_all():
    assert ClassSums.of(thumbs(1).expand(9, -1, -1), torch.zeros(9, dtype=torch.int64), 1).diversity().tolist() == [0.0]


def test_only_classes_with_two_images_on_both_sides_count():
    images, labels = thumbs(6), torch.tensor([0, 0, 0, 1, 2, 2])
    ours, real = ClassSums.of(images, labels, 4), ClassSums.of(thumbs(5, 1), torch.tensor([0, 0, 1, 1, 2]), 4)
    figures = diversity_in_class(ours, real)
    assert figures["diversity_in_class"] == pytest.approx(by_pairs(images[:3]))
    assert figures["diversity_in_class_real"] == pytest.approx(by_pairs(thumbs(5, 1)[:2]))
    assert diversity_in_class(ours, ClassSums.of(images[:1], labels[:1], 4)) == {}
