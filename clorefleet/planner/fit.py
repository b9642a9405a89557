"""Does a setup fit on hardware? Memory by part, per GPU, in RAM and on disk, with the source of each figure.

Everything is in bytes, against what nvidia-smi shows (the driver's own reserve is not in that), never
against marketing gigabytes. The first constraint that binds is named, with how much is missing and what
would cure it. The parts are computed by `tensor_fit` (SGLang, vLLM, KTransformers) and `split_fit`
(llama.cpp); what no memory cures is in `software`.
"""

from __future__ import annotations

import math
from dataclasses import replace
from decimal import Decimal

from clorefleet.domain.plan import Fit, Term
from clorefleet.domain.recipe import EngineName, Mark, Recipe
from clorefleet.domain.setup import Setup
from clorefleet.planner.hardware import GIB, MIB, Hardware
from clorefleet.planner.software import check_software
from clorefleet.planner.split_fit import split_memory
from clorefleet.planner.tensor_fit import tensor_memory

DISK_FACTOR = 1.05
IMAGE_BYTES = {
    EngineName.LLAMACPP: 5 * 10**9,
    EngineName.SGLANG: 40 * 10**9,
    EngineName.VLLM: 40 * 10**9,
    EngineName.KTRANSFORMERS: 40 * 10**9,
}
"""Room for the container image beside the weights [assumed]."""
ROOMY_BYTES = 1 << 60
"""RAM and disk of a server that lacks neither."""


def check_fit(setup: Setup, recipe: Recipe, hardware: Hardware) -> Fit:
    """The verdict on `setup` as it stands; nothing is searched here."""
    refusal = check_software(recipe.engine(setup.engine), setup, recipe, hardware)
    if refusal is not None:
        return refusal
    checkpoint = recipe.checkpoint(setup.checkpoint)
    if setup.engine is EngineName.LLAMACPP:
        gpu, ram, visible = split_memory(setup, recipe, checkpoint, hardware)
    else:
        gpu, ram = tensor_memory(setup, recipe, checkpoint, hardware)
        visible = min(hardware.vram_mib) * MIB
    variant = recipe.engine(setup.engine).variant_of(setup.image)
    disk: tuple[Term, ...] = (
        _term("weights and room", checkpoint.bytes * DISK_FACTOR, checkpoint.bytes_mark, checkpoint.source),
        _term("container image", IMAGE_BYTES[setup.engine], Mark.ASSUMED, "image sizes"),
    )
    if variant.packages:
        disk += (_term("installed packages", variant.install_bytes, Mark.ASSUMED, variant.source),)
    return _verdict(gpu, ram, disk, visible, hardware)


def without_room(hardware: Hardware) -> Hardware:
    """The shape that thousands of servers share: all but RAM and disk, which `in_room` looks at."""
    return replace(hardware, ram_bytes=ROOMY_BYTES, disk_free_bytes=ROOMY_BYTES)


def in_room(fit: Fit, hardware: Hardware) -> Fit:
    """`fit`, which was checked on `without_room(hardware)`, as `check_fit` says it of `hardware` itself.

    Exact, since RAM and disk are looked at last and no setup is chosen by them.
    """
    if not fit.fits:
        return fit
    # On a roomy shape only GPU memory can be scarce.
    return _verdict(fit.memory_per_gpu, fit.ram, fit.disk, fit.visible_bytes, hardware)


def _verdict(
    gpu: tuple[Term, ...], ram: tuple[Term, ...], disk: tuple[Term, ...], visible: int, hardware: Hardware
) -> Fit:
    needs_ram = total_bytes(ram)
    vram_margin = visible - total_bytes(gpu)
    ram_margin = hardware.ram_bytes - needs_ram
    disk_margin = hardware.disk_free_bytes - total_bytes(disk)
    for name, margin, cure in (
        ("vram", vram_margin, "more or larger GPUs, a smaller precision, or less context"),
        (
            "ram",
            ram_margin,
            f"a server with {math.ceil(needs_ram / GIB):,} GiB of RAM, or GPUs that hold more experts",
        ),
        ("disk", disk_margin, "a server with more free disk, or a smaller precision"),
    ):
        if margin < 0:
            lacks = f"{-margin / GIB:,.1f} GiB"
            return Fit(False, gpu, ram, disk, margin, name, lacks, cure, visible)
    return Fit(True, gpu, ram, disk, min(vram_margin, ram_margin, disk_margin), visible_bytes=visible)


def total_bytes(terms: tuple[Term, ...]) -> int:
    return int(sum(term.value for term in terms))


def _term(name: str, value: float, mark: Mark, source: str) -> Term:
    return Term(name, Decimal(int(value)), "bytes", mark, source)
