"""A recipe's figures agree with each other, and a slip among them is named."""

from __future__ import annotations

from dataclasses import replace
from decimal import Decimal

import pytest

from clorefleet.config.recipe_check import check_recipe
from clorefleet.config.recipes import load_recipes
from clorefleet.domain.recipe import Confidence, EngineName, Recipe

RECIPES = load_recipes()
GLM = RECIPES["glm-5.1"]
NAMED_BY_THE_ISSUE = {
    "glm-5.1", "glm-5", "glm-4.7", "glm-4.7-flash", "glm-4.5-air", "qwen3.5-35b-a3b", "qwen3.5-27b",
    "qwen3.5-122b-a10b", "qwen3.5-397b-a17b", "qwen3-30b-a3b", "deepseek-v3.2", "deepseek-v4-flash",
    "deepseek-v4-pro", "gpt-oss-120b", "smollm2-135m",
}  # fmt: skip


def errors(recipe: Recipe) -> list[str]:
    return [finding.where for finding in check_recipe(recipe) if finding.is_error]


def test_the_promised_models_have_a_recipe():
    assert set(RECIPES) >= NAMED_BY_THE_ISSUE


@pytest.mark.parametrize("name", RECIPES)
def test_no_shipped_recipe_contradicts_itself(name: str):
    assert errors(RECIPES[name]) == []


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_says_why_xllm_is_not_offered_and_what_each_engine_needs(name: str):
    recipe = RECIPES[name]
    [xllm] = [each for each in recipe.unsupported if each.engine == "xllm"]
    assert "NVIDIA" in xllm.reason and xllm.source
    for support in recipe.engines:
        assert support.min_cuda and support.min_compute_capability and support.source
        assert support.min_version or support.engine is EngineName.LLAMACPP


def test_glm_is_sampled_at_temperature_one():
    assert all(RECIPES[n].sampling.temperature == 1.0 for n in RECIPES if n.startswith("glm"))


def test_a_hosted_price_is_exact_money_with_source_and_date():
    price = GLM.hosted_price
    assert price is not None and price.source and price.read_on
    assert (price.usd_per_million_input, price.usd_per_million_output) == (Decimal("1.40"), Decimal("4.40"))


def _with_checkpoint(key: str, **changes: object) -> Recipe:
    kept = [replace(each, **changes) if each.key == key else each for each in GLM.checkpoints]  # type: ignore[arg-type]
    return replace(GLM, checkpoints=tuple(kept))


def _with_sglang(**changes: object) -> Recipe:
    kept = [
        replace(each, **changes) if each.engine is EngineName.SGLANG else each  # type: ignore[arg-type]
        for each in GLM.engines
    ]
    return replace(GLM, engines=tuple(kept))


@pytest.mark.parametrize(
    "broken, where",
    [
        (replace(GLM, parameters=replace(GLM.parameters, one_expert=1000)), "parameters.one_expert"),
        (replace(GLM, parameters=replace(GLM.parameters, active_per_token=10**12)),
         "parameters.active_per_token"),
        (replace(GLM, architecture=replace(GLM.architecture, experts=512)), "parameters.total"),
        (replace(GLM, kv_cache=replace(GLM.kv_cache, per_token_bytes_bf16=99_000)),
         "kv_cache.per_token_bytes_bf16"),
        (replace(GLM, kv_cache=replace(GLM.kv_cache, is_replicated_across_tp=False)),
         "kv_cache.is_replicated_across_tp"),
        (_with_checkpoint("fp8", bytes=860_000_000_000 * 2), "checkpoints.fp8.bytes"),
        (_with_checkpoint("q4_k_m", files=("*",)), "checkpoints.q4_k_m.files"),
        (_with_checkpoint("fp8", source=""), "checkpoints.fp8.source"),
        # vLLM has a reasoning parser of this name, SGLang does not (serving facts 4.1).
        (_with_sglang(reasoning_parser="glm47"), "engines.sglang.reasoning_parser"),
        (_with_sglang(tool_call_parser="glm99"), "engines.sglang.tool_call_parser"),
    ],
)  # fmt: skip
def test_a_contradiction_is_an_error_at_its_place(broken: Recipe, where: str):
    assert where in errors(broken)


def test_what_is_assumed_stays_a_warning():
    findings = check_recipe(GLM)
    assert any(not each.is_error and each.where == "checkpoints.nvfp4.bytes" for each in findings)
    assert GLM.checkpoint("nvfp4").confidence is Confidence.LOW
