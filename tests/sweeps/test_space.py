"""One space in Hydra's syntax, for whoever searches."""

from __future__ import annotations

import pytest

from imgcls.errors import UserError
from imgcls.sweeps.space import Choice, Numbers, Space, parse_space, space_overrides, value_text


def parsed(*overrides: str) -> Space:
    return parse_space(overrides)[0]


def test_all_of_hydras_words_are_read() -> None:
    space, fixed = parse_space(
        [
            "data=digits",
            "optim.lr=tag(log,interval(1e-3,1e-1))",
            "optim.momentum=interval(0.5,0.9)",
            "data.batch_size=choice(32,64)",
            "model=resnet18,resnet50",
            "trainer.max_epochs=range(2,5)",
            "data.image_size=range(32,129,32)",
            "seed=int(interval(3,7))",
            "model.head.hidden=[1000,100],[512]",
            "loss.class_weights=null,balanced",
            "model.pretrained=true,false",
            "+callbacks.mine={_target_:a.B}",
        ]
    )
    assert fixed == ["data=digits", "+callbacks.mine={_target_:a.B}"]
    assert space["optim.lr"] == Numbers("optim.lr", 0.001, 0.1, log=True)
    assert space["optim.momentum"] == Numbers("optim.momentum", 0.5, 0.9)
    assert space["data.batch_size"] == Choice("data.batch_size", (32, 64), ("32", "64"))
    assert space["model"] == Choice("model", ("resnet18", "resnet50"), ("resnet18", "resnet50"))
    assert space["trainer.max_epochs"] == Numbers("trainer.max_epochs", 2, 4, step=1, whole=True)
    assert space["data.image_size"].grid() == [32, 64, 96, 128]
    assert space["seed"].grid() == [3, 4, 5, 6], "Hydra leaves the upper end of an interval out"
    assert space["model.head.hidden"].grid() == ("[1000,100]", "[512]")
    assert space["loss.class_weights"].grid() == (None, "balanced")
    assert space["model.pretrained"].grid() == (True, False)


def test_the_words_of_a_trial_say_its_values() -> None:
    space = parsed("optim.lr=interval(0.1,1)", "model.head.hidden=[1000,100],[512]", "loss.class_weights=null,balanced")
    overrides = space.overrides({"optim.lr": 0.5, "model.head.hidden": [512], "loss.class_weights": None})
    assert overrides == ["optim.lr=0.5", "model.head.hidden=[512]", "loss.class_weights=null"]


def test_values_come_back_with_their_own_types() -> None:
    space = parsed(
        "data.batch_size=32,64", "optim.lr=interval(0.1,1)", "model.head.hidden=[1000,100],[512]", "seed=range(9)"
    )
    values = {"data.batch_size": 64, "optim.lr": 0.5, "model.head.hidden": "[1000,100]", "seed": 3.0}
    typed = space.typed(values)
    assert typed == {"data.batch_size": 64, "optim.lr": 0.5, "model.head.hidden": [1000, 100], "seed": 3}
    assert [type(value) for value in typed.values()] == [int, float, list, int]
    quoted = {"data.batch_size": '"64"', "optim.lr": "0.5", "model.head.hidden": '"[1000,100]"', "seed": "3.0"}
    assert {name: space[name].read(text) for name, text in quoted.items()} == typed, "as a tuning job gives them back"


def test_a_grid_is_every_combination_in_hydras_order() -> None:
    space = parsed("model=resnet18,resnet50", "optim.momentum=range(0.5,0.75,0.1)")
    assert space.combinations == 6
    assert [list(values.values()) for values in space.grid()] == [
        [model, momentum] for model in ("resnet18", "resnet50") for momentum in (0.5, 0.6, 0.7)
    ]
    with pytest.raises(UserError, match=r"optim\.lr: a grid needs single values"):
        _ = parsed("optim.lr=interval(0,1)").combinations


def test_what_describes_a_space_is_read_as_the_same_space() -> None:
    overrides = [
        "optim.lr=tag(log,interval(1e-5,1))",
        "a.b=range(0.1,0.75,0.2)",
        "c=range(8,65,8)",
        "d=null,'x y',[1,2]",
    ]
    space = parsed(*overrides, "e=tag(log,range(1,9))", "f=choice(3)")
    again = parsed(*(f"{name}={text}" for name, text in space.describe().items()))
    assert again == space


def test_later_words_win() -> None:
    space, fixed = parse_space(["optim.lr=interval(0,1)", "optim.lr=0.1", "data=cifar10", "data=digits,cifar10"])
    assert (space.names, fixed) == (["data"], ["optim.lr=0.1"])


@pytest.mark.parametrize(
    ("override", "complaint"),
    [
        ("optim.lr=interval(1,0.1)", "from 1 to 0.1 is empty"),
        ("optim.lr=tag(log,interval(0,1))", "lower bound above 0"),
        ("seed=range(5,5)", "empty"),
        ("optim.lr=tag(log,range(0.1,1,0.1))", "steps of 1"),
        ("optim.lr=interval(1,", "cannot be read"),
    ],
)
def test_an_impossible_space_is_explained(override: str, complaint: str) -> None:
    with pytest.raises(UserError, match=complaint):
        parsed(override)


def test_values_outside_are_refused() -> None:
    space = parsed("optim.lr=interval(0.1,1)", "data.batch_size=32,64", "model.pretrained=true,false")
    for name, value in (("optim.lr", 2), ("optim.lr", True), ("data.batch_size", 48), ("model.pretrained", 1)):
        with pytest.raises(UserError, match="not in its search space"):
            space[name].text(value)
    with pytest.raises(UserError, match=r"optim\.lt is not searched over\. Did you mean optim\.lr"):
        space.checked({"optim.lt": 0.5}, "search.first")


def test_a_space_in_a_file() -> None:
    overrides = space_overrides(
        {"optim.lr": "tag(log,interval(0.1,1))", "data.batch_size": [32], "model.head.hidden": [[1, 2], [3]]}
    )
    assert overrides == [
        "optim.lr=tag(log,interval(0.1,1))",
        "data.batch_size=choice(32)",
        "model.head.hidden=[1,2],[3]",
    ]
    for wrong in ({"optim.lr": 0.1}, {"optim.lr": "0.1"}, {"optim.lr": []}):
        with pytest.raises(UserError, match=r"search\.space"):
            space_overrides(wrong)


@pytest.mark.parametrize(
    "value", ["plain", "with space", "it's", "a,b", "", "1e-3", "true", None, True, 0.1, [1, "x y"], {"a": [1]}]
)
def test_a_written_value_is_read_back(value: object) -> None:
    from hydra.core.override_parser.overrides_parser import OverridesParser

    assert OverridesParser.create().parse_override(f"name={value_text(value)}").value() == value
