"""Learning rate and weight decay of each parameter, and the schedules."""

import functools
import itertools
import math
from typing import Any

import pytest
import torch
from torch.optim.lr_scheduler import LambdaLR, OneCycleLR, ReduceLROnPlateau, StepLR

from imgcls.errors import UserError
from imgcls.models.optim import SGD, Adam, AdamW, Optim, Timm
from imgcls.models.schedules import Schedule

from .helpers import network


def rates(optim: Optim, name: str = "test_resnet") -> dict[str, tuple[float, float]]:
    net = network(name)
    names = {id(parameter): key for key, parameter in net.named_parameters()}
    found = {
        names[id(parameter)]: (group["lr"], group["weight_decay"])
        for group in optim.parameter_groups(net)
        for parameter in group["params"]
    }
    assert found.keys() == dict(net.named_parameters()).keys()
    return found


def test_norms_and_biases_are_not_decayed() -> None:
    found = rates(AdamW(lr=1.0, weight_decay=0.1))
    assert found["backbone.conv1.0.weight"] == (1.0, 0.1)
    assert found["backbone.bn1.weight"] == found["head.1.bias"] == (1.0, 0.0)
    assert found["head.1.weight"] == (1.0, 0.1)


def test_position_embeddings_are_not_decayed() -> None:
    assert rates(AdamW(lr=1.0, weight_decay=0.1), "test_vit")["backbone.pos_embed"] == (1.0, 0.0)


def test_the_backbone_can_be_slower_than_the_head() -> None:
    found = rates(SGD(lr=1.0, backbone_lr_scale=0.1))
    assert found["backbone.conv1.0.weight"][0] == pytest.approx(0.1)
    assert found["head.1.weight"][0] == 1.0


@pytest.mark.parametrize("name", ["test_resnet", "test_vit"])
def test_layers_further_from_the_head_are_slower(name: str) -> None:
    found = rates(AdamW(lr=1.0, layer_decay=0.5), name)
    assert found["head.1.weight"][0] == 1.0
    seen = {rate for key, (rate, _) in found.items() if key.startswith("backbone.")}
    assert max(seen) == 0.5
    assert {math.log2(rate) % 1 for rate in seen} == {0.0}
    first = "backbone.conv1.0.weight" if name == "test_resnet" else "backbone.patch_embed.proj.weight"
    assert found[first][0] == min(seen) < 0.1


def test_norms_can_be_faster_and_be_decayed() -> None:
    found = rates(SGD(lr=0.5, weight_decay=0.1, norm_lr_scale=4.0, decay_biases=True))
    assert found["backbone.bn1.bias"] == (2.0, 0.1)
    assert found["backbone.conv1.0.weight"] == found["head.1.bias"] == (0.5, 0.1)


def test_decoupled_rates_do_not_depend_on_the_momentum() -> None:
    """The length of a late step along a constant gradient, and the decay per step, for groups of any rate."""
    for momentum in (0.0, 0.5, 0.9):
        for scale in (1.0, 8.0):
            optim = SGD(lr=0.25, weight_decay=0.01, momentum=momentum, decoupled=True)
            rates = optim.rates(scale, optim.weight_decay)
            weight = torch.nn.Parameter(torch.zeros(()))
            optimizer = torch.optim.SGD([weight], momentum=momentum, nesterov=momentum > 0, lr=rates["lr"])
            for _ in range(200):
                before = weight.item()
                weight.grad = torch.ones(())
                optimizer.step()
            assert before - weight.item() == pytest.approx(0.25 * scale, rel=1e-3)
            decayed = torch.nn.Parameter(torch.ones((), dtype=torch.float64))
            optimizer = torch.optim.SGD([decayed], momentum=momentum, nesterov=momentum > 0, **rates)
            for _ in range(300):
                before = decayed.item()
                decayed.grad = torch.zeros((), dtype=torch.float64)
                optimizer.step()
            assert 1 - decayed.item() / before == pytest.approx(0.01, rel=0.15)


def test_frozen_parameters_are_not_in_the_optimiser() -> None:
    net = network()
    net.backbone.requires_grad_(False)
    optimizer, _ = AdamW().build(net, 10, 5)
    trained = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    assert trained == {id(parameter) for parameter in net.head.parameters()}


@pytest.mark.parametrize("optim", [AdamW(lr=0.01), Adam(lr=0.01), SGD(lr=0.01), SGD(lr=0.01, momentum=0.0)])
def test_every_optimiser_lowers_a_loss_fused_or_not(optim: Optim) -> None:
    for fused in (False, True):
        net = network()
        images = torch.randn(8, 3, 32, 32)
        optimizer, schedule = optim.build(net, 10, 5, fused=fused)
        losses = []
        for _ in range(10):
            loss = net(images).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            losses.append(loss.item())
        assert losses[-1] < losses[0]


def test_onecycle_keeps_the_configured_momentum() -> None:
    optimizer, schedule = SGD(lr=0.1, momentum=0.6, schedule="onecycle").build(network(), 20, 10)
    for _ in range(20):
        assert {group["momentum"] for group in optimizer.param_groups} == {0.6}
        optimizer.step()
        schedule.step()


