"""Views of an image: which there are, and that the network looks again only where it is unsure."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from imgcls.config.composition import compose
from imgcls.errors import UserError
from imgcls.models.backbones import create_network
from imgcls.models.choices import VIEWS, check_views
from imgcls.models.network import Network
from imgcls.models.views import MARGIN, RAMP, unsureness, views

from .test_cifarnet import small, smooth


def spread_margins(network: Network, images: Tensor) -> Tensor:
    """Scale the head so that the network is sure of some images and unsure of others; how unsure it then is, (N,)."""
    head = network.head[-1]  # type: ignore[index]
    with torch.no_grad():
        logits = network.head(network.features(images))
        head.bias.sub_(logits.mean(dim=0))
        logits = logits - logits.mean(dim=0)
        best = logits.topk(2, dim=1).values
        scale = 1.1 / (best[:, 0] - best[:, 1]).median()  # a margin of 0.5 for two classes
        head.weight.mul_(scale), head.bias.mul_(scale)
        return unsureness(network.head(network.features(images)))


@pytest.mark.parametrize("kind", VIEWS)
def test_the_weights_of_the_views_add_up_to_one(kind: str) -> None:
    images = torch.arange(2 * 3 * 6 * 6, dtype=torch.float32).view(2, 3, 6, 6)
    seen = list(views(images, kind))
    assert sum(weight for weight, _ in seen) == 1.0
    assert len(seen) == {"one": 1, "flip": 2, "flip_shift": 6, "where_unsure": 6}[kind]
    assert all(view.shape == images.shape for _, view in seen)
    assert torch.equal(seen[0][1], images)


def test_shifted_views_are_the_image_shifted_by_a_pixel() -> None:
    images = torch.randn(1, 3, 6, 6)
    up, down = [view for _, view in views(images, "flip_shift")][2::2]
    assert torch.equal(up[:, :, 1:, 1:], images[:, :, :-1, :-1])
    assert torch.equal(down[:, :, :-1, :-1], images[:, :, 1:, 1:])


def test_evaluation_averages_over_the_views_and_training_does_not() -> None:
    network, images = small(views="flip_shift"), smooth(3)
    plain = small()
    network.eval(), plain.eval()
    mean = sum(weight * plain(view) for weight, view in views(images, "flip_shift"))
    assert torch.allclose(network(images), mean, atol=1e-6)
    assert torch.allclose(network(images), network(images.flip(-1)), atol=1e-1)
    features = network.features(images)
    assert torch.equal(network(features), network.head(features))
    network.train(), plain.train()
    assert torch.equal(network(images), plain(images))


def test_an_image_is_unsure_by_the_margin_of_its_two_best_probabilities() -> None:
    def share(margin: float) -> float:
        best = (1 + margin) / 2
        return float(unsureness(torch.tensor([[best, 1 - best, 1e-9]]).log()))

    assert [share(margin) for margin in (1 - 1e-6, MARGIN + 0.01, MARGIN)] == pytest.approx([0, 0, 0], abs=1e-5)
    assert share(MARGIN - RAMP / 4) == pytest.approx(0.25, abs=1e-4)
    assert share(MARGIN - 2 * RAMP) == 1


def test_only_unsure_images_cost_more(monkeypatch: pytest.MonkeyPatch) -> None:
    passes: list[int] = []
    network, images = small(views="where_unsure").eval(), smooth(24)
    unsure = spread_margins(network, images)
    count = int((unsure > 0).sum())
    assert 5 < count < 19
    network.backbone.register_forward_pre_hook(lambda module, inputs: passes.append(len(inputs[0])))
    network(images)
    assert sum(passes) == 24 + 5 * count
    assert max(passes) == 24, "no batch is larger than that of the images"
    passes.clear()
    network(images[unsure == 0])
    assert passes == [24 - count]
    passes.clear()
    network.train()(images)
    assert passes == [24]


@torch.inference_mode()
def test_an_answer_depends_on_the_image_alone() -> None:
    """Of sure images it is that of one view, of unsure ones that of six, and near the bound in between."""
    network, images = small(views="where_unsure").eval(), smooth(40)
    unsure = spread_margins(network, images)
    one, six = [small(views=kind).eval() for kind in ("one", "flip_shift")]
    for other in (one, six):
        other.load_state_dict(network.state_dict())
    together, first, mean = (other.mean_features(images) for other in (network, one, six))
    assert torch.allclose(together, torch.lerp(first, mean, unsure[:, None]), atol=1e-5)
    assert {bool(value) for value in unsure} == {True, False}
    assert (first - mean).abs().max() > 0.01
    singly = torch.cat([network(image[None]) for image in images])
    assert torch.allclose(singly, network(images), atol=1e-4)
    groups = [images[unsure == 0], images[unsure > 0]]
    parted = torch.cat([network(group) for group in groups])
    assert torch.allclose(parted, torch.cat([singly[unsure == 0], singly[unsure > 0]]), atol=1e-4)


def test_answers_that_are_not_finite_stay_so() -> None:
    network = create_network("test_resnet", 3, views="where_unsure").eval()
    nn.init.constant_(network.head[-1].bias, torch.nan)  # type: ignore[index]
    assert network(smooth(2)).isnan().all()


def test_where_it_depends_on_what_is_not_there_it_is_refused() -> None:
    frozen = ["data=cifar10", "model.freeze=backbone", "model.views=where_unsure"]
    with pytest.raises(UserError, match=r"^model\.views=where_unsure: .* Use model\.views=flip or flip_shift"):
        compose(frozen)
    compose([*frozen, "model.feature_views=null"])
    with pytest.raises(UserError, match=r"which model\.views needs whole"):
        compose(["model.pretrained=false", "model.views=where_unsure", "trainer.strategy=fsdp", "debug=off"])
    with pytest.raises(UserError, match="one label each"):
        compose(["data=digits", "task=multilabel", "model.views=where_unsure"])
    check_views("where_unsure", multilabel=False)
    with pytest.raises(UserError, match="views=both: is not known"):
        check_views("both", multilabel=False)
