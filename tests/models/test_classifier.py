"""Correct numbers, each beside the wrong way to compute it that earlier code had."""

from typing import Any

import lightning as L
import pytest
import torch
import torch.nn.functional as F
from sklearn.metrics import f1_score, recall_score
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from torchmetrics.classification import MulticlassRecall

from imgcls.errors import UserError
from imgcls.models.classifier import Classifier
from imgcls.models.optim import SGD

from .helpers import CLASSES, Loader, classifier, network, pictures, trainer

COUNT = 37


def validated(module: Classifier, batch_size: int, count: int = COUNT) -> dict[str, float]:
    return trainer().validate(module, Loader.of(count, batch_size), verbose=False)[0]


def statistics(module: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}


def equal(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(first[name], second[name]) for name in first)


@torch.no_grad()
def predict(module: Classifier, count: int = COUNT) -> tuple[torch.Tensor, torch.Tensor]:
    module.eval()
    images, labels = pictures(count)
    return module(images), labels


# ---- the loss is a mean over images, whatever the batch size


@pytest.mark.parametrize("batch_size", [1, 5, 36, 37, 64])
def test_metrics_are_means_over_images_for_any_batch_size(batch_size: int) -> None:
    module = classifier(label_smoothing=0.3, class_weights=torch.linspace(0.5, 2, CLASSES), focal_gamma=2.0)
    found = validated(module, batch_size)
    logits, labels = predict(module)
    hits = logits.argmax(1) == labels
    assert found["val/loss"] == pytest.approx(float(F.cross_entropy(logits, labels)), rel=1e-5)
    assert found["val/accuracy"] == pytest.approx(float(hits.float().mean()))
    in_five = (logits.topk(5).indices == labels[:, None]).any(1)
    assert found["val/accuracy_top5"] == pytest.approx(float(in_five.float().mean()))
    macro = f1_score(labels.numpy(), logits.argmax(1).numpy(), average="macro")
    assert found["val/macro_f1"] == pytest.approx(macro, abs=1e-6)
    assert found["val/ece"] == pytest.approx(calibration_error(logits.softmax(1), labels), abs=1e-6)


def test_the_wrong_means_would_be_other_numbers() -> None:
    logits, labels = predict(classifier())
    parts = [F.cross_entropy(*pair).item() for pair in zip(logits.split(36), labels.split(36), strict=True)]
    correct = F.cross_entropy(logits, labels).item()
    assert abs(sum(parts) / len(parts) - correct) > 1e-3  # mean of batch means
    assert abs(sum(parts) / COUNT - correct) > 1e-3  # batch means, divided by the number of images


def calibration_error(probabilities: torch.Tensor, labels: torch.Tensor, bins: int = 15) -> float:
    confidence, predicted = probabilities.max(1)
    error = 0.0
    for number in range(bins):
        inside = (confidence > number / bins) & (confidence <= (number + 1) / bins)
        if inside.any():
            gap = (predicted == labels)[inside].float().mean() - confidence[inside].mean()
            error += float(gap.abs() * inside.float().mean())
    return error


def test_logits_between_0_and_1_are_not_mistaken_for_probabilities() -> None:
    module = classifier()
    with torch.no_grad():
        module.network.head[1].weight.zero_()  # type: ignore[index]
        module.network.head[1].bias.copy_(torch.linspace(0.1, 0.9, CLASSES))  # type: ignore[index]
    logits, labels = predict(module)
    assert 0 <= float(logits.min()) < float(logits.max()) <= 1
    right = calibration_error(logits.softmax(1), labels)
    assert abs(right - calibration_error(logits, labels)) > 0.1
    assert validated(module, 8)["val/ece"] == pytest.approx(right, abs=1e-6)


def test_a_loss_that_is_nan_is_reported() -> None:
    module = classifier()
    with torch.no_grad():
        module.network.head[1].bias.fill_(float("nan"))  # type: ignore[index]
    assert validated(module, 8)["val/loss"] != validated(module, 8)["val/loss"]


def test_top5_needs_more_than_five_classes() -> None:
    module = Classifier(network(num_classes=5))
    found = trainer().validate(module, Loader.of(10, 5, classes=5), verbose=False)[0]
    assert "val/accuracy_top5" not in found


