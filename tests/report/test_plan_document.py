"""The plan as JSON keeps to its published schema, and its money is exact."""

from __future__ import annotations

import json
from decimal import Decimal
from pathlib import Path

import pytest
from jsonschema import Draft202012Validator

from clorefleet.domain.money import Rate, parse_budget
from clorefleet.domain.plan import Objective
from clorefleet.planner import plan_requirement
from clorefleet.planner.owners import spread
from clorefleet.report.plan_document import plan_document
from tests.planner.machines import GPUS, RECIPES, machine, market, wish

SCHEMA = json.loads((Path(__file__).parents[2] / "docs" / "plan.schema.json").read_text("utf-8"))
MACHINES = (
    machine("RTX 3090", 4, 24, ram_gib=512, on_demand=(Rate.per_day("12.4"),), spot=(Rate.per_day("5"),)),
    machine("H200", 8, 141, on_demand=(Rate.per_day("500"),), server_id=8),
    machine("RTX 3060", 1, 12, ram_gib=8, on_demand=(Rate.per_day("0.4"),), server_id=9, owner_id=None),
)  # fmt: skip
WISHES = [
    wish(),
    wish(budget=parse_budget("16/day"), countries=("DE",), min_reliability=Decimal("0.95")),
    wish(budget=parse_budget("0.2/hour"), min_context_tokens=32_768),
    wish(spot=True, spot_only=True, load_tokens_per_day=5_000_000, objective=Objective.VALUE),
    wish("smollm2-135m", excluded_servers=(8,), gpu="3060", objective=Objective.SPEED),
]


def document_of(requirement):
    recipe = RECIPES[requirement.model]
    report = plan_requirement(
        requirement, market(*MACHINES), recipe, GPUS, all_recipes=tuple(RECIPES.values())
    )
    return json.loads(json.dumps(plan_document(report, spread(report.plans, 2))))


def test_the_schema_is_one():
    Draft202012Validator.check_schema(SCHEMA)


@pytest.mark.parametrize("requirement", WISHES, ids=range(len(WISHES)))
def test_every_document_is_as_the_schema_says(requirement):
    document = document_of(requirement)
    Draft202012Validator(SCHEMA).validate(document)
    assert document["plans"] or document["over_budget"] or document["refusals"]


@pytest.mark.parametrize("requirement", WISHES, ids=range(len(WISHES)))
def test_the_terms_of_a_price_sum_to_it_as_text(requirement):
    document = document_of(requirement)
    for plan in document["plans"] + document["over_budget"]:
        parts = sum(Decimal(term["value"]) for term in plan["price"]["terms"])
        assert parts == Decimal(plan["price"]["all_in_usd_per_day"])


def test_a_field_that_the_schema_does_not_know_is_noticed():
    document = document_of(WISHES[0])
    document["plans"][0]["price"]["surprise"] = 1
    assert not Draft202012Validator(SCHEMA).is_valid(document)


def test_what_a_plan_could_serve_at_most_is_told_where_it_is_known():
    report = plan_requirement(wish(), market(*MACHINES), RECIPES["glm-5.1"], GPUS)
    [known, *_] = plan_document(report, capacity_of=lambda plan: (131_072, 12))["plans"]
    assert (known["setup"]["most_context_tokens"], known["setup"]["most_requests"]) == (131_072, 12)
    [unknown, *_] = plan_document(report)["plans"]
    assert unknown["setup"]["most_requests"] is None
