"""What fits where. Expected verdicts: serving facts, section 2.5, computed there from published sizes."""

from __future__ import annotations

from decimal import Decimal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clorefleet.domain.offer import Offer
from clorefleet.domain.recipe import EngineName
from clorefleet.planner.fit import check_fit, sglang_reserve
from clorefleet.planner.hardware import MIB
from clorefleet.planner.search import setups
from tests.planner.machines import GPUS, RECIPES, hardware, machine

GLM = RECIPES["glm-5.1"]
H100, H200, A100, B200 = ("H100", 80), ("H200", 141), ("A100 80GB SXM", 80), ("B200", 180)
PRO6000, RTX3090 = ("RTX PRO 6000", 96), ("RTX 3090", 24)


def verdict(offer: Offer, checkpoint: str, engine: EngineName = EngineName.SGLANG, model: str = "glm-5.1"):
    recipe = RECIPES[model]
    floor = recipe.floors.context_tokens
    for setup, fit in setups(recipe, hardware(offer), context_tokens=floor):
        if (setup.checkpoint, setup.engine) == (checkpoint, engine):
            return setup, fit
    raise AssertionError("no such setup")


@pytest.mark.parametrize(
    "gpu, count, checkpoint, fits, binding",
    [
        (H200, 8, "fp8", True, ""),
        (H200, 8, "bf16", False, "vram"),
        (H100, 8, "fp8", False, "vram"),
        (H100, 8, "bf16", False, "vram"),
        (H100, 2, "fp8", False, "vram"),
        (H200, 4, "fp8", False, "vram"),
        (A100, 8, "fp8", False, "compute_capability"),
        (A100, 4, "bf16", False, "compute_capability"),
        (B200, 8, "fp8", True, ""),
        (B200, 4, "fp8", False, "vram"),
        (B200, 8, "bf16", False, "vram"),
        (PRO6000, 8, "fp8", False, "vram"),
    ],
)
def test_glm_5_1_on_the_machines_people_ask_about(gpu, count, checkpoint, fits, binding):
    _, fit = verdict(machine(gpu[0], count, gpu[1]), checkpoint)
    assert (fit.fits, fit.binding) == (fits, binding)


@pytest.mark.parametrize(
    "gpu, count, ram_gib, fits, binding",
    [
        (A100, 8, 64, True, ""),  # 640 GiB of GPUs hold 433 GiB
        (H100, 8, 64, True, ""),
        (H200, 4, 64, True, ""),
        (H100, 2, 512, True, ""),  # 300+ GiB of experts in RAM
        (H100, 2, 256, False, "ram"),
        (A100, 1, 256, False, "ram"),  # the guide's “80 GB VRAM + 256 GB RAM”
        (A100, 1, 512, True, ""),
        (RTX3090, 4, 512, True, ""),
        (RTX3090, 1, 256, False, "ram"),
    ],
)
def test_q4_k_m_keeps_in_ram_what_the_gpus_cannot_hold(gpu, count, ram_gib, fits, binding):
    setup, fit = verdict(machine(gpu[0], count, gpu[1], ram_gib=ram_gib), "q4_k_m", EngineName.LLAMACPP)
    assert (fit.fits, fit.binding) == (fits, binding)
    if fits and count * gpu[1] < 433:
        assert setup.experts_in_ram


def test_two_h100_keep_about_51_layers_experts_in_ram():
    """Serving facts 4.3: about 24 of 75 expert layers on the GPUs, some 290 GiB of RAM."""
    setup, fit = verdict(machine(*("H100", 2, 80), ram_gib=512), "q4_k_m", EngineName.LLAMACPP)
    assert 48 <= len(setup.experts_in_ram) <= 55
    in_ram = next(term.value for term in fit.ram if term.name.startswith("experts"))
    assert 260 <= in_ram / (1 << 30) <= 310


def test_sglang_reserves_16_gib_on_an_h200_with_tp8():
    """Serving facts 2.3: 16384 MiB, fraction 0.886."""
    visible = 143_771 * MIB
    assert sglang_reserve(GLM, 8, visible) == 16_384 * MIB
    setup, _ = verdict(machine("H200", 8, 141), "fp8")
    assert setup.memory_fraction == 0.88
    assert setup.speculation is not None and setup.speculation.num_draft_tokens == 4


def test_eight_h200_leave_about_35_gib_each_for_context():
    _, fit = verdict(machine("H200", 8, 141), "fp8")
    parts = {term.name: term.value for term in fit.memory_per_gpu}
    context = next(value for name, value in parts.items() if name.startswith("context"))
    rest = 143_771 * MIB - (sum(parts.values()) - context)
    assert 33 <= rest / (1 << 30) <= 36


@pytest.mark.parametrize(
    "model, checkpoint, gpu, count, code",
    [
        ("glm-4.7-flash", "bf16", ("H100", 80), 8, "divisibility"),  # 20 heads
        ("qwen3-30b-a3b", "fp8", ("H100", 80), 4, "divisibility"),  # 768 / 4 is no multiple of 128
        ("qwen3-30b-a3b", "fp8", ("A100 80GB SXM", 80), 1, "fp8"),
        ("glm-5.1", "nvfp4", ("H200", 141), 8, "fp4"),
        ("glm-5.1", "fp8", ("RTX 3090", 24), 8, "compute_capability"),
    ],
)
def test_what_no_memory_cures_is_said_by_its_name(model, checkpoint, gpu, count, code):
    _, fit = verdict(machine(gpu[0], count, gpu[1]), checkpoint, model=model)
    assert not fit.fits and fit.binding == code


def test_an_old_driver_and_an_unknown_one_are_refused_not_hoped_for():
    for cuda in ((12, 2), None):
        _, fit = verdict(machine("H200", 8, 141, cuda_version=cuda), "fp8")
        assert fit.binding == "cuda"


def test_an_unknown_gpu_is_no_hardware():
    from clorefleet.planner.hardware import hardware_of_offer

    assert hardware_of_offer(machine("GTX 1070", 1, 8), GPUS) is None


@given(
    vram=st.integers(8, 200),
    more=st.integers(0, 100),
    count=st.integers(1, 12),
    ram=st.integers(8, 2000),
    checkpoint=st.sampled_from(["q4_k_m", "iq4_xs", "q5_k_m"]),
)
@settings(max_examples=60, deadline=None)
def test_more_memory_never_unfits(vram, more, count, ram, checkpoint):
    def fits(gib: int, ram_gib: int) -> bool:
        offer = machine("A100 80GB SXM", count, 80, ram_gib=ram_gib)
        shape = hardware(offer)
        from dataclasses import replace

        shape = replace(shape, vram_mib=(gib * 1024,) * count)
        return any(
            fit.fits
            for setup, fit in setups(GLM, shape, context_tokens=8192)
            if setup.checkpoint == checkpoint and setup.engine is EngineName.LLAMACPP
        )

    if fits(vram, ram):
        assert fits(vram + more, ram) and fits(vram, ram + more)


def test_a_fit_that_the_search_found_is_confirmed_by_the_check():
    shape = hardware(machine("RTX 4090", 6, 24, ram_gib=512))
    for setup, fit in setups(GLM, shape, context_tokens=16_384):
        assert check_fit(setup, GLM, shape) == fit
        assert isinstance(fit.margin_bytes, int) and all(isinstance(t.value, Decimal) for t in fit.ram)
