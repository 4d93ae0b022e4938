"""What of a stored run's configuration is used without the user's trust; docs/run-folder.md lists it.

Hydra runs whatever a `_target_` names, and OmegaConf puts environment variables into texts. A run of others must do
neither: only classes of imgcls are instantiated, texts stay as they are, and nothing is fetched from its addresses.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from omegaconf import DictConfig, OmegaConf

from imgcls.config.composition import check, compose
from imgcls.config.groups import config_dir
from imgcls.errors import UserError, nearest
from imgcls.system.files import read_yaml

USED = {
    "model": (
        "name",
        "stem",
        "in_channels",
        "head",
        "options",
        "views",
        "drop_rate",
        "drop_path_rate",
        "channels_last",
    ),
    "loss": ("label_smoothing", "focal_gamma"),
    "trainer": ("accelerator", "precision"),
}
"""The options of a stored run that evaluation depends on, besides `seed` and `data`."""
UNUSED_DATA = ("cache", "unlabeled")
AUGMENTATION = re.compile(r"imgcls\.data\.(augment|crops|mixing|policies)\.\w+")
"""Its classes do nothing but compute; how it cuts decides what data.normalization=dataset has computed."""
SPECIAL_KEY = re.compile(r"_\w+_")  # Hydra's: _target_, _args_, _partial_, …


def literal(value: Any) -> Any:
    """`value` such that OmegaConf resolves no interpolation in it.

    >>> OmegaConf.create(literal({"url": "${oc.env:HOME}"})).url
    '${oc.env:HOME}'
    """
    if isinstance(value, Mapping):
        return {key: literal(item) for key, item in value.items()}
    if isinstance(value, list):
        return [literal(item) for item in value]
    return re.sub(r"(\\*)\$\{", r"\1\1\\${", value) if isinstance(value, str) else value


def restore_configuration(
    stored: Mapping[str, Any], overrides: Sequence[str] = (), *, trust: bool = False
) -> DictConfig:
    """The configuration that evaluates or exports a run; what evaluation does not depend on has its default.

    Args:
        stored: the content of the run's `config.yaml`.
        overrides: `data.option=value` changes the run's data set, `data=GROUP` chooses another one.
        trust: instantiate the user's own classes, its metrics among them, and fetch from the stored addresses.

    Raises:
        UserError: an unknown option, or a class or an address that needs `trust`.
    """
    cfg = compose(["model.pretrained=false", "model.compile=false"])
    values: dict[str, Any] = {
        section: {name: value for name, value in _section(stored, section).items() if name in names}
        for section, names in USED.items()
    }
    values["seed"] = stored.get("seed", 0)
    values |= {name: stored[name] for name in ("task", "thresholds") if name in stored}
    changed = [override.removeprefix("data.").partition("=")[0] for override in overrides]
    if "data" not in changed:
        values["data"] = {name: value for name, value in _section(stored, "data").items() if name not in UNUSED_DATA}
    metrics = stored.get("metrics")
    if trust or (isinstance(metrics, list) and all(isinstance(name, str) for name in metrics)):
        cfg.metrics = literal(metrics)
    if not trust:
        _drop_foreign_augmentation(values.get("data") or {})
        _check_classes(values)
        _check_addresses(values.get("data") or {}, changed)
    for section, content in values.items():
        if section == "data":
            cfg.data = literal(content)
        elif section in ("seed", "task", "thresholds"):
            cfg[section] = literal(content)
        else:
            for name, value in content.items():
                cfg[section][name] = literal(value)
    if "data" in changed:
        cfg.data = compose(list(overrides)).data
    else:
        _override_data(cfg, overrides)
    check(cfg)
    return cfg


def _section(stored: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    content = stored.get(name) or {}
    if not isinstance(content, Mapping):
        raise UserError(f"The run's config.yaml is damaged: {name} holds no options.")
    return content


def _drop_foreign_augmentation(data: dict[str, Any]) -> None:
    """Leave the augmentation out where it has classes of others: evaluation does not use it."""
    pending = [data.get("augment")]
    while pending:
        content = pending.pop()
        if isinstance(content, Mapping):
            special = {key: value for key, value in content.items() if SPECIAL_KEY.fullmatch(str(key))}
            if any(key != "_target_" or not AUGMENTATION.fullmatch(str(value)) for key, value in special.items()):
                del data["augment"]
                return
            pending += content.values()
        elif isinstance(content, list):
            pending += content


def _check_classes(values: Any, place: str = "") -> None:
    """Raise UserError for the first class that is not one of imgcls's own in its place."""
    items = values.items() if isinstance(values, Mapping) else enumerate(values) if isinstance(values, list) else ()
    for key, value in items:
        name = f"{place}.{key}".strip(".")
        is_augmentation = name.startswith("data.augment.") and AUGMENTATION.fullmatch(str(value))
        if SPECIAL_KEY.fullmatch(str(key)) and not is_augmentation and value not in _own_classes().get(name, ()):
            raise UserError(
                f"The run's config.yaml has {name}={value}, which is not a class of imgcls: its code would run. "
                "If you trust the maker of the run, add trust=true."
            )
        _check_classes(value, name)


def _own_classes() -> dict[str, list[str]]:
    """The values of the `_target_` of data sets and heads in the configuration groups of imgcls, by their places."""
    files = {"data._target_": "data", "model.head._target_": "head"}
    own: dict[str, list[str]] = {}
    for place, group in files.items():
        for file in (config_dir() / group).glob("[!_]*.yaml"):
            content = read_yaml(file)
            own.setdefault(place, []).append(content.get(group, content)["_target_"])  # some set other groups too
    return own


def _check_addresses(data: Mapping[str, Any], changed: Sequence[str]) -> None:
    """Raise UserError for the first stored address that is not the public one of a data set."""
    public = [file.read_text("utf-8") for file in (config_dir() / "data").glob("*.yaml")]
    for name, value in data.items():
        is_address = name in ("url", "name") or "://" in str(value)  # `name` is that of a data set on a hub
        if (
            value is not None
            and is_address
            and name not in changed
            and not any(f" {value} " in text for text in public)
        ):
            raise UserError(
                f"The run's data.{name} is an address, from which nothing is fetched unasked. Give data.{name}=… again "
                "or, if you trust the maker of the run, add trust=true."
            )


def _override_data(cfg: DictConfig, overrides: Sequence[str]) -> None:
    known = [str(name) for name in cfg.data]
    for override in overrides:
        name, _, value = override.removeprefix("data.").partition("=")
        if name.split(".")[0] not in known:
            raise UserError(f"Unknown option 'data.{name}'. {nearest(name, known)}")
        OmegaConf.update(cfg, f"data.{name}", OmegaConf.create(f"value: {value}").value)
