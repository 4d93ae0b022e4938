"""From overrides to one checked configuration: Hydra's composition, what values may be, errors in one line.

May be imported by everything above; imports `system`, `models.names` and `aws` alone, and neither
torch nor timm: a misspelt option is answered at once.
"""

from imgcls.config.composition import check, compose, plain, register_resolvers
from imgcls.config.explain import explain
from imgcls.config.groups import VERSION_BASE, config_dir

__all__ = ["VERSION_BASE", "check", "compose", "config_dir", "explain", "plain", "register_resolvers"]
