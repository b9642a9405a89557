"""Weights that the user named are the only ones that are planned with, whatever their precision."""

from __future__ import annotations

import pytest

from clorefleet.planner import plan_requirement
from tests.planner.machines import GPUS, RECIPES, machine, market, wish


@pytest.mark.parametrize("key", ["q4_k_m", "iq4_xs", "ud_iq2_m", "fp8"])
def test_a_plan_has_the_named_weights_and_no_others(key: str):
    offers = market(machine("H200", 8, 141), machine("RTX 3090", 4, 24, ram_gib=1500, server_id=2))
    report = plan_requirement(wish(checkpoints=(key,)), offers, RECIPES["glm-5.1"], GPUS)
    assert {plan.setup.checkpoint for plan in report.plans} == {key}


def test_weights_that_fit_nowhere_give_no_plan_with_others():
    offers = market(machine("RTX 3090", 4, 24, ram_gib=600))
    assert plan_requirement(wish(), offers, RECIPES["glm-5.1"], GPUS).plans
    assert not plan_requirement(wish(checkpoints=("bf16",)), offers, RECIPES["glm-5.1"], GPUS).plans
