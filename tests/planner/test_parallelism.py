"""Expert and pipeline parallelism, KTransformers' split, GPUs without FP8: what each makes fit."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clorefleet.domain.plan import Fit
from clorefleet.domain.recipe import EngineName
from clorefleet.planner.fit import check_fit
from clorefleet.planner.hardware import GIB, MIB
from clorefleet.planner.search import setups
from clorefleet.planner.tensor_fit import reserve_parts, sglang_reserve
from clorefleet.planner.weights import weights_of
from tests.planner.machines import RECIPES, hardware, machine

GLM = RECIPES["glm-5.1"]
KT, SGLANG, VLLM = EngineName.KTRANSFORMERS, EngineName.SGLANG, EngineName.VLLM


def found(model: str, checkpoint: str, engine: EngineName, gpu: str, vram_gib: int, count: int, **more: int):
    recipe = RECIPES[model]
    shape = hardware(machine(gpu, count, vram_gib, **more))
    return [
        (setup, fit)
        for setup, fit in setups(recipe, shape, context_tokens=recipe.floors.context_tokens)
        if (setup.checkpoint, setup.engine) == (checkpoint, engine)
    ]


def total_of(fit: Fit) -> int:
    return int(sum(term.value for term in fit.memory_per_gpu))


def test_whole_experts_are_dealt_out_where_fp8_blocks_do_not_divide():
    """Serving facts 2.4: Qwen3.5-35B in FP8 on eight GPUs has blocks of 128 over 64."""
    by_count = {setup.tensor_parallel: setup for setup, fit in
                found("qwen3.5-35b-a3b", "fp8", SGLANG, "RTX 4090", 24, 8) if fit.fits}  # fmt: skip
    assert by_count[8].expert_parallel == 8
    assert by_count[4].expert_parallel == 1


def test_experts_that_do_not_divide_are_not_dealt_out():
    """GLM-4.7-Flash: 20 heads on five GPUs, but neither 1,536 nor 64 experts divide by five."""
    assert {setup.gpus_needed for setup, _ in found("glm-4.7-flash", "bf16", SGLANG, "H100", 80, 5)} <= {
        1,
        2,
        4,
    }


@pytest.mark.parametrize("count, tensor, stages", [(6, 2, 3), (7, 1, 7)])
def test_counts_that_divide_nothing_become_pipeline_stages_in_vllm(count, tensor, stages):
    [(setup, fit), *_] = found("glm-5.1", "fp8", VLLM, "H200", 141, count)
    assert (setup.tensor_parallel, setup.pipeline_parallel) == (tensor, stages)
    assert fit.fits and setup.speculation is None


def test_a_stage_holds_the_layers_that_do_not_divide_evenly():
    """78 layers in seven stages: one of them has twelve, so more than a seventh of the weights."""
    [(_, fit), *_] = found("glm-5.1", "fp8", VLLM, "H200", 141, 7)
    experts = next(term.value for term in fit.memory_per_gpu if term.name.startswith("experts"))
    whole = weights_of(GLM, GLM.checkpoint("fp8")).experts
    assert int(experts) == pytest.approx(whole * 12 / 78, rel=1e-6)


def test_ktransformers_needs_the_weights_in_ram_whole():
    """Its maintainers advise over 800 GB for FP8 (serving facts 4.4); 600 GiB are too little."""
    [(setup, fit)] = found("glm-5.1", "fp8", KT, "H100", 80, 2, ram_gib=1000)
    assert fit.fits and setup.gpu_experts >= 1
    [(_, refused)] = found("glm-5.1", "fp8", KT, "H100", 80, 2, ram_gib=600)
    assert refused.binding == "ram" and "GiB of RAM" in refused.cure


def test_ktransformers_puts_on_the_gpus_as_many_experts_as_fit():
    """One more expert of each layer would not fit."""
    shape = hardware(machine("H100", 4, 80, ram_gib=1000))
    [(_, fit)] = found("glm-5.1", "fp8", KT, "H100", 80, 4, ram_gib=1000)
    one = weights_of(GLM, GLM.checkpoint("fp8")).experts / 256 / 4
    assert 0 <= shape.vram_mib[0] * MIB - total_of(fit) < one


def test_fp8_without_fp8_cores_runs_as_weights_only_in_vllm_alone():
    """A100: vLLM falls back to weight-only kernels from compute capability 7.5 (serving facts, section 6)."""
    [*_, (_, in_vllm)] = found("qwen3-30b-a3b", "fp8", VLLM, "A100 80GB SXM", 80, 1)
    [*_, (_, in_sglang)] = found("qwen3-30b-a3b", "fp8", SGLANG, "A100 80GB SXM", 80, 1)
    assert in_vllm.fits and in_sglang.binding == "fp8"


def test_an_old_driver_is_told_which_one_is_needed():
    recipe = RECIPES["glm-4.7-flash"]
    shape = hardware(machine("H100", 1, 80, cuda_version=(12, 4)))
    fits = [fit for setup, fit in setups(recipe, shape, context_tokens=8192) if setup.engine is SGLANG]
    assert {(fit.binding, fit.cure) for fit in fits} == {("cuda", "a driver of 580.65 or newer")}


@pytest.mark.parametrize("visible_gib", [12, 24, 44.5, 79.6, 140.4, 178])
@pytest.mark.parametrize("ranks", [1, 4, 8])
def test_the_parts_of_sglangs_reserve_sum_to_its_own_formula(visible_gib: float, ranks: int):
    visible = int(visible_gib * GIB)
    setup = next(setup for setup, _ in found("glm-5.1", "fp8", SGLANG, "H200", 141, 8))
    formula = sglang_reserve(GLM, ranks, visible).total_bytes
    bare = replace(setup, tensor_parallel=ranks, memory_fraction=None)
    parts = {term.name: int(term.value) for term in reserve_parts(bare, GLM, visible)}
    outside = sum(size for name, size in parts.items() if name not in ("CUDA context", "NCCL buffers"))
    assert abs(outside - formula) <= len(parts)


shapes = st.tuples(
    st.sampled_from(["glm-5.1", "glm-4.7", "qwen3.5-35b-a3b", "qwen3.5-27b", "gpt-oss-120b"] ),
    st.sampled_from([("RTX 4090", 24), ("A100 80GB SXM", 80), ("H100", 80), ("H200", 141), ("B200", 180)]),
    st.integers(1, 12),
)  # fmt: skip


@given(shape=shapes, more_gib=st.integers(1, 60))
@settings(max_examples=60, deadline=None)
def test_more_memory_on_each_gpu_never_unfits_a_setup(shape, more_gib):
    model, (gpu, vram_gib), count = shape
    recipe = RECIPES[model]
    here = hardware(machine(gpu, count, vram_gib))
    # Left to itself SGLang's reserve grows in steps with the GPU's size; a setup's share is fixed.
    larger = replace(here, vram_mib=tuple(mib + more_gib * 1024 for mib in here.vram_mib))
    for setup, fit in setups(recipe, here, context_tokens=recipe.floors.context_tokens):
        assert sum(1 for term in fit.memory_per_gpu if term.value < 0) == 0
        if fit.fits:
            assert check_fit(setup, recipe, larger).fits


@given(shape=shapes)
@settings(max_examples=60, deadline=None)
def test_a_verdicts_parts_sum_to_what_it_says(shape):
    model, (gpu, vram_gib), count = shape
    recipe = RECIPES[model]
    here = hardware(machine(gpu, count, vram_gib))
    for _, fit in setups(recipe, here, context_tokens=recipe.floors.context_tokens):
        if fit.fits:
            assert total_of(fit) <= fit.visible_bytes
        elif fit.binding == "vram":
            assert fit.margin_bytes == fit.visible_bytes - total_of(fit) < 0
