"""Measured speeds correct predictions of their own kind, carefully, and say so."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clorefleet.domain.plan import Speed
from clorefleet.domain.recipe import EngineName, Mark, Precision
from clorefleet.planner import plan_requirement
from clorefleet.planner.calibration import RATIO_MAX, UNCALIBRATED, Calibration, Measurement
from clorefleet.planner.search import setups
from clorefleet.planner.shapes import ShapeMemo
from clorefleet.planner.speed import predict
from tests.planner.machines import GPUS, RECIPES, hardware, machine, market, wish

RIG = machine("RTX 3090", 4, 24, ram_gib=512)
SHAPE = hardware(RIG)
GLM = RECIPES["glm-5.1"]
SETUP = next(
    s for s, fit in setups(GLM, SHAPE, context_tokens=16_384) if s.checkpoint == "q4_k_m" and fit.fits
)
PREDICTED = predict(SETUP, GLM, SHAPE)
RUN = Measurement("glm-5.1", "rtx-3090", EngineName.LLAMACPP, Precision.Q4, True, 4.0, 2.0)


def corrected(*runs: Measurement) -> Speed:
    return Calibration.of(runs).correct(PREDICTED, SETUP, SHAPE.gpus)


def factor(*runs: Measurement) -> float:
    return corrected(*runs).decode_tokens_per_s / PREDICTED.decode_tokens_per_s


def test_one_run_at_half_the_speed_moves_the_prediction_half_of_the_way():
    assert factor(RUN) == pytest.approx(0.5**0.5)


def test_the_more_runs_agree_the_nearer_the_prediction_comes_to_them():
    steps = [factor(*(RUN,) * n) for n in (1, 2, 4, 16, 64)]
    assert steps == sorted(steps, reverse=True) and steps[-1] == pytest.approx(0.5, abs=0.01)


@pytest.mark.parametrize(
    "other",
    [
        {"gpu_id": "rtx-4090"},
        {"engine": EngineName.VLLM},
        {"precision": Precision.Q8},
        {"reads_ram": False},
    ],
)
def test_a_run_of_another_kind_corrects_nothing(other):
    assert corrected(replace(RUN, **other)) is PREDICTED


def test_a_run_of_another_model_counts_for_less():
    assert factor(RUN) < factor(replace(RUN, model="glm-4.7")) < 1


def test_a_corrected_speed_says_so_with_how_many_runs():
    speed = corrected(RUN, replace(RUN, model="glm-4.7", is_simulated=True))
    [term] = [each for each in speed.terms if each.unit == "factor"]
    assert speed.mark is Mark.MEASURED and term.mark is Mark.MEASURED
    assert "2 simulated run(s)" in term.source and "1 of this model" in term.source
    assert PREDICTED.mark is Mark.ASSUMED


@pytest.mark.parametrize("measured", [0.0, -1.0, float("nan"), float("inf")])
def test_a_figure_that_is_none_is_left_out(measured):
    assert Calibration.of([replace(RUN, measured_tokens_per_s=measured)]) == UNCALIBRATED


runs = st.lists(
    st.builds(
        Measurement,
        model=st.sampled_from(["glm-5.1", "glm-4.7"]),
        gpu_id=st.sampled_from(["rtx-3090", "rtx-4090"]),
        engine=st.sampled_from(EngineName),
        precision=st.sampled_from(Precision),
        reads_ram=st.booleans(),
        predicted_tokens_per_s=st.floats(0.01, 1e4),
        measured_tokens_per_s=st.floats(0.01, 1e4),
    ),
    max_size=12,
)


@given(found=runs)
@settings(max_examples=100, deadline=None)
def test_a_correction_stays_within_bounds_and_does_not_look_at_the_order(found):
    one, other = Calibration.of(found), Calibration.of(reversed(found))
    here, there = (each.correct(PREDICTED, SETUP, SHAPE.gpus).decode_tokens_per_s for each in (one, other))
    assert here == pytest.approx(there)
    assert 1 / RATIO_MAX <= here / PREDICTED.decode_tokens_per_s <= RATIO_MAX


def test_a_plan_is_made_with_corrected_speeds_and_notices_new_measurements():
    memo = ShapeMemo()

    def speed_of(calibration: Calibration) -> Speed:
        report = plan_requirement(wish(), market(RIG), GLM, GPUS, memo=memo, calibration=calibration)
        return report.plans[0].speed

    before, after = speed_of(UNCALIBRATED), speed_of(Calibration.of([RUN]))
    assert after.decode_tokens_per_s == pytest.approx(before.decode_tokens_per_s * 0.5**0.5)
    assert speed_of(UNCALIBRATED) == before


def test_a_server_measured_too_slow_for_the_floor_is_refused_for_its_speed():
    slow = Calibration.of([replace(RUN, measured_tokens_per_s=0.5)] * 8)
    report = plan_requirement(wish(), market(RIG), GLM, GPUS, calibration=slow)
    assert not report.plans and [each.code for each in report.refusals] == ["speed"]
