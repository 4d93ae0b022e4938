"""Model names are those of timm and imgcls, listed without importing either."""

import subprocess
import sys

import timm

import imgcls.models.cifarnet
from imgcls.models import names


def test_the_names_are_those_listed_by_timm() -> None:
    assert imgcls.models.cifarnet.cifarnet is not None  # timm lists it once it is imported
    assert set(names.all_model_names()) == set(timm.list_models())


def test_a_tag_of_the_weights_is_allowed() -> None:
    assert names.is_model("resnet50")
    assert names.is_model("resnet50.a1_in1k")
    assert not names.is_model("resnet51")


def test_torch_and_timm_are_not_imported() -> None:
    code = "import sys, imgcls.models.names as n; print(n.is_model('resnet18'), {'torch', 'timm'} & {*sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout == "True set()\n"
