from __future__ import annotations

import numpy as np
import torch

from imgcls.data.randomness import Draws, splitmix64


def reference(value: int) -> int:
    mask = (1 << 64) - 1
    value &= mask
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & mask
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & mask
    return value ^ (value >> 31)


def test_splitmix64_equals_the_published_one() -> None:
    values = [0, 1, -1, 123456789, -(1 << 63), (1 << 63) - 1]
    ours = [value & ((1 << 64) - 1) for value in splitmix64(torch.tensor(values)).tolist()]
    assert ours == [reference(value) for value in values]


def test_numbers_do_not_depend_on_the_rest_of_the_batch() -> None:
    many = Draws.of(1, 2, torch.arange(100)).stream("flip").uniform(3)
    alone = Draws.of(1, 2, torch.tensor([41])).stream("flip").uniform(3)
    assert torch.equal(many[41:42], alone)


def test_numbers_are_the_same_in_every_version() -> None:
    drawn = Draws.of(0, 0, torch.arange(2)).stream("flip").uniform(2)
    assert drawn.tolist() == Draws.of(0, 0, torch.arange(2)).stream("flip").uniform(4)[:, :2].tolist()
    assert drawn.flatten().mul(2**24).to(torch.int64).tolist() == [6354833, 7233674, 13890331, 256077]


def test_seed_epoch_image_and_name_each_change_the_numbers() -> None:
    pictures = torch.arange(5)
    base = Draws.of(0, 0, pictures).stream("a").uniform(2)
    others = [
        Draws.of(1, 0, pictures).stream("a").uniform(2),
        Draws.of(0, 1, pictures).stream("a").uniform(2),
        Draws.of(0, 0, pictures + 5).stream("a").uniform(2),
        Draws.of(0, 0, pictures).stream("b").uniform(2),
    ]
    assert all((base != other).all() for other in others)


def test_uniform_and_independent() -> None:
    drawn = Draws.of(3, 1, torch.arange(20_000)).stream("x").uniform(4).double()
    assert drawn.min() >= 0
    assert drawn.max() < 1
    counts = torch.histc(drawn[:, 0], 100, 0, 1)
    assert ((counts - 200) ** 2 / 200).sum() < 150  # chi-square with 99 degrees of freedom: 150 has p = 0.0007
    # neighbours in slot, image, epoch and seed
    other_epoch = Draws.of(3, 2, torch.arange(20_000)).stream("x").uniform(1).double()[:, 0]
    other_seed = Draws.of(4, 1, torch.arange(20_000)).stream("x").uniform(1).double()[:, 0]
    first = drawn[:, 0]
    for other in (drawn[:, 1], drawn[:, 3], first.roll(1), other_epoch, other_seed):
        assert abs(np.corrcoef(first, other)[0, 1]) < 0.03


def test_ranges() -> None:
    draws = Draws.of(0, 0, torch.arange(1000))
    assert draws.uniform(1, -2, 3).min() >= -2
    assert draws.uniform(1, -2, 3).max() < 3
    assert sorted(set(draws.integers(1, 5).flatten().tolist())) == [0, 1, 2, 3, 4]
    assert len(draws.of_pictures(torch.tensor([1, 2]))) == 2
