"""The machines and requirements that a well-known deployment guide names for GLM-5.1, beside this planner's
verdicts. Nothing is decided here: every verdict is a fit, a speed or a size that the planner gives anybody.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from clorefleet.domain.plan import Fit, Speed
from clorefleet.domain.recipe import Checkpoint, EngineName, Recipe
from clorefleet.domain.setup import Setup
from clorefleet.planner.gpus import GpuTable
from clorefleet.planner.hardware import GIB, MIB, Hardware, ram_bandwidth_gb_s
from clorefleet.planner.preference import QUALITY
from clorefleet.planner.search import RANKS_MAX, setups
from clorefleet.planner.speed import predict

MODEL = "glm-5.1"
RAM_STEPS_GIB = (64, 128, 256, 384, 512, 768, 1024, 1536, 2048)
DISK_GIB = 4000


@dataclass(frozen=True, slots=True)
class GuideMachine:
    """One row of the guide's table, and the machine that it is about."""

    title: str
    claim: str
    gpu: str
    gpus: int
    checkpoint: str
    ram_gib: int
    """What the guide says, else what such a server usually has."""
    cpu: str
    engines: tuple[EngineName, ...] = tuple(EngineName)
    claimed_tokens_per_s: tuple[float, float] | None = None
    """From and to; an open end is infinite."""


@dataclass(frozen=True, slots=True)
class GuideRequirement:
    """A size that the guide names."""

    title: str
    claim: str
    checkpoint: str
    claimed_gb: float


DDR5 = "AMD EPYC 9175F"  # 12 x DDR5-6400: the fastest RAM that calibration runs had
ON_GPUS = (EngineName.SGLANG, EngineName.VLLM)
MACHINES = (
    GuideMachine("2x H100 80 GB, FP8 with offload", "$12-16 a day, 15-25 tok/s", "H100", 2, "fp8", 256, DDR5,
                 claimed_tokens_per_s=(15, 25)),
    GuideMachine("4x A100 80 GB, “sharded BF16”", "$15-22 a day, 20-30 tok/s", "A100 80GB SXM", 4, "bf16",
                 512, "AMD EPYC 7742", engines=ON_GPUS, claimed_tokens_per_s=(20, 30)),
    GuideMachine("8x H100 80 GB, FP8", "$40-55 a day, 60+ tok/s", "H100", 8, "fp8", 1024, DDR5,
                 engines=ON_GPUS, claimed_tokens_per_s=(60, float("inf"))),
    GuideMachine("8x H200 141 GB, BF16", "$70+ a day", "H200", 8, "bf16", 2048, DDR5,
                 engines=ON_GPUS),
    GuideMachine("80 GB of VRAM + 256 GB of RAM, Q4", "enough for Q4", "H100", 1, "q4_k_m", 238, DDR5,
                 engines=(EngineName.LLAMACPP,)),
)  # fmt: skip
REQUIREMENTS = (
    GuideRequirement("FP8 weights", "about 860 GB", "fp8", 860),
    GuideRequirement("BF16 weights", "about 1.5 TB", "bf16", 1500),
)
SIZE_TOLERANCE = 0.03


def page(recipe: Recipe, gpus: GpuTable) -> str:
    """`docs/guide-check.md`."""
    lines = [
        "# A guide's table, checked",
        "",
        "Made by `clorefleet plan glm-5.1 --check-guide`; a test holds this page to it. A guide that many",
        "users come from names machines and sizes for GLM-5.1. Each is put to the planner as any other is.",
        "Prices are the market's and change by the hour: `clorefleet plan glm-5.1` has today's, all in.",
        "",
        *_summary(recipe, gpus),
    ]
    for requirement in REQUIREMENTS:
        lines += ["", f"## {requirement.title}", "", *_requirement(requirement, recipe)]
    for machine in MACHINES:
        lines += ["", f"## {machine.title}", "", *_machine(machine, recipe, gpus)]
    return "\n".join(lines) + "\n"


def document(recipe: Recipe, gpus: GpuTable) -> dict[str, list[dict[str, str]]]:
    """The verdicts alone, for programs."""
    sizes = [(each.title, each.claim, size_verdict(each, recipe)) for each in REQUIREMENTS]
    machines = [(each.title, each.claim, verdict(each, recipe, gpus)) for each in MACHINES]
    rows = [
        {"guide": title, "claim": claim, "verdict": found.replace("*", "")}
        for title, claim, found in (*sizes, *machines)
    ]
    return {"rows": rows}


