"""Load weights from a file or another run, whatever training wrote them."""

from __future__ import annotations

import logging
import re
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from timm.models import adapt_input_conv
from torch import Tensor, nn

from imgcls.errors import UserError
from imgcls.models.network import Network
from imgcls.models.torchvision_names import different_options, from_torchvision
from imgcls.models.weight_files import read_class_names, read_dictionaries

log = logging.getLogger(__name__)

CLASSIFIERS = ("fc.", "classifier.", "head.fc.", "head.", "last_linear.")
COUNTERS = "num_batches_tracked"
AVERAGE = re.compile(r"(^|[._])ema([._]|$)")
MAX_NAMED = 5


@dataclass(frozen=True)
class _Part:
    """The tensors of a file below one prefix, as weights of the backbone."""

    path: str
    """Path to the dictionary that they are in."""
    prefix: str
    """What their names begin with there."""
    tensors: Mapping[str, Tensor]
    """By the backbone's names."""
    mismatch: str
    """How they differ from the backbone; '' if they match."""
    options: str = ""
    """`model.options` with which the backbone computes what the network did that had these weights."""


def load_weights(network: Network, source: Path, class_names: Sequence[str] | None = None) -> None:
    """Fill `network` with the weights in `source`, and log what they are and what is left over, in one line.

    The backbone's tensors are found below any prefix (`module.`, `net.`, `model.backbone.`) and in any dictionary of
    the file; averaged ones (`state_dict_ema`, `model_ema.`) are preferred. The head is loaded from a file of imgcls
    if it has the same shape and, where the file's class names are known, the same classes.

    Args:
        network: changed in place.
        source: a `.safetensors` file; a `.pth`, `.pt`, `.bin` or `.ckpt` file (of imgcls, timm, torchvision or a
            training of your own); or a run folder, whose exported model or best checkpoint is used.
        class_names: of the network's head, in the order of its logits.

    Raises:
        UserError: the file cannot be read, or has the weights of another architecture.
    """
    file = _find_file(source)
    dictionaries = read_dictionaries(file)
    part = _find_part(network, dictionaries, file)
    if part.mismatch:
        raise UserError(
            f"model.weights={file} has the weights of another architecture than {network.architecture.name} "
            f"({part.mismatch}). Set model.name and model.stem to what the weights were trained with."
        )
    for name, value in part.tensors.items():
        if value.is_floating_point() and not value.isfinite().all():
            raise UserError(f"model.weights={file}: {name} is not finite, so the training that wrote it had diverged.")
    current = network.backbone.state_dict()
    network.backbone.load_state_dict(
        {**current, **{name: part.tensors[name] for name in current if name in part.tensors}}
    )
    beside = dictionaries[part.path]
    head_prefix = f"{part.prefix.removesuffix('backbone.')}head." if part.prefix.endswith("backbone.") else None
    head = _below(beside, head_prefix) if head_prefix is not None else {}
    before = read_class_names(file) if head else []
    head_state = _load_head(network, head, before, class_names)
    origin = ".".join(filter(None, (part.path, part.prefix.rstrip("."))))
    left_out = _left_out(beside, part, head_prefix, network.backbone)
    log.info(
        "%s%s: %s%s.", file, f" ({origin})" if origin else "", head_state, f"; left out: {left_out}" if left_out else ""
    )
    if part.options:
        log.warning(
            "%s: torchvision's %s normalises or pads differently; 'model.options=%s' computes the same.",
            *(file, network.architecture.name, part.options),
        )


def _find_file(source: Path) -> Path:
    if source.is_file():
        return source
    if not source.is_dir():
        raise UserError(f"model.weights={source}: no such file.")
    for inside in ("model/model.safetensors", "checkpoints/best.ckpt", "model.safetensors"):
        if (source / inside).is_file():
            return source / inside
    raise UserError(f"model.weights={source}: the folder has neither an exported model nor a best checkpoint.")


def _find_part(network: Network, dictionaries: Mapping[str, Mapping[str, Tensor]], file: Path) -> _Part:
    """The tensors that match the backbone, or those that come nearest."""
    needed = sum(not name.endswith(COUNTERS) for name in network.backbone.state_dict())
    places = [
        (path, prefix)
        for path, tensors in dictionaries.items()
        for prefix in _prefixes(tensors, min(needed, len(tensors)))
    ]
    places.sort(key=lambda place: AVERAGE.search(".".join(place)) is None)  # stable: then in the file's order
    parts: list[_Part] = []
    for path, prefix in places:
        parts.append(_as_backbone(network, path, prefix, _below(dictionaries[path], prefix), file))
        if not parts[-1].mismatch:
            return parts[-1]
    known = network.backbone.state_dict().keys()
    return max(parts, key=lambda part: len(known & part.tensors.keys()))


def _prefixes(tensors: Mapping[str, Tensor], needed: int) -> list[str]:
    """The prefixes that `needed` or more of the names have, shortest first."""
    counts: Counter[str] = Counter()
    for name in tensors:
        counts.update(name[: match.end()] for match in re.finditer(r"\.", name))
    return ["", *sorted((prefix for prefix, count in counts.items() if count >= needed), key=len)]


