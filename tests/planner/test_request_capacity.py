"""The longest context and the most requests: the largest that `check_fit` allows, and not one more."""

from __future__ import annotations

from dataclasses import replace

import pytest

from clorefleet.domain.recipe import EngineName
from clorefleet.planner.fit import check_fit
from clorefleet.planner.request_capacity import CONTEXT_GRAIN, capacity_of
from clorefleet.planner.search import setups
from tests.planner.machines import RECIPES, hardware, machine


@pytest.mark.parametrize(
    "model, gpu, vram_gib, count, engine",
    [
        ("glm-5.1", "H200", 141, 8, EngineName.SGLANG),
        ("qwen3.5-27b", "RTX 4090", 24, 4, EngineName.VLLM),
        ("glm-4.7-flash", "RTX 4090", 24, 1, EngineName.LLAMACPP),
        ("glm-5.1", "RTX 3090", 24, 8, EngineName.LLAMACPP),
    ],
)
def test_it_is_the_most_that_fits(model, gpu, vram_gib, count, engine):
    recipe, shape = RECIPES[model], hardware(machine(gpu, count, vram_gib, ram_gib=1000))
    setup = next(
        setup
        for setup, fit in setups(recipe, shape, context_tokens=4096)
        if setup.engine is engine and fit.fits
    )
    found = capacity_of(setup, recipe, shape)

    def fits(tokens: int, requests: int) -> bool:
        return check_fit(replace(setup, context_tokens=tokens, concurrency=requests), recipe, shape).fits

    assert fits(found.context_tokens, 1) and fits(setup.context_tokens, found.requests)
    assert not fits(setup.context_tokens, found.requests + 1)
    if found.context_tokens < recipe.max_context_tokens:
        assert not fits(found.context_tokens + CONTEXT_GRAIN, 1)


def test_eight_h200_hold_glm_5_1s_whole_context_and_five_requests_of_65k():
    """Serving facts 2.5: one full context of 202,752 plus room, or about 5 requests of 65k at BF16."""
    recipe, shape = RECIPES["glm-5.1"], hardware(machine("H200", 8, 141))
    setup = next(
        setup for setup, _ in setups(recipe, shape, context_tokens=65_536)
        if (setup.checkpoint, setup.engine) == ("fp8", EngineName.SGLANG)
    )  # fmt: skip
    found = capacity_of(replace(setup, kv_dtype="bf16"), recipe, shape)
    assert found.context_tokens == 202_752 and found.requests == 5


def test_weights_that_do_not_fit_have_no_room_for_context():
    recipe, shape = RECIPES["glm-5.1"], hardware(machine("H100", 8, 80))
    setup = next(
        setup for setup, _ in setups(recipe, shape, context_tokens=8192) if setup.checkpoint == "fp8"
    )
    assert capacity_of(setup, recipe, shape).context_tokens == 0
