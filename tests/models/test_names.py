"""The names are timm's own, and known without importing it."""

import subprocess
import sys
import time

import timm

from imgcls.models import names


def test_the_names_are_those_that_timm_lists() -> None:
    assert set(names.all_model_names()) == set(timm.list_models())


def test_a_tag_of_the_weights_is_allowed() -> None:
    assert names.known_model("resnet50")
    assert names.known_model("resnet50.a1_in1k")
    assert not names.known_model("resnet51")


def test_reading_them_takes_a_moment() -> None:
    names.all_model_names.cache_clear()
    began = time.process_time()
    names.all_model_names()
    assert time.process_time() - began < 0.5  # 0.1 s on a free machine


def test_torch_and_timm_are_not_imported() -> None:
    code = "import sys, imgcls.models.names as n; print(n.known_model('resnet18'), {'torch', 'timm'} & {*sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout == "True set()\n"
