"""What may vary in a sweep, and the recipes it varies. Knows Optuna's suggest calls and the configs of `trainers`.

`RECIPES` and `SPACES` are the shipped names: `pretune list` shows them, the first line of each docstring beside the
name. Your own need no entry here: give the command line `module:function` or `file.py:function`.
"""

from collections.abc import Callable

from search_spaces import kernels, recipes, weights
from search_spaces.suggest import Space
from trainers.config import TrialConfig

RECIPES: dict[str, Callable[[], TrialConfig]] = {
    recipe.__name__: recipe
    for recipe in (
        recipes.sfrik_tiny,
        recipes.sfrik_cifar10,
        recipes.sfrik_imagenet,
        recipes.dilemma_tiny,
        recipes.mae_tiny,
    )
}
SPACES: dict[str, Space] = {"kernels": kernels.space, "weights": weights.space}

__all__ = ["RECIPES", "SPACES", "Space"]
