import re

import pytest

from imgcls.callbacks.history import metric_line
from imgcls.launch.sagemaker.training_job import metric_definitions

ROW = {
    "epoch": 12,
    "step": 400,
    "lr": 1.5e-05,
    "train/loss": 1234567.0,
    "val/accuracy": 0.0,
    "val/accuracy_top5": 1.0,
    "val/loss": -0.25,
    "seconds": 2.5,
}


def read(name, line):
    (definition,) = metric_definitions([name])
    return [float(value) for value in re.findall(definition["Regex"], line)]


@pytest.mark.parametrize("name", [name for name in ROW if name not in ("epoch", "step")])
@pytest.mark.parametrize("before", ["", "[rank0]: ", "2026-01-01 algo-1 | "])
def test_each_value_is_read_as_printed(name, before):
    assert read(name, before + metric_line(ROW)) == [float(f"{ROW[name]:.6g}")]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_what_is_not_finite_is_no_value(value):
    assert read("val/loss", metric_line({**ROW, "val/loss": value})) == []


def test_no_other_name_and_no_other_line_is_read():
    assert read("accuracy", metric_line(ROW)) == []
    assert read("val/loss", "epoch=1 val/loss=0.5") == []
    assert read("val.loss", metric_line(ROW)) == []


def test_more_than_sagemaker_takes_is_refused():
    with pytest.raises(ValueError, match="at most 40"):
        metric_definitions(f"val/{number}" for number in range(41))
    with pytest.raises(ValueError, match="too long"):
        metric_definitions(["x" * 500])
