"""Heads that keep features: what they compute is what the papers say, and a new class leaves the others alone."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from imgcls.errors import UserError
from imgcls.models.backbones import create_network
from imgcls.models.heads import Knn, Prototype, head_from_dict
from imgcls.models.memory import Memory, Neighbours, Prototypes, check_rows

WIDTH, CLASSES = 24, 3
HEADS = [Prototype(), Knn(k=3), Knn(k=1)]


def clusters(images: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Positive features of `images` images of classes that overlap, the last with a single image."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.rand(CLASSES, WIDTH, generator=torch.Generator().manual_seed(9))
    labels = torch.cat([torch.arange(images - 1) % (CLASSES - 1), torch.tensor([CLASSES - 1])])
    labels = labels[torch.randperm(images, generator=generator)]
    return (centres[labels] + 0.6 * torch.randn(images, WIDTH, generator=generator)).relu(), labels


def filled(head: Prototype | Knn, images: int = 30) -> Memory:
    layers = head(WIDTH, CLASSES)
    assert isinstance(layers, Memory)
    layers.store(*clusters(images))
    return layers


def plainly(head: Memory, features: Tensor, labels: Tensor, test: Tensor) -> Tensor:
    """The scores by their definitions, class by class."""
    units, others = F.normalize(features.double(), dim=1), F.normalize(test.double(), dim=1)
    columns = []
    for label in range(int(labels.max()) + 1):
        own = units[labels == label]
        if isinstance(head, Prototypes):
            columns.append(1 - (others - own.mean(dim=0)).square().sum(dim=1))  # |x|² = 1 is the same for all classes
        else:
            assert isinstance(head, Neighbours)
            columns.append((others @ own.T).topk(min(head.k, len(own)), dim=1).values.mean(dim=1))
    return head.scale * torch.stack(columns, dim=1)


@pytest.mark.parametrize("head", HEADS)
def test_scores_are_those_of_the_papers(head: Prototype | Knn) -> None:
    layers, (test, _) = filled(head), clusters(11, seed=1)
    expected = plainly(layers, *clusters(30), test)
    torch.testing.assert_close(layers(test), expected.float(), atol=1e-4, rtol=0)


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("images", [30, 700])
def test_a_new_class_changes_no_bit_of_the_others(head: Prototype | Knn, images: int) -> None:
    layers, (test, _) = filled(head, images), clusters(33, seed=1)
    generator = torch.Generator().manual_seed(3)
    batches = [test[:1], test[:7], test]  # one product over all rows would differ in some of these
    before = [layers(batch) for batch in batches]
    for added, count in enumerate(
        (1, 2, 4, 600), start=1
    ):  # the last is larger than any class before, and than a block
        new = torch.rand(count, WIDTH, generator=generator)
        layers = layers.extended(new)
        for batch, scores in zip(batches, before, strict=True):
            assert torch.equal(layers(batch)[:, :CLASSES], scores)
        assert layers(test).shape[1] == CLASSES + added
        assert int(layers(new[:1]).argmax()) == CLASSES + added - 1 or count > 1


@pytest.mark.parametrize("head", HEADS)
def test_each_image_is_judged_without_itself(head: Prototype | Knn) -> None:
    features, labels = clusters(30)
    layers = filled(head)
    scores, true = layers.left_out(features, labels)
    assert len(true) == 29, "the only image of its class has nothing to be compared with"
    order = torch.argsort(labels, stable=True) if isinstance(layers, Neighbours) else torch.arange(30)
    order = order[labels[order] != CLASSES - 1]
    assert torch.equal(true, labels[order])
    for place in (0, 7, 28):
        rest = torch.arange(30) != order[place]
        expected = plainly(layers, features[rest], labels[rest], features[order[place : place + 1]])
        torch.testing.assert_close(layers.scale * scores[place], expected[0].float(), atol=1e-4, rtol=0)


@pytest.mark.parametrize("head", HEADS)
def test_layers_are_rebuilt_from_plain_values_and_from_checkpoints(head: Prototype | Knn) -> None:
    layers, (test, _) = filled(head).extended(torch.rand(4, WIDTH)), clusters(6, seed=1)
    rebuilt = head_from_dict(layers.head)(WIDTH, CLASSES + 1)
    rebuilt.load_state_dict(layers.state_dict())
    assert torch.equal(rebuilt(test), layers(test))
    fresh = head(WIDTH, CLASSES + 1)  # as the configuration of a run builds it, before its checkpoint is loaded
    fresh.load_state_dict(layers.state_dict())
    assert torch.equal(fresh(test), layers(test))


def test_the_architecture_of_a_network_counts_what_its_head_keeps() -> None:
    network = create_network("test_resnet", 2, head=Knn(k=2))
    assert isinstance(network.head, Memory)
    network.head.store(torch.rand(5, network.num_features), torch.tensor([0, 0, 0, 1, 1]))
    assert network.architecture.head == {"kind": "knn", "k": 2, "images": [3, 2]}
    assert [name for name, value in network.head.named_parameters() if isinstance(value, nn.Parameter)] == ["scale"]


def test_too_many_images_are_refused() -> None:
    check_rows(100_000, 1280)
    with pytest.raises(UserError, match=r"head=knn keeps .* Use head=prototype or head=linear"):
        check_rows(300_000, 1280)