class Slices(L.LightningDataModule):
    """One batch of 12 images, split into uneven micro-batches as by a data module of imgcls."""

    def __init__(self, sizes: list[int]) -> None:
        super().__init__()
        self.sizes = sizes
        self.expected_micro_batch = sum(sizes) / len(sizes)

    def train_dataloader(self) -> Loader:
        return Loader(*pictures(sum(self.sizes)), self.sizes)


@pytest.mark.parametrize("sizes", [[12], [6, 6], [5, 7], [1, 11], [4, 4, 4], [1, 2, 9]])
def test_a_step_does_not_depend_on_how_its_batch_is_split(sizes: list[int]) -> None:
    def trained(sizes: list[int]) -> tuple[Classifier, dict[str, Any]]:
        module = classifier("test_vit", class_weights=torch.linspace(0.5, 2, CLASSES), label_smoothing=0.1)
        quiet = trainer(accumulate_grad_batches=len(sizes))
        quiet.fit(module, datamodule=Slices(sizes))
        assert quiet.global_step == 1
        return module, quiet.callback_metrics

    (whole, metrics), (split, split_metrics) = trained([12]), trained(sizes)
    for expected, parameter in zip(whole.network.parameters(), split.network.parameters(), strict=True):
        assert torch.allclose(parameter, expected, atol=1e-6)
    assert split_metrics["train/loss"] == pytest.approx(float(metrics["train/loss"]), rel=1e-5)
    assert split_metrics["train/accuracy"] == pytest.approx(float(metrics["train/accuracy"]))


def test_training_metrics_are_means_over_images() -> None:
    module = classifier("test_vit", optim=SGD(lr=0.0, schedule="constant"), label_smoothing=0.1)
    quiet = trainer()
    quiet.fit(module, Loader.of(COUNT, 8))
    logits, labels = predict(module)
    loss = F.cross_entropy(logits, labels, label_smoothing=0.1)
    assert float(quiet.callback_metrics["train/loss"]) == pytest.approx(float(loss), rel=1e-5)
    assert float(quiet.callback_metrics["train/accuracy"]) == pytest.approx(
        float((logits.argmax(1) == labels).float().mean())
    )


def test_mixed_images_count_for_their_dominant_class() -> None:
    images, labels = pictures(16)
    soft = 0.7 * F.one_hot(labels, CLASSES) + 0.3 * F.one_hot(labels.flip(0), CLASSES)
    module = classifier("test_vit", optim=SGD(lr=0.0, schedule="constant"))
    quiet = trainer()
    quiet.fit(module, DataLoader(TensorDataset(images, soft), batch_size=6))
    logits, _ = predict(module, 16)
    hits = (logits.argmax(1) == labels).float().mean()
    assert float(quiet.callback_metrics["train/accuracy"]) == pytest.approx(float(hits))


# ---- a loss and metrics of the user's own