def test_cosine_warms_up_and_falls_to_its_final_ratio() -> None:
    schedule = Schedule("cosine", steps=100, warmup=10, final_ratio=0.1)
    factors = [schedule(step) for step in range(101)]
    assert factors[0] < factors[5] < factors[10] == 1.0
    assert factors[55] == pytest.approx(0.55)
    assert factors[100] == pytest.approx(0.1)
    assert all(later <= earlier for earlier, later in itertools.pairwise(factors[10:]))


def test_linear_rises_from_its_initial_ratio_and_falls_to_its_final_ratio() -> None:
    schedule = Schedule("linear", steps=100, warmup=20, final_ratio=0.1, initial_ratio=0.2)
    factors = [schedule(step) for step in range(101)]
    rises = [later - earlier for earlier, later in itertools.pairwise(factors[:21])]
    falls = [earlier - later for earlier, later in itertools.pairwise(factors[20:])]
    assert 0.2 < factors[0] < 0.25
    assert factors[20] == 1.0
    assert factors[100] == pytest.approx(0.1)
    assert rises == pytest.approx([rises[0]] * 20)
    assert falls == pytest.approx([falls[0]] * 80)


def test_onecycle_equals_torchs() -> None:
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    theirs = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1.0, total_steps=101, cycle_momentum=False)
    ours = Schedule("onecycle", steps=100)
    for step in range(101):
        assert ours(step) == pytest.approx(theirs.get_last_lr()[0], abs=0.03)
        optimizer.step()
        theirs.step() if step < 100 else None
    assert ours(100) < 1e-5


def test_constant_needs_no_end() -> None:
    schedule = Schedule("constant", steps=math.inf, warmup=4)
    assert [schedule(step) for step in (0, 4, 10**9)] == [pytest.approx(0.2), 1.0, 1.0]
    optimizer, _ = SGD(schedule="constant").build(network(), math.inf, math.inf)
    assert optimizer.param_groups[0]["lr"] == 1e-3


def test_a_warm_up_is_at_most_half_of_the_training() -> None:
    assert Schedule("cosine", steps=4, warmup=100)(2) == 1.0


def test_invalid_options_are_refused() -> None:
    with pytest.raises(UserError, match="cosine"):
        Schedule("cosin", steps=1)
    with pytest.raises(UserError, match=r"optim\.schedule=cosine"):
        Schedule("cosine", steps=math.inf)


def test_a_scheduler_of_torch_or_ones_own_follows_the_steps() -> None:
    def own(optimizer: torch.optim.Optimizer, steps: int, steps_per_epoch: int, low: float = 0.0) -> LambdaLR:
        assert (steps, steps_per_epoch) == (20, 10)
        return LambdaLR(optimizer, lambda step: low + step)

    def rates_of(schedule: Any) -> list[float]:
        optimizer, scheduler = SGD(lr=0.5, schedule=schedule).build(network(), 20.0, 10.0)
        values = []
        for _ in range(4):
            values.append(optimizer.param_groups[-1]["lr"])
            optimizer.step()
            scheduler.step()
        return values

    assert rates_of(functools.partial(own, low=2.0)) == [1.0, 1.5, 2.0, 2.5]
    assert rates_of(functools.partial(StepLR, step_size=2, gamma=0.5)) == [0.5, 0.5, 0.25, 0.25]
    # 20 steps of 2 epochs, of which OneCycleLR is told those per epoch
    assert max(rates_of(functools.partial(OneCycleLR, max_lr=1.0, epochs=2))) < 1.0
    for wrong in (ReduceLROnPlateau, lambda optimizer: None):
        with pytest.raises(UserError, match="not a scheduler that follows"):
            rates_of(wrong)


@pytest.mark.parametrize("name", ["nadamw", "lion", "adan"])
def test_timm_s_optimisers_take_the_rates_of_the_groups_and_fit(name: str) -> None:
    torch.manual_seed(0)
    net = network("test_resnet")
    optimizer, schedule = Timm(lr=1e-3, weight_decay=0.1, name=name, backbone_lr_scale=0.5).build(net, 100, 10)
    assert {(group["initial_lr"], group["weight_decay"]) for group in optimizer.param_groups} == {
        *((5e-4, 0.1), (5e-4, 0.0), (1e-3, 0.1), (1e-3, 0.0))
    }
    images, labels = torch.randn(8, 3, 32, 32), torch.arange(8) % 3
    losses = []
    for _ in range(12):
        loss = torch.nn.functional.cross_entropy(net(images), labels)
        losses.append(float(loss.detach()))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    assert losses[-1] < 0.8 * losses[0]


def test_a_name_or_an_option_that_timm_does_not_have_is_one_line() -> None:
    with pytest.raises(UserError, match="nadamw"):
        Timm(name="nadamww")
    with pytest.raises(UserError, match="momentun"):
        Timm(name="lion", options={"momentun": 0.9}).build(network("test_resnet"), 10, 1)
