"""What users call a model, and perhaps its weights: by recipe, by Ollama's name, by the hub's.

glm-5.1                            a recipe; any of its weights
glm-5.1:q4_k_m                     those weights alone, by the key that `clorefleet models glm-5.1` lists
glm-5.1:q4                         those of one precision
gpt-oss:120b                       Ollama's name, where a recipe lists it
unsloth/GLM-5.1-GGUF:UD-IQ2_M      a repository, with Ollama's `hf.co/` before it or not
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches

from clorefleet.config.recipes import find_recipe
from clorefleet.domain.errors import BadInput, UnknownModel
from clorefleet.domain.recipe import Checkpoint, Recipe

_HUB_PREFIXES = ("hf.co/", "huggingface.co/")


@dataclass(frozen=True, slots=True)
class ModelChoice:
    model: str
    """A recipe's name."""
    checkpoints: tuple[str, ...] = ()
    """Only these, by their keys; empty: all that the recipe has."""


def find_model(name: str, recipes: Mapping[str, Recipe]) -> ModelChoice:
    """
    Raises:
        UnknownModel: with the nearest names.
        BadInput: the recipe is there and has no such weights.
    """
    wanted = name.strip().lower()
    if wanted in recipes:
        return ModelChoice(wanted)
    for recipe in recipes.values():
        if recipe.ollama is not None and wanted == recipe.ollama.name.lower():
            return ModelChoice(recipe.name)
    for prefix in _HUB_PREFIXES:
        wanted = wanted.removeprefix(prefix)
    model, colon, weights = wanted.partition(":")
    if "/" in model:
        return _of_repository(name, model, weights, recipes)
    if not colon:
        return ModelChoice(find_recipe(name, recipes).name)
    recipe = _recipe_called(model, recipes) or find_recipe(model, recipes)
    return _chosen(recipe, recipe.checkpoints, weights)


def _recipe_called(model: str, recipes: Mapping[str, Recipe]) -> Recipe | None:
    """By its own name, or by what stands before the colon of Ollama's where that is one recipe's alone."""
    if model in recipes:
        return recipes[model]
    called = [
        recipe
        for recipe in recipes.values()
        if recipe.ollama is not None and recipe.ollama.name.lower().partition(":")[0] == model
    ]
    return called[0] if len(called) == 1 else None


def _of_repository(name: str, repo: str, weights: str, recipes: Mapping[str, Recipe]) -> ModelChoice:
    for recipe in recipes.values():
        there = [each for each in recipe.checkpoints if each.repo.lower() == repo]
        if there and weights:
            return _chosen(recipe, there, weights)
        if there:
            return ModelChoice(recipe.name, tuple(each.key for each in there))
    known = {each.repo.lower(): each.repo for recipe in recipes.values() for each in recipe.checkpoints}
    near = get_close_matches(repo, known, 2, 0.6)
    raise UnknownModel(name[:60], tuple(known[each] for each in near))


def _chosen(recipe: Recipe, checkpoints: Iterable[Checkpoint], weights: str) -> ModelChoice:
    """
    Raises:
        BadInput: none of `checkpoints` is called so.
    """
    there, wanted = tuple(checkpoints), _plain(weights)
    named = tuple(each.key for each in there if wanted in (_plain(each.key), _plain(each.format)))
    alike = tuple(each.key for each in there if wanted == each.precision.value)
    # `GGUF Q4_K_M` is called Q4_K_M by everybody.
    ending = tuple(each.key for each in there if _plain(each.format).endswith(f"_{wanted}"))
    found = named or alike or ending
    if not found:
        keys = ", ".join(each.key for each in there)
        raise BadInput(f"{recipe.name} has no weights called “{weights[:40]}”.", remedy=f"It has {keys}.")
    return ModelChoice(recipe.name, found)


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_")
