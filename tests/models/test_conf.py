"""Every file of the groups model, head, optim and loss builds what its name says."""

import pytest
from hydra.utils import instantiate

from imgcls.config.composition import compose
from imgcls.config.groups import config_dir
from imgcls.models.names import is_model
from imgcls.models.optim import Optim, Timm


def names(group: str) -> list[str]:
    return sorted(file.stem for file in (config_dir() / group).glob("[!_]*.yaml"))


@pytest.mark.parametrize("name", names("model"))
def test_models(name: str) -> None:
    model = compose([f"model={name}", "data=cifar10"]).model
    assert is_model(model.name)
    # not with the digits, which need no network; the fast networks have no pretrained weights
    assert model.pretrained is not name.startswith("cifarnet")


@pytest.mark.parametrize("name", names("head"))
def test_heads(name: str) -> None:
    head = instantiate(compose([f"head={name}", "model.pretrained=true"]).model.head)
    assert type(head).__name__.lower() == name
    assert head(16, 3) is not None


def test_the_widths_of_a_head_come_from_the_command() -> None:
    head = instantiate(compose(["head=mlp", "model.head.hidden=[1000,100]"]).model.head)
    assert head.as_dict()["hidden"] == [1000, 100]


@pytest.mark.parametrize("name", names("optim"))
def test_optimisers_and_their_rates(name: str) -> None:
    def rate(*overrides: str) -> float:
        optim: Optim = instantiate(compose([f"optim={name}", *overrides]).optim)
        assert type(optim).__name__.lower() == name
        return optim.lr

    finetuned = rate("model.pretrained=true")
    assert rate("model.pretrained=false") > 5 * finetuned
    assert rate("model.pretrained=true", "model.freeze=backbone") > finetuned
    assert rate("optim.lr=0.125") == 0.125


def test_options_of_timm_s_optimisers_come_from_the_command() -> None:
    optim: Timm = instantiate(compose(["optim=timm", "optim.name=lion", "optim.options={betas: [0.9, 0.98]}"]).optim)
    assert (optim.name, optim.options) == ("lion", {"betas": [0.9, 0.98]})


def test_losses() -> None:
    own = {"label_smoothing", "class_weights", "focal_gamma", "negative_gamma"}
    assert {name for name in compose().loss if not name.startswith("teacher")} == own