def _summary(recipe: Recipe, gpus: GpuTable) -> Iterator[str]:
    yield "| the guide | claims | verdict |"
    yield "| --- | --- | --- |"
    for requirement in REQUIREMENTS:
        yield f"| {requirement.title} | {requirement.claim} | {size_verdict(requirement, recipe)} |"
    for machine in MACHINES:
        yield f"| {machine.title} | {machine.claim} | {verdict(machine, recipe, gpus)} |"


# -- sizes


def size_verdict(requirement: GuideRequirement, recipe: Recipe) -> str:
    gb = recipe.checkpoint(requirement.checkpoint).bytes / 1e9
    is_right = abs(requirement.claimed_gb - gb) <= SIZE_TOLERANCE * gb
    return f"{'true' if is_right else '**false**'}: {gb:,.0f} GB"


def _requirement(requirement: GuideRequirement, recipe: Recipe) -> Iterator[str]:
    checkpoint = recipe.checkpoint(requirement.checkpoint)
    billions = (recipe.parameters.total + recipe.parameters.mtp_layer) / 1e9
    yield f"- The guide: {requirement.claim}."
    yield (
        f"- {checkpoint.bytes / 1e9:,.1f} GB = {_gib(checkpoint.bytes)} GiB for {billions:.2f}B weights, "
        f"drafting layer included [{checkpoint.source}]."
    )
    ratio = requirement.claimed_gb / (checkpoint.bytes / 1e9)
    if abs(ratio - 1) > SIZE_TOLERANCE:
        yield f"- It says {ratio:.2f} times that: a margin for context and activations, not a file size."


# -- machines


def hardware_of(machine: GuideMachine, gpus: GpuTable, *, ram_gib: int | None = None) -> Hardware:
    model = gpus.find(machine.gpu)
    if model is None:
        raise KeyError(machine.gpu)
    return Hardware(
        gpus=(model,) * machine.gpus,
        vram_mib=(model.vram_mib,) * machine.gpus,
        ram_bytes=(ram_gib or machine.ram_gib) * GIB,
        disk_free_bytes=DISK_GIB * GIB,
        cuda_version=(13, 0),
        ram_bandwidth_gb_s=ram_bandwidth_gb_s(machine.cpu),
    )


def claimed_setups(machine: GuideMachine, recipe: Recipe, here: Hardware) -> list[tuple[Setup, Fit]]:
    """Ways to run the claimed checkpoint there, fitting or not."""
    floor = recipe.floors.context_tokens
    return [
        (setup, fit)
        for setup, fit in setups(recipe, here, context_tokens=floor)
        if setup.checkpoint == machine.checkpoint and setup.engine in machine.engines
    ]


def verdict(machine: GuideMachine, recipe: Recipe, gpus: GpuTable) -> str:
    here = hardware_of(machine, gpus)
    fitting = [(s, predict(s, recipe, here)) for s, fit in claimed_setups(machine, recipe, here) if fit.fits]
    if not fitting:
        return "**impossible**"
    setup, speed = max(fitting, key=lambda each: each[1].decode_tokens_per_s)
    told = machine.claimed_tokens_per_s
    slow = told is not None and speed.decode_tokens_per_s < told[0]
    return f"{'**possible, not at that speed**' if slow else 'possible'}: {_speed(setup, speed)}"


def _machine(machine: GuideMachine, recipe: Recipe, gpus: GpuTable) -> Iterator[str]:
    here, checkpoint = hardware_of(machine, gpus), recipe.checkpoint(machine.checkpoint)
    visible = sum(here.vram_mib) * MIB
    yield f"- The guide: {machine.claim}. Verdict: {verdict(machine, recipe, gpus)}."
    yield (
        f"- Weights {checkpoint.bytes / GIB:,.1f} GiB; {machine.gpus} x {here.vram_mib[0] / 1024:.1f} = "
        f"{visible / GIB:,.1f} GiB of GPU memory as nvidia-smi shows it, {machine.ram_gib:,} GiB of RAM."
    )
    for setup, fit in claimed_setups(machine, recipe, here):
        yield f"- {_how(setup)}: {_why(fit)}"
    yield from _with_experts_in_ram(machine, recipe, gpus)
    yield from _with_more_gpus(machine, recipe, gpus)
    yield from _instead(machine, recipe, here)


def _how(setup: Setup) -> str:
    cut = f"{setup.tensor_parallel} GPU(s)"
    if setup.pipeline_parallel > 1:
        cut = f"{setup.tensor_parallel} x {setup.pipeline_parallel} GPUs"
    return f"{setup.engine}, {cut}"


