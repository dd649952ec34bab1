"""Recipes: published settings and small ones, as functions that return a whole `TrialConfig`, one file per family.

A docstring gives the command, the cost, and the probe accuracy to expect with its source. No number is here that
nobody measured. The tiny ones run on the built-in digits in seconds to a minute of one CPU core. A new recipe is a
function and a line in its file's own `RECIPES`.
"""

from collections.abc import Callable

from search_spaces.recipes import dilemma, hosts, msbreg, sfrik, whitening
from trainers.config import TrialConfig

RECIPES: dict[str, Callable[[], TrialConfig]] = {
    recipe.__name__: recipe for family in (sfrik, msbreg, whitening, dilemma, hosts) for recipe in family.RECIPES
}

__all__ = ["RECIPES"]
