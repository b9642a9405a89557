"""What fits where. Expected verdicts: serving facts, section 2.5, computed there from published sizes."""

from __future__ import annotations

from dataclasses import replace
from decimal import Decimal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clorefleet.domain.node import GpuFact, NodeFacts
from clorefleet.domain.offer import Offer
from clorefleet.domain.recipe import EngineName, Precision
from clorefleet.planner.fit import check_fit
from clorefleet.planner.hardware import (
    MIB,
    hardware_of_facts,
    hardware_of_offer,
    ram_bandwidth_gb_s,
)
from clorefleet.planner.search import setups
from clorefleet.planner.software import why_indivisible
from clorefleet.planner.tensor_fit import sglang_reserve, tokens_that_fit
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
        (PRO6000, 8, "bf16", False, "vram"),
        (H200, 4, "bf16", False, "vram"),
        (B200, 4, "bf16", False, "vram"),
        (A100, 8, "bf16", False, "compute_capability"),
        (A100, 4, "fp8", False, "compute_capability"),
        (H100, 2, "bf16", False, "vram"),
        (RTX3090, 4, "fp8", False, "compute_capability"),
        (("B300", 288), 8, "bf16", True, ""),
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
        (H200, 8, 64, True, ""),
        (B200, 4, 64, True, ""),
        (B200, 8, 64, True, ""),
        (PRO6000, 8, 64, True, ""),
        (A100, 4, 256, True, ""),  # 150+ GiB of experts in RAM
        (A100, 4, 128, False, "ram"),
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


@pytest.mark.parametrize("count, gpu", [(4, RTX3090), (1, H100), (3, H100), (8, RTX3090)])
def test_layers_above_the_mean_size_still_fit(count, gpu):
    """Quantisation mixes give some layers more bits: a run of layers each 4 % above the mean has its room."""
    _, fit = verdict(machine(gpu[0], count, gpu[1], ram_gib=1024), "q4_k_m", EngineName.LLAMACPP)
    assert fit.fits
    parts = {term.name: term.value for term in fit.memory_per_gpu}
    weights = sum(
        value
        for name, value in parts.items()
        if name.endswith(("weights", "layers")) and "uneven" not in name
    )
    assert parts["uneven layers"] >= weights * Decimal("0.0399")


def test_sglang_reserves_16_gib_on_an_h200_with_tp8():
    """Serving facts 2.3: 16384 MiB, fraction 0.886."""
    visible = 143_771 * MIB
    assert sglang_reserve(GLM, 8, visible).total_bytes == 16_384 * MIB
    setup, _ = verdict(machine("H200", 8, 141), "fp8")
    assert setup.memory_fraction == 0.886
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
        ("glm-5.1", "fp8", ("H200", 141), 6, "divisibility"),  # 64 heads; four of the six hold too little
        ("qwen3-30b-a3b", "fp8", ("A100 80GB SXM", 80), 1, "fp8"),
        ("glm-5.1", "nvfp4", ("H200", 141), 8, "fp4"),
        ("glm-5.1", "fp8", ("RTX 3090", 24), 8, "compute_capability"),
    ],
)
def test_what_no_memory_cures_is_said_by_its_name(model, checkpoint, gpu, count, code):
    _, fit = verdict(machine(gpu[0], count, gpu[1]), checkpoint, model=model)
    assert not fit.fits and fit.binding == code


@pytest.mark.parametrize(
    "model, checkpoint, ranks, why",
    [
        ("glm-4.7-flash", "bf16", 8, "20 heads over 8 GPUs"),
        ("glm-4.7-flash", "bf16", 5, "experts of width 1536 over 5 GPUs"),
        ("glm-5.1", "fp8", 32, "FP8 blocks of 128 over shards of 64"),
        ("qwen3-30b-a3b", "fp8", 4, "FP8 blocks of 128 over shards of 192"),
        ("qwen3.5-35b-a3b", "fp8", 8, "FP8 blocks of 128 over shards of 64"),
        ("qwen3.5-27b", "bf16", 3, "4 KV heads over 3 GPUs"),
        ("glm-4.7-flash", "bf16", 4, ""),
        ("glm-5.1", "fp8", 16, ""),
        ("glm-4.7", "fp8", 8, ""),  # per-channel scales: the rule of 128 does not bind
        ("qwen3.5-35b-a3b", "fp8", 4, ""),
    ],
)
def test_which_numbers_of_gpus_divide_a_model(model, checkpoint, ranks, why):
    """Serving facts, section 2.4; the rule of the experts' width is the engines' even split."""
    recipe = RECIPES[model]
    assert why_indivisible(recipe, recipe.checkpoint(checkpoint), ranks) == why


def test_a_model_that_eight_gpus_do_not_divide_runs_on_four_of_them():
    setup, fit = verdict(machine("H100", 8, 80), "bf16", model="glm-4.7-flash")
    assert fit.fits and setup.tensor_parallel == 4


def test_every_number_of_gpus_that_fits_is_tried():
    shape = hardware(machine("RTX PRO 6000", 8, 96))
    found = {
        setup.tensor_parallel
        for setup, fit in setups(RECIPES["glm-4.5-air"], shape, context_tokens=8192)
        if (setup.checkpoint, setup.engine) == ("fp8", EngineName.SGLANG) and fit.fits
    }
    assert found == {2, 4, 8}  # 105 GiB of weights do not fit on one


def test_a_driver_between_two_cuda_releases_gets_the_older_image():
    setup, fit = verdict(machine("H200", 8, 141, cuda_version=(12, 9)), "fp8", EngineName.VLLM)
    assert fit.fits and setup.image.endswith("-cu129")
    setup, fit = verdict(machine("H200", 8, 141, cuda_version=(13, 0)), "fp8", EngineName.VLLM)
    assert fit.fits and setup.image == "vllm/vllm-openai:v0.33.0"


