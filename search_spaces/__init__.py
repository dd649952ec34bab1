"""What may vary in a sweep, and the recipes it varies. Knows Optuna's suggest calls and the configs of `trainers`.

`RECIPES` and `SPACES` are the shipped names: `pretune list` shows them, the first line of each docstring beside the
name. Your own need no entry here: give the command line `module:function` or `file.py:function`.
"""

from collections.abc import Callable

from search_spaces import host_recipes, kernels, recipes, weights
from search_spaces.suggest import Space
from trainers.config import TrialConfig

RECIPES: dict[str, Callable[[], TrialConfig]] = {
    recipe.__name__: recipe
    for recipe in (
        recipes.sfrik_tiny,
        recipes.sfrik_cifar10,
        recipes.sfrik_imagenet,
        host_recipes.simclr_tiny,
        host_recipes.simclr_cifar10,
        host_recipes.mocov3_tiny,
        host_recipes.mocov3_cifar10,
        host_recipes.byol_tiny,
        host_recipes.byol_cifar10,
        host_recipes.simsiam_tiny,
        host_recipes.simsiam_cifar10,
        host_recipes.vicreg_tiny,
        host_recipes.vicreg_cifar10,
        host_recipes.barlow_tiny,
        host_recipes.barlow_cifar10,
        host_recipes.alignment_uniformity_tiny,
        host_recipes.alignment_uniformity_cifar10,
        recipes.dilemma_tiny,
        recipes.mae_tiny,
    )
}
SPACES: dict[str, Space] = {"kernels": kernels.space, "weights": weights.space}

__all__ = ["RECIPES", "SPACES", "Space"]
