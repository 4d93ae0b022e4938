"""Instance types: whether they have a GPU that imgcls can use."""

from __future__ import annotations

import re

TYPE = re.compile(r"ml\.([a-z][a-z0-9]*(?:-[a-z0-9]+)*)\.([a-z0-9-]+)")
GPU_FAMILIES = re.compile(r"(p[2-9]|p\d\d|g[4-9]|g\d\d)[a-z0-9-]*")
NO_CUDA = re.compile(r"(trn|inf|dl|g5g)[a-z0-9-]*")  # accelerators that need another build of torch
# The families that SageMaker trains on:
# https://docs.aws.amazon.com/sagemaker/latest/APIReference/API_ResourceConfig.html


def is_instance_type(name: str) -> bool:
    """Whether `name` looks like an instance type of SageMaker: ml.family.size."""
    return TYPE.fullmatch(name) is not None


def has_gpu(name: str) -> bool:
    """Whether instances of the type `name` have CUDA GPUs.

    >>> has_gpu("ml.g4dn.xlarge"), has_gpu("ml.m5.xlarge"), has_gpu("ml.p4d.24xlarge")
    (True, False, True)
    """
    match = TYPE.fullmatch(name)
    return match is not None and GPU_FAMILIES.fullmatch(match[1]) is not None and not NO_CUDA.fullmatch(match[1])


def needs_other_torch(name: str) -> bool:
    """Whether the accelerator of `name` is one that imgcls cannot use (Trainium, Inferentia, Gaudi)."""
    match = TYPE.fullmatch(name)
    return match is not None and NO_CUDA.fullmatch(match[1]) is not None
