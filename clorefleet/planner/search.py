"""The setups worth trying on one hardware shape: each checkpoint with each engine, as large as it fits.

A setup is the largest sensible one: the longest context in steps, then more requests at once. Where a GGUF
does not fit on the GPUs, as few layers' experts as needed stay in RAM, with the least context asked for,
since context and experts compete for the same memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from clorefleet.domain.plan import Fit
from clorefleet.domain.recipe import Checkpoint, EngineName, EngineSupport, Precision, Recipe
from clorefleet.domain.setup import Setup, Speculation
from clorefleet.planner.fit import (
    VLLM_UTILISATION,
    check_fit,
    choose_experts_in_ram,
    kv_bytes,
    sglang_reserve,
    split_layers,
)
from clorefleet.planner.hardware import MIB, Hardware

CONTEXT_STEPS = (2048, 4096, 8192, 16_384, 32_768, 65_536)
"""More than 65,536 tokens only where they are asked for: they cost memory that speed needs."""
CONCURRENCY_MAX = 32
LLAMACPP_SLOTS_MAX = 4
"""Its slots share one context and one queue of work: more of them make each slower [assumed]."""
SPECULATION = Speculation("EAGLE", num_steps=3, top_k=1, num_draft_tokens=4)
"""SGLang's own choice for these models, and that of the public recipes."""


def setups(recipe: Recipe, hardware: Hardware, *, context_tokens: int) -> Iterator[tuple[Setup, Fit]]:
    """Each checkpoint x engine with its best setup here, fitting or with the verdict why not."""
    for checkpoint in recipe.checkpoints:
        for support in recipe.engines:
            if checkpoint.layout not in support.layouts:
                continue
            if support.engine is EngineName.LLAMACPP:
                yield _llamacpp(recipe, checkpoint, support, hardware, context_tokens)
            else:
                yield _tensor_parallel(recipe, checkpoint, support, hardware, context_tokens)


def _base(
    recipe: Recipe, checkpoint: Checkpoint, support: EngineSupport, hardware: Hardware, context_tokens: int
) -> Setup:
    return Setup(
        model=recipe.name,
        checkpoint=checkpoint.key,
        precision=checkpoint.precision,
        layout=checkpoint.layout,
        repo=checkpoint.repo,
        revision=checkpoint.revision,
        files=checkpoint.files,
        checkpoint_bytes=checkpoint.bytes,
        engine=support.engine,
        image=support.image,
        tensor_parallel=len(hardware.gpus),
        context_tokens=context_tokens,
        concurrency=1,
        kv_dtype="bf16",
    )


def _llamacpp(
    recipe: Recipe, checkpoint: Checkpoint, support: EngineSupport, hardware: Hardware, context_tokens: int
) -> tuple[Setup, Fit]:
    setup = _base(recipe, checkpoint, support, hardware, context_tokens)
    if len(hardware.gpus) > 1:
        setup = replace(setup, layers_per_gpu=split_layers(recipe, hardware).counts)
    fit = check_fit(setup, recipe, hardware)
    if fit.fits:
        return _grown(setup, fit, recipe, hardware)
    if fit.binding != "vram" or not recipe.architecture.experts:
        return setup, fit
    kv = kv_bytes(recipe, context_tokens, 1, kv_dtype=setup.kv_dtype)
    in_ram = choose_experts_in_ram(recipe, checkpoint, hardware, kv_total_bytes=kv)
    setup = replace(setup, experts_in_ram=in_ram)
    return setup, check_fit(setup, recipe, hardware)


def _tensor_parallel(
    recipe: Recipe, checkpoint: Checkpoint, support: EngineSupport, hardware: Hardware, context_tokens: int
) -> tuple[Setup, Fit]:
    setup = _base(recipe, checkpoint, support, hardware, context_tokens)
    visible = min(hardware.vram_mib) * MIB
    if support.engine is EngineName.SGLANG:
        reserve = sglang_reserve(recipe, setup.tensor_parallel, visible)
        fraction = max(0.05, 1 - reserve / visible)
    else:
        fraction = VLLM_UTILISATION
    has_blackwell_kv = all(gpu.compute_capability >= (10, 0) for gpu in hardware.gpus)
    setup = replace(
        setup,
        # Rounded down: a little less static memory never breaks a start.
        memory_fraction=int(fraction * 100) / 100,
        speculation=SPECULATION if support.speculative else None,
        kv_dtype="fp8" if has_blackwell_kv and recipe.architecture.attention == "MLA+DSA" else "bf16",
    )
    fit = check_fit(setup, recipe, hardware)
    return _grown(setup, fit, recipe, hardware) if fit.fits else (setup, fit)


def _grown(setup: Setup, fit: Fit, recipe: Recipe, hardware: Hardware) -> tuple[Setup, Fit]:
    """The same with the longest context step, then the most requests at once, that still fit."""
    for tokens in CONTEXT_STEPS:
        if setup.context_tokens < tokens <= recipe.max_context_tokens:
            longer = replace(setup, context_tokens=tokens)
            verdict = check_fit(longer, recipe, hardware)
            if not verdict.fits:
                break
            setup, fit = longer, verdict
    requests = 2
    limit = LLAMACPP_SLOTS_MAX if setup.engine is EngineName.LLAMACPP else CONCURRENCY_MAX
    while requests <= limit:
        busier = replace(setup, concurrency=requests)
        verdict = check_fit(busier, recipe, hardware)
        if not verdict.fits:
            break
        setup, fit = busier, verdict
        requests *= 2
    return setup, fit


def default_precisions(recipe: Recipe) -> tuple[Precision, ...]:
    """FP8, BF16 and Q4; where a model is published natively in another class only, that one."""
    usual = (Precision.FP8, Precision.BF16, Precision.Q4)
    published = {checkpoint.precision for checkpoint in recipe.checkpoints}
    return usual if published & set(usual) else tuple(sorted(published))
