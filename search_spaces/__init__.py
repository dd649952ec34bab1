"""What may vary in a sweep, and the recipes it varies. Knows Optuna's suggest calls and the configs of `trainers`.

`RECIPES` and `SPACES` are the shipped names: `pretune list` shows them, the first line of each docstring beside the
name. Your own need no entry here: give the command line `module:function` or `file.py:function`.
"""

from search_spaces import groups, kernels, masking, msbreg, regularizers, weights
from search_spaces.recipes import RECIPES
from search_spaces.suggest import Space

SPACES: dict[str, Space] = {
    "regularizers": regularizers.space,
    "kernels": kernels.space,
    "groups": groups.space,
    "masking": masking.space,
    "msbreg": msbreg.space,
    "weights": weights.space,
}

__all__ = ["RECIPES", "SPACES", "Space"]
