from __future__ import annotations

import threading
from collections.abc import Iterator
from itertools import chain, islice

import numpy as np
import pytest
import torch
from torch import Tensor

from imgcls.data.loader import EvaluationPlan, Loader, TrainingPlan, run_ahead
from imgcls.errors import UserError

LABELS = np.array([0] * 30 + [1] * 9 + [2])


def positions(plan: TrainingPlan | EvaluationPlan, epoch: int = 0) -> list[list[int]]:
    return [batch.tolist() for batch, _ in plan.epoch(epoch)]


def index_loader(plan: TrainingPlan, **options: int) -> Loader[list[int]]:
    def load(positions: Tensor, draws: Tensor, epoch: int) -> list[int]:
        return positions.tolist()

    return Loader(plan, load, **options)


def loader_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("imgcls-loader")]


def test_an_epoch_has_each_image_once_without_the_last_short_step() -> None:
    plan = TrainingPlan(LABELS, 9)
    assert len(plan) == 4
    seen = list(chain.from_iterable(positions(plan)))
    assert len(seen) == len(set(seen)) == 36
    assert positions(plan, 1) != positions(plan, 0)
    assert positions(plan, 0) == positions(TrainingPlan(LABELS, 9), 0)
    assert positions(TrainingPlan(LABELS, 9, seed=1)) != positions(plan)


def test_fewer_images_than_a_batch_are_one_batch() -> None:
    assert sorted(positions(TrainingPlan(LABELS, 64))[0]) == list(range(40))


@pytest.mark.parametrize(("world_size", "accumulation"), [(1, 3), (2, 1), (3, 1), (2, 2), (4, 3)])
def test_a_step_split_over_processes_and_micro_batches_has_the_same_images(world_size: int, accumulation: int) -> None:
    whole = positions(TrainingPlan(LABELS, 13))
    plans = [
        TrainingPlan(LABELS, 13, rank=rank, world_size=world_size, accumulation=accumulation)
        for rank in range(world_size)
    ]
    assert {len(plan) for plan in plans} == {3 * accumulation}
    for step, expected in enumerate(whole):
        part = slice(step * accumulation, (step + 1) * accumulation)
        slices = [batch for plan in plans for batch in positions(plan)[part]]
        assert list(chain.from_iterable(slices)) == expected
        assert max(map(len, slices)) - min(map(len, slices)) <= 1


def test_a_batch_smaller_than_the_devices_is_an_error() -> None:
    with pytest.raises(UserError, match="to 8 or more"):
        TrainingPlan(LABELS, 7, world_size=4, accumulation=2)


def test_balanced_draws_classes_equally_often() -> None:
    plan = TrainingPlan(LABELS, 40, sampler="balanced")
    order = torch.cat([plan.order(epoch)[0] for epoch in range(100)])
    shares = np.bincount(LABELS[order.numpy()]) / len(order)
    assert np.abs(shares - 1 / 3).max() < 0.03
    assert torch.equal(plan.order(5)[0], TrainingPlan(LABELS, 40, sampler="balanced").order(5)[0])


def test_repeated_images_of_balanced_have_different_draws() -> None:
    order, draws = TrainingPlan(LABELS, 40, sampler="balanced").order(0)
    assert len(set(order.tolist())) < 40
    assert len(set(draws.tolist())) == 40
    assert torch.equal(draws & 0xFFFFFFFF, order)


def test_evaluation_has_each_image_once_over_all_processes() -> None:
    plans = [EvaluationPlan(11, 2, rank=rank, world_size=3) for rank in range(3)]
    assert positions(plans[1]) == [[1, 4], [7, 10]]
    assert sorted(index for plan in plans for batch in positions(plan) for index in batch) == list(range(11))
    empty = EvaluationPlan(1, 2, rank=1, world_size=2)
    assert (len(empty), positions(empty)) == (1, [[]])  # the others wait for its part of the metrics
    assert (len(EvaluationPlan(0, 2)), positions(EvaluationPlan(0, 2))) == (0, [])


@pytest.mark.parametrize("ahead", [0, 1, 3, 100])
def test_iterations_without_lightning_are_epochs(ahead: int) -> None:
    plan = TrainingPlan(LABELS, 8)
    loader = index_loader(plan, ahead=ahead)
    assert [list(loader) for _ in range(3)] == [positions(plan, epoch) for epoch in range(3)]


def test_an_iteration_that_was_left_early_is_repeated() -> None:
    loader = index_loader(TrainingPlan(LABELS, 8))
    assert next(iter(loader)) == next(iter(loader)) == positions(loader.plan)[0]


def test_the_state_counts_yielded_batches_and_not_those_loaded_ahead() -> None:
    loader = index_loader(TrainingPlan(LABELS, 8), ahead=4)
    loader.set_epoch(2)
    batches = iter(loader)
    assert loader.state_dict()["batches"] == 0
    next(batches)
    next(batches)
    state = loader.state_dict()
    assert (state["epoch"], state["batches"]) == (2, 2)

    other = index_loader(TrainingPlan(LABELS, 8))
    other.load_state_dict(state)
    other.set_epoch(2)
    assert list(other) == list(batches) == positions(other.plan, 2)[2:]
    other.set_epoch(3)
    assert list(other) == positions(other.plan, 3)


def test_a_state_at_the_end_of_an_epoch_leaves_no_batches() -> None:
    loader = index_loader(TrainingPlan(LABELS, 8))
    loader.load_state_dict({"epoch": 1, "batches": 5, "accumulation": 1})
    assert list(loader) == []
    assert list(loader) == positions(loader.plan, 2)


def test_a_state_is_restored_when_the_batch_is_split_differently() -> None:
    loader = index_loader(TrainingPlan(LABELS, 8, accumulation=2))
    loader.load_state_dict({"epoch": 0, "batches": 3, "accumulation": 1})
    assert list(loader) == positions(loader.plan, 0)[6:]
    with pytest.raises(UserError, match="accumulated step"):
        index_loader(TrainingPlan(LABELS, 8)).load_state_dict({"epoch": 0, "batches": 3, "accumulation": 2})


def test_loading_runs_ahead_up_to_its_limit() -> None:
    loaded: list[int] = []
    two_ahead = threading.Event()

    def load(item: int) -> int:
        loaded.append(item)
        if item == 2:
            two_ahead.set()
        return item

    items = iter(range(100))
    batches = run_ahead(load, items, 2)
    assert next(batches) == 0
    assert two_ahead.wait(30)
    assert next(items) == 3, "no more was given to the thread"
    batches.close()
    assert loaded == [0, 1, 2]
    assert loader_threads() == []


@pytest.mark.parametrize("ahead", [0, 2])
def test_an_error_is_raised_at_its_position(ahead: int) -> None:
    def load(item: int) -> int:
        if item == 2:
            raise UserError("broken")
        return item

    batches = run_ahead(load, range(5), ahead)
    assert [next(batches), next(batches)] == [0, 1]
    with pytest.raises(UserError, match="broken"):
        next(batches)
    assert loader_threads() == []


def test_an_abandoned_iterator_ends_its_thread() -> None:
    def use() -> Iterator[list[int]]:
        return islice(index_loader(TrainingPlan(LABELS, 2)), 3)

    assert len(list(use())) == 3
    assert loader_threads() == []
