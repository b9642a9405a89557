"""Grouping offers by shape saves work and changes no answer."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clorefleet.domain.money import Rate
from clorefleet.domain.recipe import EngineName
from clorefleet.planner import plan_requirement
from clorefleet.planner.calibration import UNCALIBRATED
from clorefleet.planner.fit import check_fit, in_room, without_room
from clorefleet.planner.hardware import GIB, Hardware
from clorefleet.planner.search import setups
from clorefleet.planner.shapes import Floors, Shape, ShapeMemo, ShapeTable, in_its_room
from clorefleet.planner.speed import predict
from clorefleet.planner.split_fit import cannot_hold
from tests.planner.machines import GPUS, RECIPES, hardware, machine, market, wish

MARKET_OFFERS = 3200

shapes = st.tuples(
    st.sampled_from([("RTX 3090", 24), ("RTX 4090", 24), ("H100", 80), ("H200", 141)]), st.integers(1, 8)
)


@given(shape=shapes, ram_gib=st.integers(0, 900), disk_gib=st.integers(0, 2000),
       model=st.sampled_from(["glm-5.1", "glm-4.5-air", "gpt-oss-120b"]))  # fmt: skip
@settings(max_examples=60, deadline=None)
def test_a_shared_shape_fits_exactly_what_the_server_itself_fits(shape, ram_gib, disk_gib, model):
    (gpu, vram_gib), count = shape
    here = hardware(machine(gpu, count, vram_gib, ram_gib=ram_gib, disk_free_bytes=disk_gib * GIB))
    recipe = RECIPES[model]
    asked = recipe.floors.context_tokens
    own = [(setup, fit) for setup, fit in setups(recipe, here, context_tokens=asked) if fit.fits]
    shared = [
        (setup, in_room(fit, here))
        for setup, fit in setups(recipe, without_room(here), context_tokens=asked)
        if in_room(fit, here).fits
    ]
    assert shared == own


@given(shape=shapes, ram_gib=st.integers(64, 1200), model=st.sampled_from(["glm-5.1", "glm-4.5-air"]))
@settings(max_examples=40, deadline=None)
def test_what_is_told_of_a_kept_candidate_is_what_the_arithmetic_says_of_its_server(shape, ram_gib, model):
    """Searching leaves out words and margins, which only plans that are kept need."""
    (gpu, vram_gib), count = shape
    here = hardware(machine(gpu, count, vram_gib, ram_gib=ram_gib))
    recipe = RECIPES[model]
    table = ShapeTable(recipe, Floors.of(wish(model), recipe))
    for each in in_its_room(table.shape_of(here), here):
        assert each.fit_in(here) == in_room(each.fit, here) == check_fit(each.setup, recipe, here)
        told = table.explained_speed(each.setup, here)
        assert told == predict(each.setup, recipe, here) and told.terms
        assert replace(told, terms=()) == each.speed


kinds = st.sampled_from(
    [("RTX 3060", 12), ("RTX 4070", 12), ("RTX 3090", 24), ("RTX 4090", 24), ("A100", 80), ("H100", 80),
     ("H200", 141), ("B200", 180)]
)  # fmt: skip
cudas = st.sampled_from([(12, 2), (12, 8), (12, 9), (13, 0), None])


@given(
    servers=st.lists(st.tuples(kinds, st.integers(1, 20), cudas), min_size=2, max_size=6),
    model=st.sampled_from(["glm-5.1", "glm-4.5-air", "gpt-oss-120b", "qwen3.5-27b"]),
)
@settings(max_examples=60, deadline=None)
def test_what_other_servers_left_in_the_memo_changes_no_setup(servers, model):
    recipe, memo = RECIPES[model], {}
    asked = recipe.floors.context_tokens
    for (gpu, vram_gib), count, cuda in servers:
        here = without_room(hardware(machine(gpu, count, vram_gib, cuda_version=cuda)))
        remembered = list(setups(recipe, here, context_tokens=asked, memo=memo))
        assert remembered == list(setups(recipe, here, context_tokens=asked))


def test_a_bounded_memo_forgets_and_answers_alike(monkeypatch):
    offers = [machine("RTX 3090", 1 + i, 24, ram_gib=600, server_id=1 + i) for i in range(8)]
    fresh = plan_requirement(wish(), market(*offers), RECIPES["glm-5.1"], GPUS)
    monkeypatch.setattr("clorefleet.planner.shapes.SHAPES_MAX", 2)
    monkeypatch.setattr("clorefleet.planner.shapes.MISSES_MAX", 1)
    memo = ShapeMemo()
    for _ in range(3):
        assert plan_requirement(wish(), market(*offers), RECIPES["glm-5.1"], GPUS, memo=memo) == fresh
    assert memo.table(wish(), RECIPES["glm-5.1"]).evaluated <= 2


@given(kinds, st.integers(1, 16), st.sampled_from(sorted(RECIPES)))
@settings(max_examples=80, deadline=None)
def test_what_surely_cannot_be_held_is_refused_for_memory_by_the_full_arithmetic_too(kind, count, model):
    (gpu, vram_gib), recipe = kind, RECIPES[model]
    here = without_room(hardware(machine(gpu, count, vram_gib, cuda_version=(13, 0))))
    for setup, _ in setups(recipe, here, context_tokens=2048, engines=(EngineName.LLAMACPP,)):
        if cannot_hold(recipe, recipe.checkpoint(setup.checkpoint), here):
            whole = replace(setup, experts_in_ram=(), concurrency=1)
            assert check_fit(whole, recipe, here).binding == "vram"


@pytest.mark.parametrize("lack, code", [({"ram_gib": 64}, "ram"), ({"disk_free_bytes": 9 * GIB}, "disk")])
def test_one_servers_lack_does_not_fall_on_another_of_its_shape(lack, code):
    rich = machine("RTX 3090", 4, 24, ram_gib=512, server_id=1)
    poor = machine("RTX 3090", 4, 24, **{"ram_gib": 512} | lack, server_id=2)
    for offers in ((rich, poor), (poor, rich)):
        report = plan_requirement(wish(), market(*offers), RECIPES["glm-5.1"], GPUS)
        assert [plan.offer.server_id for plan in report.plans] == [1]
        assert [(refusal.code, refusal.count) for refusal in report.refusals] == [(code, 1)]


def test_a_whole_market_shares_a_few_shapes():
    """Servers that differ in RAM, disk and price, as real ones do: of 3,200 only forty are evaluated."""
    kinds = [("RTX 3090", 24), ("RTX 4090", 24), ("H100", 80), ("H200", 141), ("RTX 3080", 10)]
    offers = [
        machine(*_kind_and_count(kinds, i), ram_gib=64 + i % 700, disk_free_bytes=(300 * GIB) + i * 10**9,
                on_demand=(Rate.per_day(f"{5 + i % 400}.{i % 100:02}"),), server_id=i + 1)
        for i in range(MARKET_OFFERS)
    ]  # fmt: skip
    evaluated: list[Hardware] = []

    class Counting(ShapeTable):
        def _evaluate(self, hardware: Hardware) -> Shape:
            evaluated.append(hardware)
            return super()._evaluate(hardware)

    class Memo(ShapeMemo):
        def table(self, requirement, recipe, calibration=UNCALIBRATED):
            return self.__dict__.setdefault(recipe.name, Counting(recipe, Floors.of(requirement, recipe)))

    report = plan_requirement(wish(), market(*offers), RECIPES["glm-5.1"], GPUS, memo=Memo())
    assert len(set(evaluated)) == len(evaluated)
    more_than_offered = [each for each in evaluated if len(each.gpus) > 8]
    assert len(evaluated) - len(more_than_offered) == len(kinds) * 8
    assert len({each.gpus[0] for each in more_than_offered}) <= 1, "only for the cure of the nearest miss"
    assert report.plans and report.offers_seen == MARKET_OFFERS


def _kind_and_count(kinds: list[tuple[str, int]], i: int) -> tuple[str, int, int]:
    gpu, vram_gib = kinds[i % len(kinds)]
    return gpu, 1 + i % 8, vram_gib
