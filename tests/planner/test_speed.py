"""Predictions: the page beside published measurements, and what must hold of any of them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import clorefleet
from clorefleet.config.recipes import load_calibration_recipes
from clorefleet.domain.plan import Speed
from clorefleet.domain.recipe import EngineName, Precision
from clorefleet.domain.setup import Setup
from clorefleet.planner import speed as model
from clorefleet.planner.evidence import load_evidence, median_error, page, rows, worst
from clorefleet.planner.gpus import load_gpus
from clorefleet.planner.search import setups
from clorefleet.planner.speed import Load, accept_length, predict, predict_load
from tests.planner.machines import RECIPES, hardware, machine

DOCS = Path(clorefleet.__file__).parent.parent / "docs"
EVIDENCE = load_evidence()
ROWS = rows(EVIDENCE, load_calibration_recipes(), load_gpus())
LLAMACPP, SGLANG, VLLM = EngineName.LLAMACPP, EngineName.SGLANG, EngineName.VLLM


def test_the_page_is_what_the_command_makes():
    assert (DOCS / "calibration.md").read_text("utf-8") == page(EVIDENCE, ROWS)


def test_the_median_error_is_at_most_a_quarter():
    assert median_error(ROWS) <= 0.25


def test_the_worst_are_named_with_what_is_known_about_them():
    text = page(EVIDENCE, ROWS)
    for row in worst(ROWS):
        assert f"{row.error:+.0%}** {row.run.name}. " in text and row.run.remark


def test_a_run_that_chose_a_constant_names_one_that_exists_and_no_run_has_one_of_its_own():
    """A constant is for all of an engine, an attention or a link; it is never a correction of one row."""
    chosen = [name for row in ROWS for name in row.run.fits]
    for name in chosen:
        assert hasattr(model, name.split(" of ")[0]), name
    assert len(chosen) < len(ROWS) / 2


def test_every_run_has_a_source_and_a_check_within_reason_or_a_remark():
    for row in ROWS:
        assert row.run.source
        assert abs(row.error) <= 0.45 or row.run.remark, row.run.name


def _setup(name: str, gpu: str, count: int, vram_gib: int, checkpoint: str, engine: EngineName) -> tuple:
    shape = hardware(machine(gpu, count, vram_gib))
    recipe = RECIPES[name]
    for setup, _ in setups(recipe, shape, context_tokens=8192):
        if (setup.checkpoint, setup.engine) == (checkpoint, engine):
            return setup, recipe, shape
    raise AssertionError("no such setup")


def test_bandwidth_alone_would_be_wrong_by_ten_times():
    """Serving facts 1.5: bandwidth would allow some 920 tok/s where 52.6 are measured."""
    setup, recipe, shape = _setup("glm-5.1", "H200", 8, 141, "fp8", VLLM)
    speed = predict(replace(setup, speculation=None), recipe, shape)
    terms = {term.name: term.value for term in speed.terms}
    latency = next(value for name, value in terms.items() if name.endswith("latency"))
    assert latency > 10 * terms["weights read on GPUs"]


def test_one_streams_terms_multiply_to_its_speed():
    """What `--explain` prints: accepted tokens over the sum of the milliseconds."""
    setup, recipe, shape = _setup("glm-5.1", "H200", 8, 141, "fp8", SGLANG)
    speed = predict(setup, recipe, shape)
    step_ms = sum(term.value for term in speed.terms if term.unit == "ms/token")
    [gain] = [term.value for term in speed.terms if term.unit == "x"]
    assert float(gain / step_ms * 1000) == pytest.approx(speed.decode_tokens_per_s, rel=0.002)


def test_more_experts_in_ram_are_never_faster():
    recipe, shape = RECIPES["glm-5.1"], hardware(machine("RTX 3090", 4, 24, ram_gib=1024))
    [setup] = [
        each
        for each, _ in setups(recipe, shape, context_tokens=8192, precisions=(Precision.Q4,))
        if each.checkpoint == "q4_k_m"
    ]
    speeds = [
        predict(replace(setup, experts_in_ram=tuple(range(3, 3 + layers))), recipe, shape).decode_tokens_per_s
        for layers in range(0, 76, 5)
    ]
    assert speeds == sorted(speeds, reverse=True)


def test_links_without_peer_to_peer_are_slower_than_nvlink():
    recipe = RECIPES["qwen3-30b-a3b"]

    def speed(gpu: str, vram_gib: int) -> float:
        shape = hardware(machine(gpu, 4, vram_gib))
        return next(
            predict(setup, recipe, shape).decode_tokens_per_s
            for setup, fit in setups(recipe, shape, context_tokens=4096)
            if fit.fits and (setup.checkpoint, setup.engine, setup.tensor_parallel) == ("bf16", SGLANG, 4)
        )

    assert speed("A100 80GB SXM", 80) > speed("RTX 4090", 24)


def test_drafts_gain_less_the_more_streams_there_are():
    """Serving facts 3.3: the gain falls with the batch, since each draft touches experts of its own."""
    setup, recipe, shape = _setup("glm-5.1", "H200", 8, 141, "fp8", SGLANG)

    def gain(streams: int) -> float:
        with_drafts = predict_load(setup, recipe, shape, Load(streams, 1, 1024)).throughput_tokens_per_s
        plain = replace(setup, speculation=None)
        without = predict_load(plain, recipe, shape, Load(streams, 1, 1024)).throughput_tokens_per_s
        assert with_drafts and without
        return with_drafts / without

    assert 1.8 < gain(1) < 2.3 and gain(32) < gain(1)
    assert accept_length(3) > accept_length(1) > accept_length(0) == 1


def test_a_prompt_read_with_experts_in_ram_takes_minutes_and_on_gpus_seconds():
    """8,192 tokens: what a guide never says about offload is how long the first token takes."""
    recipe = RECIPES["glm-5.1"]
    shape = hardware(machine("RTX 3090", 4, 24, ram_gib=512))
    [offloaded] = [s for s, _ in setups(recipe, shape, context_tokens=16_384) if s.checkpoint == "q4_k_m"]
    slow = predict_load(offloaded, recipe, shape, Load(1, 8192, 100)).first_token_s
    setup, recipe, shape = _setup("glm-5.1", "H200", 8, 141, "fp8", SGLANG)
    fast = predict_load(setup, recipe, shape, Load(1, 8192, 100)).first_token_s
    assert slow is not None and fast is not None and slow > 60 and fast < 3


CASES = st.sampled_from(
    [
        ("glm-5.1", "H200", 8, 141, "fp8", SGLANG),
        ("qwen3.5-27b", "RTX 4090", 4, 24, "fp8", VLLM),
        ("glm-5.1", "RTX 3090", 4, 24, "q4_k_m", LLAMACPP),
        ("gpt-oss-120b", "H100", 1, 80, "mxfp4", VLLM),
        ("glm-5.1", "H100", 4, 80, "fp8", EngineName.KTRANSFORMERS),
    ]
)


@given(case=CASES, streams=st.integers(1, 32), prompt=st.integers(1, 8000), more=st.integers(1, 4000))
@settings(max_examples=80, deadline=None)
def test_what_must_hold_of_any_prediction(case, streams, prompt, more):
    setup, recipe, shape = _setup(*case)

    def at(load: Load, here: Setup = setup) -> Speed:
        return predict_load(here, recipe, shape, load)

    one, many = at(Load(1, prompt, 500)), at(Load(streams, prompt, 500))
    longer = at(Load(streams, prompt + more, 500))
    assert one.first_token_s and longer.first_token_s and many.throughput_tokens_per_s
    assert many.throughput_tokens_per_s >= (one.throughput_tokens_per_s or 0) * 0.999
    assert many.throughput_tokens_per_s <= one.decode_tokens_per_s * streams * 1.001
    assert longer.first_token_s > one.first_token_s
    assert (longer.throughput_tokens_per_s or 0) <= many.throughput_tokens_per_s