def test_a_driver_too_old_for_every_ready_image_gets_the_base_image_and_its_packages():
    recipe = RECIPES["glm-5.1"]
    for engine in (EngineName.VLLM, EngineName.SGLANG):
        setup, fit = verdict(machine("H200", 8, 141, cuda_version=(12, 8)), "fp8", engine)
        assert fit.fits and setup.image in recipe.engine(engine).base_images
        assert fit.disk[-1].name == "installed packages" and fit.disk[-1].value == 25_000_000_000
        _, fit = verdict(machine("H200", 8, 141, cuda_version=(12, 6)), "fp8", engine)
        assert fit.binding == "cuda"


def test_the_whole_context_of_glm_5_1_fits_on_eight_h200():
    """Serving facts 2.5: about 366k tokens in BF16, one full context of 202,752 and room."""
    shape = hardware(machine("H200", 8, 141))
    found = [
        (setup, fit)
        for setup, fit in setups(GLM, shape, context_tokens=202_752)
        if (setup.checkpoint, setup.engine) == ("fp8", EngineName.SGLANG)
    ]
    [(setup, fit)] = found
    assert fit.fits and (setup.context_tokens, setup.concurrency, setup.kv_dtype) == (202_752, 1, "bf16")
    assert 340_000 < tokens_that_fit(setup, GLM, shape) < 380_000


def test_fewer_gpus_on_the_node_than_the_setup_is_for_is_refused_by_the_same_check():
    offered = hardware(machine("RTX 3090", 4, 24, ram_gib=512))
    [(setup, fit)] = [
        each
        for each in setups(GLM, offered, context_tokens=16_384, precisions=(Precision.Q4,))
        if each[0].checkpoint == "q4_k_m"
    ]
    assert fit.fits
    assert check_fit(setup, GLM, hardware(machine("RTX 3090", 3, 24, ram_gib=512))).binding == "gpu_count"


def test_measured_facts_are_checked_by_the_same_arithmetic_as_the_claims():
    shape = hardware(machine("RTX 4090", 2, 24, ram_gib=512))
    gpu = GpuFact("NVIDIA GeForce RTX 4090", 24_564, "8.9")
    facts = NodeFacts(
        gpus=(gpu, gpu),
        driver_version="580.95.05",
        cuda_version=(13, 0),
        ram_bytes=512 << 30,
        cores=64,
        cpu_model="AMD EPYC 7702",
        disk_free_bytes=4000 << 30,
        shm_bytes=None,
        python_version="3.12",
    )
    assert hardware_of_facts(facts, GPUS) == shape
    lie = replace(facts, gpus=(replace(gpu, vram_mib=12_288),) * 2)
    [(setup, fit)] = [
        each
        for each in setups(GLM, shape, context_tokens=16_384, precisions=(Precision.Q4,))
        if each[0].checkpoint == "q4_k_m"
    ]
    assert fit.fits
    measured = hardware_of_facts(lie, GPUS)
    assert measured is not None
    assert check_fit(setup, GLM, measured).binding == "vram"


@pytest.mark.parametrize(
    "name, claimed, gpu_id",
    [
        ("H100 80GB HBM3", "80", "h100-80-sxm"),
        ("NVIDIA H100 PCIe", "80", "h100-80-pcie"),
        ("NVIDIA A100-SXM4-80GB", "80", "a100-80-sxm"),
        ("NVIDIA A100-PCIE-40GB", "39.6", "a100-40-pcie"),
        ("A100", "40", "a100-40-sxm"),
        ("RTX PRO 6000 Blackwell Workstation Edition", "96", "rtx-pro-6000-96"),
        ("NVIDIA RTX PRO 6000 Blackwell Server Edition", "95.6", "rtx-pro-6000-96-server"),
        ("RTX 4090", "24", "rtx-4090"),
        ("NVIDIA GeForce RTX 4090", "47.98", "rtx-4090-48"),
        ("NVIDIA B200", "179.06", "b200-180"),
        ("RTX 4090 Laptop GPU", "16", None),
        ("Quadro RTX 6000", "24", None),
        ("NVIDIA GH200 480GB", "96", None),
        ("GTX 1080 Ti", "11", None),
    ],
)
def test_a_gpu_is_known_by_its_markets_or_drivers_name(name, claimed, gpu_id):
    found = GPUS.find(name, Decimal(claimed))
    assert (found.gpu_id if found else None) == gpu_id


@pytest.mark.parametrize(
    "cpu, gb_s",
    [
        ("AMD EPYC 7742 64-Core Processor", 205),
        ("AMD EPYC 9175F 16-Core Processor", 614),
        ("Intel(R) Xeon(R) Gold 6454S", 307),
        ("Intel(R) Xeon(R) Gold 6248 CPU @ 2.50GHz", 141),
        ("Intel(R) Xeon(R) CPU E5-2680 v4 @ 2.40GHz", 77),
        ("AMD Ryzen Threadripper PRO 5995WX 64-Cores", 205),
        ("AMD Ryzen 9 7950X 16-Core Processor", 83),
        ("something unheard of", 45),
    ],
)
def test_ram_bandwidth_is_that_of_the_cpus_family(cpu, gb_s):
    assert ram_bandwidth_gb_s(cpu) == gb_s


def test_an_old_driver_and_an_unknown_one_are_refused_not_hoped_for():
    for cuda in ((12, 2), None):
        _, fit = verdict(machine("H200", 8, 141, cuda_version=cuda), "fp8")
        assert fit.binding == "cuda"


def test_an_unknown_gpu_is_no_hardware():
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
