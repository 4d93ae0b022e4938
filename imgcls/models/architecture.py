"""The description of a network that `model.json` stores: plain values, read without torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from imgcls.errors import UserError, nearest
from imgcls.images.preprocessing import Size, as_size

_OPTIONS = """
act_layer aa_layer attn_drop_rate attn_layer attn_ratio avg_down base_width block_args block_reduce_first bn_eps
bn_momentum cardinality channel_multiplier channels class_token conv_bias conv_mlp depth depths dims distilled
drop_block_rate drop_path_rate drop_rate dynamic_img_pad dynamic_img_size embed_dim embed_dims expand_ratio fc_norm
final_norm fix_stem fused_conv global_pool groups growth_rate head_dim head_init_scale head_norm_first img_size
init_values kernel_size kernel_sizes layers ls_init_value mlp_layer mlp_ratio mlp_ratios no_embed_class norm_eps
norm_layer norm_momentum num_features num_heads output_stride pad_type patch_drop_rate patch_size pool_size
pos_drop_rate pos_embed pre_norm proj_drop_rate qk_norm qkv_bias reg_tokens replace_stem_pool round_chs_fn scale
scale_mlp_norm se_layer se_ratio stem_size stem_type stem_width strict_img_size use_rel_pos weight_init
whiten_bias_epochs widths window_size zero_init_last
"""
OPTIONS = frozenset(_OPTIONS.split())
"""The arguments of timm's and imgcls's networks that a model may have: layers and sizes, nothing that is a file."""


def check_network_options(options: Any) -> None:
    """Raise UserError for the first of `options` that is not in `OPTIONS`, or no plain value."""
    if not isinstance(options, Mapping):
        raise UserError(f"model.options={options!r} must be options with their values: {{act_layer: gelu}}.")
    for name, value in options.items():
        if name not in OPTIONS:
            raise UserError(f"model.options: {name!r} is no option of a network. {nearest(str(name), OPTIONS)}")
        if not _is_plain(value):
            raise UserError(f"model.options.{name}={value!r} must be a number, a name, or a list of these.")


def _is_plain(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return all(_is_plain(item) for item in value)
    return value is None or isinstance(value, bool | int | float | str)


@dataclass(frozen=True)
class Architecture:
    """The arguments that `imgcls.models.backbones.network_from_architecture` rebuilds a network from.

    >>> Architecture.from_dict({"name": "resnet18", "num_classes": 3}).stem
    'standard'
    """

    name: str
    """Name of the timm model, without the tag of its weights."""
    num_classes: int
    """Number of classes, C."""
    stem: str = "standard"
    """'standard', or 'small': without the early downsampling, which leaves too little of small images."""
    head: Mapping[str, Any] = field(default_factory=lambda: {"kind": "linear"})
    """The values that `imgcls.models.heads.head_from_dict` rebuilds the head from."""
    drop_rate: float = 0.0
    """Dropout rate before the head."""
    drop_path_rate: float = 0.0
    """Rate of stochastic depth, where the backbone supports it."""
    image_size: Size | None = None
    """Side of the images, or (height, width), px; for backbones that are built for one size."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """Further arguments of the timm model, of those in `OPTIONS`."""
    views: str = "one"
    """Views of each image that evaluation averages over, see `imgcls.models.views`."""
    in_channels: int = 3
    """Channels of the images."""
    backbones: int = 1
    """Number of backbones beside each other, of an ensemble; see `imgcls.models.ensemble`."""

    def __post_init__(self) -> None:
        check_network_options(self.options)

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON; without one backbone and three channels, which earlier versions do not know."""
        usual = ("in_channels", 3), ("backbones", 1)
        return {name: value for name, value in asdict(self).items() if (name, value) not in usual}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Architecture:
        """Rebuild from the JSON of `as_dict`; fields that earlier versions did not write take their defaults.

        Raises UserError for fields that this version does not have, TypeError if name or num_classes is missing.
        """
        if unknown := sorted(set(values) - {entry.name for entry in fields(cls)}):
            raise UserError(
                f"The model's architecture has {unknown[0]!r}, which this version of imgcls does not support. "
                "Update imgcls."
            )
        size = values.get("image_size")
        return cls(**{**values, "image_size": None if size is None else as_size(size)})