def halved(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(logits, labels, reduction="none") / 2


@pytest.mark.parametrize("loss", [halved, lambda logits, labels: F.cross_entropy(logits, labels) / 2])
def test_a_custom_loss_is_trained_and_reported_and_evaluation_keeps_the_plain_one(loss: Any) -> None:
    def trained(**options: Any) -> tuple[Classifier, dict[str, Any]]:
        module = classifier("test_vit", **options)
        quiet = trainer()
        quiet.fit(module, Loader.of(24, 8), Loader.of(8, 8))
        return module, quiet.callback_metrics

    (custom, metrics), (plain, plain_metrics) = trained(loss=loss), trained()
    assert not equal(statistics(custom), statistics(plain))
    (same, _) = trained(loss=F.cross_entropy)
    for expected, parameter in zip(plain.network.parameters(), same.network.parameters(), strict=True):
        assert torch.allclose(parameter, expected, atol=1e-5)
    assert float(metrics["train/loss"]) < 0.8 * float(plain_metrics["train/loss"])
    assert float(metrics["val/loss"]) > 0.8 * float(plain_metrics["val/loss"])


def test_a_loss_of_another_shape_or_with_weights_is_refused() -> None:
    with pytest.raises(UserError, match=r"returned \(8, 7\) for 8 images"):
        trainer().fit(classifier(loss=lambda logits, labels: logits), Loader.of(8, 8))
    with pytest.raises(UserError, match="returned float"):
        trainer().fit(classifier(loss=lambda logits, labels: 1.0), Loader.of(8, 8))
    with pytest.raises(UserError, match="weights to train"):
        classifier(loss=nn.Bilinear(2, 2, 1))


def test_a_custom_metric_is_exact_and_has_one_number_and_a_name_of_its_own() -> None:
    module = classifier(metrics={"recall": MulticlassRecall(CLASSES)})
    found = validated(module, 5)
    logits, labels = predict(module)
    expected = recall_score(labels.numpy(), logits.argmax(1).numpy(), average="macro", zero_division=0)
    assert found["val/recall"] == pytest.approx(expected, abs=1e-6)
    with pytest.raises(UserError, match=r"metrics.recall returns \(7,\)"):
        validated(classifier(metrics={"recall": MulticlassRecall(CLASSES, average=None)}), 5)
    for name in ("loss", "a/b"):
        with pytest.raises(UserError, match=f"metrics.{name}"):
            classifier(metrics={name: MulticlassRecall(CLASSES)})
    with pytest.raises(UserError, match="not a metric"):
        classifier(metrics={"sum": torch.sum})


# ---- evaluation in evaluation mode


def test_evaluation_uses_the_running_statistics() -> None:
    module = classifier(options={"drop_rate": 0.5}).train()
    before = statistics(module.network)
    small, large = validated(module, 2), validated(module, 37)
    assert small["val/loss"] == pytest.approx(large["val/loss"], rel=1e-5)
    assert equal(before, statistics(module.network))
    module.train()  # the wrong way: other numbers, other statistics
    images, labels = pictures(COUNT)
    with torch.no_grad():
        wrong = F.cross_entropy(torch.cat([module(part) for part in images.split(8)]), labels)
    assert abs(float(wrong) - large["val/loss"]) > 1e-3
    assert not equal(before, statistics(module.network))


def test_training_continues_in_training_mode_after_validation() -> None:
    module = classifier()
    trainer(2, val_check_interval=1).fit(module, Loader.of(8, 4), Loader.of(4, 4))
    assert module.network.backbone.training


# ---- nothing is computed for a frozen backbone


def gradients(module: Classifier) -> list[torch.Tensor | None]:
    return [parameter.grad for parameter in module.network.backbone.parameters()]


class Watch(L.Callback):
    """Records the backbone's state after each epoch, and whether its weights have gradients in a step."""

    def __init__(self) -> None:
        self.states: list[dict[str, torch.Tensor]] = []
        self.with_gradients: list[bool] = []

    def on_before_optimizer_step(self, trainer: L.Trainer, pl_module: Any, *args: Any) -> None:
        self.with_gradients.append(any(gradient is not None for gradient in gradients(pl_module)))

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        self.states.append(statistics(pl_module.network.backbone))


def test_a_frozen_backbone_does_not_change() -> None:
    module, watch = classifier(freeze="backbone"), Watch()
    before, head = statistics(module.network.backbone), statistics(module.network.head)
    trainer(2, [watch]).fit(module, Loader.of(16, 8), Loader.of(8, 8))
    assert watch.with_gradients == [False] * 4
    assert equal(before, watch.states[-1])  # weights, in spite of their decay, and batch-norm statistics
    assert not equal(head, statistics(module.network.head))
    assert not module.needs_find_unused_parameters


def test_head_first_unfreezes_in_its_epoch() -> None:
    module, watch = classifier(freeze="head_first", unfreeze_epoch=2), Watch()
    before = statistics(module.network.backbone)
    trainer(3, [watch]).fit(module, Loader.of(16, 8), Loader.of(8, 8))
    assert watch.with_gradients == [False] * 4 + [True] * 2
    assert equal(before, watch.states[1])
    changed = {name for name in before if not torch.equal(before[name], watch.states[2][name])}
    assert {name for name, _ in module.network.backbone.named_parameters()} <= changed
    assert any("running_mean" in name for name in changed)
    assert module.needs_find_unused_parameters


def test_an_unknown_freeze_mode_is_refused() -> None:
    with pytest.raises(UserError, match=r"model\.freeze=backbon.*backbone"):
        Classifier(network(), freeze="backbon")


# ---- the rest


def test_test_outputs_are_in_the_order_of_the_split() -> None:
    module = classifier()
    loader = Loader.of(COUNT, 8)
    shuffled = torch.randperm(COUNT, generator=torch.Generator().manual_seed(0)).split(8)
    quiet = trainer()
    batches = [(loader.images[index], loader.labels[index], index) for index in shuffled]
    found = quiet.test(module, DataLoader(batches, batch_size=None), verbose=False)[0]  # type: ignore[arg-type]
    outputs, (logits, labels) = module.test_outputs, predict(module)
    assert torch.equal(outputs.index, torch.arange(COUNT))
    assert torch.allclose(outputs.logits, logits, atol=1e-5)
    assert torch.equal(outputs.labels, labels)
    assert float(outputs.loss.mean()) == pytest.approx(found["test/loss"], rel=1e-5)
    assert module.test_confusion.sum() == COUNT
    assert torch.equal(module.test_confusion.sum(1), torch.bincount(labels, minlength=CLASSES))
    assert float(module.test_confusion.diagonal().sum()) / COUNT == pytest.approx(found["test/accuracy"])
    assert module.test_class_accuracy.shape == (CLASSES,)


def test_plain_loaders_work() -> None:
    module, (images, labels) = classifier(), pictures(COUNT)
    quiet, loader = trainer(), DataLoader(TensorDataset(images, labels), batch_size=8)
    quiet.fit(module, loader, loader)
    quiet.test(module, loader, verbose=False)
    assert torch.equal(module.test_outputs.index, torch.arange(COUNT))
    assert torch.equal(module.test_outputs.labels, labels)
    probabilities = torch.cat(quiet.predict(module, DataLoader(TensorDataset(images), batch_size=8)))  # type: ignore[arg-type]
    assert torch.allclose(probabilities.sum(1), torch.ones(COUNT))


def test_the_memory_format_does_not_change_the_logits() -> None:
    plain, last = classifier(), classifier(channels_last=True)
    images, _ = pictures(4)
    assert torch.allclose(plain.eval()(images), last.eval()(images), atol=1e-5)
    assert last.network.backbone.conv1[0].weight.is_contiguous(memory_format=torch.channels_last)


def test_a_compiled_network_has_the_same_names_and_logits() -> None:
    plain, compiled = classifier(), classifier()
    compiled.network.compile(backend="eager")
    images, _ = pictures(4)
    assert torch.allclose(plain.eval()(images), compiled.eval()(images), atol=1e-6)
    assert plain.state_dict().keys() == compiled.state_dict().keys()


def test_the_learning_rate_reaches_its_end() -> None:
    module = classifier(optim=SGD(lr=1.0, schedule="cosine", warmup_epochs=1))
    quiet = trainer(4)
    quiet.fit(module, Loader.of(16, 4))
    assert quiet.optimizers[0].param_groups[-1]["lr"] == pytest.approx(0.0, abs=1e-9)


def test_dropout_depends_on_the_seed_and_the_position_alone() -> None:
    def trained(seed: int, before: int) -> dict[str, torch.Tensor]:
        module = classifier("test_vit", options={"drop_rate": 0.5}, seed=0)
        module.seed = seed
        torch.manual_seed(before)
        trainer().fit(module, Loader.of(16, 4))
        return statistics(module.network)

    assert equal(trained(0, before=1), trained(0, before=2))
    assert not equal(trained(0, before=1), trained(1, before=1))


@pytest.mark.parametrize(("mode", "modes"), [(False, []), (True, [None]), ("reduce-overhead", ["reduce-overhead"])])
def test_the_network_is_compiled_in_the_requested_mode(
    mode: bool | str, modes: list[str | None], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str | None] = []
    monkeypatch.setattr(nn.Module, "compile", lambda self, mode=None: seen.append(mode))
    classifier(compile=mode)
    assert seen == modes


def test_stored_logits_are_not_overwritten_by_the_next_batch() -> None:
    """A CUDA graph writes the logits of every batch to the same memory."""
    module, memory = classifier(), torch.zeros(4, CLASSES)
    module.forward = lambda images: memory.copy_(images)  # type: ignore[method-assign, assignment]
    first, _ = module._evaluate((torch.ones(4, CLASSES), torch.zeros(4, dtype=torch.int64)))
    module._evaluate((torch.full((4, CLASSES), 2.0), torch.zeros(4, dtype=torch.int64)))
    assert torch.equal(first, torch.ones(4, CLASSES))