def _below(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def _as_backbone(network: Network, path: str, prefix: str, tensors: dict[str, Tensor], file: Path) -> _Part:
    """`tensors` as they are, with timm's conversion of older names, or with torchvision's names replaced."""
    backbone, name = network.backbone, network.architecture.name
    known = backbone.state_dict().keys()
    attempts = (
        (lambda: dict(tensors), ""),
        (lambda: _convert_names(backbone, tensors), ""),
        (lambda: _convert_names(backbone, from_torchvision(tensors, backbone)), different_options(backbone, name)),
    )
    parts = []
    for attempt, options in attempts:
        loaded = attempt()
        _skip_other_stem(network, loaded, file)
        _adapt_channels(network, loaded)
        parts.append(_Part(path, prefix, loaded, _explain_mismatch(backbone, loaded), options))
        if not parts[-1].mismatch:
            return parts[-1]
    return max(parts, key=lambda part: len(known & part.tensors.keys()))


def _explain_mismatch(backbone: nn.Module, loaded: Mapping[str, Tensor]) -> str:
    """How the names and shapes of `loaded` differ from those of the backbone; empty if they match."""
    current = backbone.state_dict()
    missing = [name for name in current if name not in loaded and not name.endswith(COUNTERS)]
    unknown = [name for name in loaded if _is_of_backbone(name, backbone) and name not in current]
    shapes = [name for name in current if name in loaded and loaded[name].shape != current[name].shape]
    parts = [f"{len(missing)} tensors missing"] if missing else []
    parts += [f"{len(unknown)} unknown"] if unknown else []
    parts += [f"{name} is {tuple(loaded[name].shape)}, not {tuple(current[name].shape)}" for name in shapes[:1]]
    return ", ".join(parts)


def _is_of_backbone(name: str, backbone: nn.Module) -> bool:
    """Whether `name` is below a module of the backbone that is no classifier: a layer that it has, or has not."""
    children = dict(backbone.named_children())
    return name.partition(".")[0] in children and not name.startswith(CLASSIFIERS)


def _convert_names(backbone: nn.Module, loaded: dict[str, Tensor]) -> dict[str, Tensor]:
    """The weights after timm's own conversion of older names and of position embeddings for another image size."""
    convert = getattr(sys.modules[type(backbone).__module__], "checkpoint_filter_fn", None)
    if convert is None:
        return dict(loaded)
    try:
        converted = convert(dict(loaded), backbone)
    except Exception as error:  # it expects weights of this architecture, but these can be of any
        log.debug("timm's conversion of the weights failed: %s", error)
        return dict(loaded)
    return {name: value for name, value in converted.items() if isinstance(value, Tensor)}


def _skip_other_stem(network: Network, loaded: dict[str, Tensor], file: Path) -> None:
    """Keep the new first kernel of a small stem where the loaded one belongs to the standard stem."""
    name = f"{getattr(network.backbone, 'default_cfg', {}).get('first_conv')}.weight"
    current = network.backbone.state_dict()
    if network.architecture.stem == "small" and name in loaded and loaded[name].shape[2:] != current[name].shape[2:]:
        log.info("%s: its first convolution has no small stem; the network's starts from random weights.", file)
        loaded[name] = current[name]


def _adapt_channels(network: Network, loaded: dict[str, Tensor]) -> None:
    """Adapt first convolutions for red, green and blue to the channels of the network, as timm does.

    Grey gets their sum, more channels repeat them, scaled by their number.
    """
    first: Any = getattr(network.backbone, "default_cfg", {}).get("first_conv")
    channels, current = network.architecture.in_channels, network.backbone.state_dict()
    for name in [f"{layer}.weight" for layer in ([first] if isinstance(first, str) else first or [])]:
        if name in loaded and name in current and loaded[name].shape[1] == 3 != current[name].shape[1]:
            loaded[name] = adapt_input_conv(channels, loaded[name])


def _load_head(network: Network, head: dict[str, Tensor], before: Sequence[str], now: Sequence[str] | None) -> str:
    """Load `head` if it fits, and describe what is loaded."""
    current = network.head.state_dict()
    if not head or {name: value.shape for name, value in head.items()} != {
        name: value.shape for name, value in current.items()
    }:
        return "only the backbone is loaded; the head is new"
    if before and now is not None and list(before) != list(now):
        changed = next(
            f"{old!r} was class {index}, now {new!r}"
            for index, (old, new) in enumerate(zip(before, now, strict=True))
            if old != new
        )
        return f"only the backbone is loaded; the head was for other classes ({changed}) and is new"
    network.head.load_state_dict(head)
    network.trained_head = True
    return "backbone and head are loaded"


def _left_out(beside: Mapping[str, Tensor], part: _Part, head_prefix: str | None, backbone: nn.Module) -> str:
    """The tensors beside the backbone and the head that are not loaded, by their first name."""
    known = backbone.state_dict()
    inside = [name for name in part.tensors if name not in known]
    outside = [
        name
        for name in beside
        if not name.startswith(part.prefix) and not (head_prefix and name.startswith(head_prefix))
    ]
    counts = Counter(name.partition(".")[0] for name in (*inside, *outside) if not name.endswith(COUNTERS))
    named = [f"{name} ({count} tensor{'s' if count > 1 else ''})" for name, count in counts.most_common(MAX_NAMED)]
    return ", ".join([*named, f"{len(counts) - MAX_NAMED} more"] if len(counts) > MAX_NAMED else named)
