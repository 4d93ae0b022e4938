"""Instance types: their accelerators, disks and processors."""

from __future__ import annotations

import re
from importlib import import_module

TYPE = re.compile(r"ml\.([a-z][a-z0-9]*(?:-[a-z0-9]+)*)\.([a-z0-9-]+)")
GPU_FAMILIES = re.compile(r"(p[2-9]|p\d\d|g[4-9]|g\d\d)[a-z0-9-]*")
NO_CUDA = re.compile(r"(trn|inf|dl|g5g)[a-z0-9-]*")  # accelerators that need another build of torch
LOCAL_DISK = re.compile(r"(p3dn|p4\w+|p[5-9]\w*|p\d{2}\w*|g[4-9](?!g)\w*|\w*\d[a-z]*d[a-z]*)(-[a-z0-9]+)?")
GRAVITON = re.compile(r"[a-z]+\d+g[a-z]*")
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


def has_local_disk(name: str) -> bool:
    """Whether instances of the type `name` have a local NVMe disk, of a fixed size and encrypted by itself.

    AWS accepts no key for the volume of such an instance.

    >>> [has_local_disk(f"ml.{family}.xlarge") for family in ("g4dn", "g5", "p5en", "m5d", "p6-b200", "r7gd")]
    [True, True, True, True, True, True]
    >>> [has_local_disk(f"ml.{family}.xlarge") for family in ("m5", "c7i", "p3", "m7i-flex", "g5g", "c6gn")]
    [False, False, False, False, False, False]
    """
    match = TYPE.fullmatch(name)
    return match is not None and LOCAL_DISK.fullmatch(match[1]) is not None


def is_graviton(name: str) -> bool:
    """Whether the processor of the type `name` is an Arm one of AWS, which needs images built for it.

    >>> is_graviton("ml.m8g.large"), is_graviton("ml.c6gn.large"), is_graviton("ml.g5.xlarge")
    (True, True, False)
    """
    match = TYPE.fullmatch(name)
    return match is not None and GRAVITON.fullmatch(match[1]) is not None


def enumeration(shape: str) -> list[str]:
    """The values of an enumeration of SageMaker's API, such as TrainingInstanceType; empty if unknown."""
    try:
        model = import_module("botocore.loaders").create_loader().load_service_model("sagemaker", "service-2")
        return list(model["shapes"][shape]["enum"])
    except Exception:  # no botocore, or another description: AWS decides
        return []
