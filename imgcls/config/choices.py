"""The values that options of data sets can have, for `imgcls.data` and for those who check; without torch and Hydra."""

from __future__ import annotations

SAMPLERS = ("shuffle", "balanced")
STORE_KINDS = ("auto", "memory", "disk", "device", "none")
NORMALIZATIONS = ("pretrained", "imagenet", "dataset")
ON_BAD = ("skip", "error")
