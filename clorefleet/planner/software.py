"""What no memory cures: compute capability, driver, FP8 and FP4, mixed GPUs, numbers that do not divide."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from itertools import chain

from clorefleet.domain.plan import Fit
from clorefleet.domain.recipe import Checkpoint, EngineName, EngineSupport, Precision, Recipe
from clorefleet.domain.setup import Setup
from clorefleet.planner.hardware import Hardware

LEAST_DRIVER = {
    # First driver of each CUDA release [source: CUDA release notes, recalled; serving facts, section 6].
    (12, 4): "550.54",
    (12, 6): "560.28",
    (12, 8): "570.26",
    (12, 9): "575.51",
    (13, 0): "580.65",
}
WEIGHT_ONLY_FP8 = (7, 5)
"""vLLM multiplies FP8 weights in BF16 from here on (Marlin kernels): the memory is saved, not the time
[code: `get_min_capability` is 75]. SGLang's fall-back was not read, so it is not offered."""
NVFP4_FROM = (10, 0)


def check_software(support: EngineSupport, setup: Setup, recipe: Recipe, hardware: Hardware) -> Fit | None:
    """The engine, its image and the GPUs: a refusal, or None."""
    checkpoint = recipe.checkpoint(setup.checkpoint)
    return _first(_problems(support, setup, checkpoint, recipe, hardware))


def refuse_server(
    support: EngineSupport, image: str, checkpoint: Checkpoint, hardware: Hardware
) -> Fit | None:
    """What `check_software` says of every setup of this checkpoint there, however many GPUs it is for."""
    problems = chain(_engine_problems(support, image, hardware), _kernels(support, checkpoint, hardware))
    return _first(problems)


_Problem = tuple[str, str, str]
"""Code, shortfall and cure."""


def _first(problems: Iterator[_Problem]) -> Fit | None:
    for code, shortfall, cure in problems:
        return Fit(False, (), (), (), 0, binding=code, shortfall=shortfall, cure=cure)
    return None


def _problems(
    support: EngineSupport, setup: Setup, checkpoint: Checkpoint, recipe: Recipe, hardware: Hardware
) -> Iterator[_Problem]:
    yield from _engine_problems(support, setup.image, hardware)
    is_split = setup.engine is EngineName.LLAMACPP
    needed, there = setup.gpus_needed, len(hardware.gpus)
    if (needed != there) if is_split else (needed > there):
        yield "gpu_count", f"{there} GPUs, and the setup is for {needed}", "all the offered GPUs"
    if is_split:
        return
    yield from _kernels(support, checkpoint, hardware)
    why = why_indivisible(recipe, checkpoint, setup.tensor_parallel, expert_parallel=setup.expert_parallel)
    if why:
        yield "divisibility", why, "another number of GPUs"
    if setup.pipeline_parallel > recipe.architecture.num_layers:
        layers = recipe.architecture.num_layers
        yield "divisibility", f"{layers} layers in {setup.pipeline_parallel} stages", "fewer GPUs"


def _engine_problems(support: EngineSupport, image: str, hardware: Hardware) -> Iterator[_Problem]:
    least = min(gpu.compute_capability for gpu in hardware.gpus)
    if support.min_compute_capability and least < parse_version(support.min_compute_capability):
        text = f"compute capability {_dotted(least)}, and {support.engine} needs "
        is_split = support.engine is EngineName.LLAMACPP
        cure = "newer GPUs" if is_split else "newer GPUs, or llama.cpp"
        yield "compute_capability", text + support.min_compute_capability, cure
    yield from _driver(support.min_cuda_of(image), hardware.cuda_version)


def _kernels(support: EngineSupport, checkpoint: Checkpoint, hardware: Hardware) -> Iterator[_Problem]:
    if support.engine is EngineName.LLAMACPP:
        return
    if hardware.is_mixed:
        yield "mixed", "the server's GPUs differ", "equal GPUs, or llama.cpp"
    least = min(gpu.compute_capability for gpu in hardware.gpus)
    if checkpoint.precision is Precision.FP8 and not runs_fp8(support.engine, hardware):
        text = f"no FP8 on compute capability {_dotted(least)}"
        yield "fp8", text, "Ada, Hopper or newer; or vLLM, weights only"
    if checkpoint.format.startswith("NVFP4") and least < NVFP4_FROM:
        yield "fp4", f"no FP4 on compute capability {_dotted(least)}", "Blackwell"


def _dotted(version: tuple[int, int]) -> str:
    return f"{version[0]}.{version[1]}"


def _driver(needed: str, have: tuple[int, int] | None) -> Iterator[tuple[str, str, str]]:
    if not needed:
        return
    if have is None:
        yield "cuda", "the offer names no CUDA version", "an offer that does"
    elif have < parse_version(needed):
        shown = ".".join(map(str, have))
        driver = LEAST_DRIVER.get(parse_version(needed))
        cure = f"a driver of {driver} or newer" if driver else "a newer driver"
        yield "cuda", f"the driver is at CUDA {shown}, the image needs {needed}", cure


def runs_fp8(engine: EngineName, hardware: Hardware) -> bool:
    """Natively, or as weights only."""
    if all(gpu.has_fp8 for gpu in hardware.gpus):
        return True
    least = min(gpu.compute_capability for gpu in hardware.gpus)
    return engine is EngineName.VLLM and least >= WEIGHT_ONLY_FP8


@lru_cache(maxsize=4096)
def why_indivisible(recipe: Recipe, checkpoint: Checkpoint, ranks: int, *, expert_parallel: int = 1) -> str:
    """Why the model cannot be cut into `ranks` equal parts, or "" when it can (serving facts, section 2.4).

    With `expert_parallel` whole experts are dealt out: their width and their FP8 blocks do not matter then.
    """
    arch = recipe.architecture
    if arch.heads % ranks:
        return f"{arch.heads} heads over {ranks} GPUs"
    if arch.kv_heads and arch.kv_heads % ranks and ranks % arch.kv_heads:
        return f"{arch.kv_heads} KV heads over {ranks} GPUs"
    if expert_parallel > 1:
        if not arch.experts or arch.experts % expert_parallel:
            return f"{arch.experts} experts over {expert_parallel} GPUs"
        return ""
    if arch.moe_intermediate % ranks:
        return f"experts of width {arch.moe_intermediate} over {ranks} GPUs"
    if checkpoint.fp8_block and arch.moe_intermediate:
        shard = arch.moe_intermediate / ranks
        if shard % checkpoint.fp8_block:
            return f"FP8 blocks of {checkpoint.fp8_block} over shards of {shard:g}"
    return ""


@lru_cache(maxsize=256)
def parse_version(text: str) -> tuple[int, int]:
    """`13.0` as a pair that compares by part."""
    major, _, minor = text.partition(".")
    return int(major), int(minor or 0)
