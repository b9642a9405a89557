"""What users may call a model: by recipe, by its weights, by Ollama's name, by the hub's repository."""

from __future__ import annotations

import pytest

from clorefleet.config.model_name import ModelChoice, find_model
from clorefleet.config.recipes import load_recipes
from clorefleet.domain.errors import BadInput, UnknownModel

RECIPES = load_recipes()


@pytest.mark.parametrize(
    "name, wanted",
    [
        ("glm-5.1", ModelChoice("glm-5.1")),
        ("GLM-5.1", ModelChoice("glm-5.1")),
        ("glm-5.1:q4_k_m", ModelChoice("glm-5.1", ("q4_k_m",))),
        ("glm-5.1:Q4-K-M", ModelChoice("glm-5.1", ("q4_k_m",))),
        ("glm-5.1:fp8", ModelChoice("glm-5.1", ("fp8",))),
        ("glm-5.1:q4", ModelChoice("glm-5.1", ("q4_k_m", "iq4_xs", "ud_q4_k_xl"))),
        ("unsloth/GLM-5.1-GGUF:UD-IQ2_M", ModelChoice("glm-5.1", ("ud_iq2_m",))),
        ("hf.co/unsloth/GLM-5.1-GGUF:UD-Q4_K_XL", ModelChoice("glm-5.1", ("ud_q4_k_xl",))),
        ("zai-org/GLM-5.1-FP8", ModelChoice("glm-5.1", ("fp8",))),
        ("gpt-oss:120b", ModelChoice("gpt-oss-120b")),
        ("smollm2:135m", ModelChoice("smollm2-135m")),
        ("qwen3:30b-a3b", ModelChoice("qwen3-30b-a3b")),
    ],
)
def test_a_name_is_a_recipe_and_perhaps_some_of_its_weights(name: str, wanted: ModelChoice):
    assert find_model(name, RECIPES) == wanted


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=lambda recipe: recipe.name)
def test_every_key_and_format_that_a_recipe_lists_is_a_name(recipe):
    for checkpoint in recipe.checkpoints:
        for weights in (checkpoint.key, checkpoint.format):
            found = find_model(f"{recipe.name}:{weights}", RECIPES)
            assert found.model == recipe.name and checkpoint.key in found.checkpoints, weights


def test_weights_that_a_recipe_has_not_are_answered_with_those_it_has():
    with pytest.raises(BadInput) as caught:
        find_model("glm-5.1:q9", RECIPES)
    assert "q9" in caught.value.what and "q4_k_m" in caught.value.remedy


@pytest.mark.parametrize(
    "name, nearest", [("glm-51:q4_k_m", "glm-5.1"), ("unsloth/GLM-51-GGUF", "unsloth/GLM-5.1-GGUF")]
)
def test_a_slip_is_answered_with_the_nearest_name(name: str, nearest: str):
    with pytest.raises(UnknownModel) as caught:
        find_model(name, RECIPES)
    assert nearest in caught.value.nearest