def _why(fit: Fit) -> str:
    if fit.fits:
        return "fits, " + _sum_up(fit)
    if not fit.memory_per_gpu:
        return f"refused: {fit.shortfall}."
    return f"lacks {fit.shortfall} of {fit.binding}: " + _sum_up(fit)


def _sum_up(fit: Fit) -> str:
    """A GPU's memory in its parts, and RAM where it has a say."""
    parts = ", ".join(
        f"{term.name} {_gib(term.value)}" for term in fit.memory_per_gpu if term.value > GIB // 10
    )
    needed = _gib(sum(term.value for term in fit.memory_per_gpu))
    text = f"{parts}; together {needed} of {_gib(fit.visible_bytes)} GiB on the GPU with the least to spare."
    ram = sum(term.value for term in fit.ram)
    return text if ram < 128 * GIB else f"{text} RAM: {_gib(ram)} GiB."


def _gib(value: object) -> str:
    return f"{float(str(value)) / GIB:,.1f}"


def _with_experts_in_ram(machine: GuideMachine, recipe: Recipe, gpus: GpuTable) -> Iterator[str]:
    """The least RAM with which the same GPUs run it, and how fast."""
    if any(fit.fits for _, fit in claimed_setups(machine, recipe, hardware_of(machine, gpus))):
        return
    anyhow = replace(machine, engines=tuple(EngineName))
    for ram_gib in RAM_STEPS_GIB:
        here = hardware_of(machine, gpus, ram_gib=ram_gib)
        fitting = [setup for setup, fit in claimed_setups(anyhow, recipe, here) if fit.fits]
        if not fitting:
            continue
        fast = max(fitting, key=lambda each: predict(each, recipe, here).decode_tokens_per_s)
        slow_ram = replace(here, ram_bandwidth_gb_s=ram_bandwidth_gb_s("AMD EPYC 7742"))
        slowly = predict(fast, recipe, slow_ram).decode_tokens_per_s
        yield (
            f"- With experts in {ram_gib:,} GiB of RAM: {_speed(fast, predict(fast, recipe, here))} at "
            f"{here.ram_bandwidth_gb_s:.0f} GB/s, {slowly:.1f} tok/s at "
            f"{slow_ram.ram_bandwidth_gb_s:.0f} GB/s (eight channels of DDR4-3200)."
        )
        return


def _with_more_gpus(machine: GuideMachine, recipe: Recipe, gpus: GpuTable) -> Iterator[str]:
    """The fewest of the same GPUs that hold it without RAM's help."""
    small = tuple(each for each in machine.engines if each is not EngineName.KTRANSFORMERS)
    for count in range(machine.gpus, RANKS_MAX + 1):
        larger = replace(machine, gpus=count, engines=small)
        here = hardware_of(larger, gpus)
        fitting = [s for s, fit in claimed_setups(larger, recipe, here) if fit.fits and not s.reads_ram]
        if fitting:
            if count > machine.gpus:
                fast = max(fitting, key=lambda each: predict(each, recipe, here).decode_tokens_per_s)
                yield f"- On {count} of these GPUs: {_speed(fast, predict(fast, recipe, here))}."
            return
    yield f"- No number of these GPUs up to {RANKS_MAX} runs it without experts in RAM."


def _instead(machine: GuideMachine, recipe: Recipe, here: Hardware) -> Iterator[str]:
    """The best precision that the machine does run, at the floors of the recipe."""
    floors = recipe.floors
    found: list[tuple[int, float, Setup, Speed]] = []
    for setup, fit in setups(recipe, here, context_tokens=floors.context_tokens):
        speed = predict(setup, recipe, here)
        if fit.fits and speed.decode_tokens_per_s >= floors.decode_tokens_per_s:
            found.append((QUALITY.index(setup.precision), -speed.decode_tokens_per_s, setup, speed))
    if not found:
        return
    _, _, setup, speed = min(found, key=lambda each: each[:2])
    if setup.checkpoint != machine.checkpoint:
        checkpoint: Checkpoint = recipe.checkpoint(setup.checkpoint)
        yield f"- What this machine does run: {checkpoint.format}, {_speed(setup, speed)}."


def _speed(setup: Setup, speed: Speed) -> str:
    return f"{setup.engine}, about {speed.decode_tokens_per_s:.0f} tok/s predicted for one stream"
