"""Whether a rented server is what was offered, and enough for the plan: facts beside claims, with thresholds.

A host can fake `nvidia-smi`. What it tells catches careless lies and honest faults; what was timed on it
catches dearer lies; the measured speed of the replica catches the others. Pure: values in, values out.

A *fatal* discrepancy ends the lease and leaves the server out of later plans; the others are kept on record.
The thresholds are judgements [assumed]: low enough that an honest server passes, with its ECC memory, its
half-filled memory slots and its neighbours on the line.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from decimal import Decimal
from functools import cache

from clorefleet.domain.gpu import GpuModel
from clorefleet.domain.node import Discrepancy, GpuTrouble, NodeFacts
from clorefleet.domain.offer import Offer
from clorefleet.domain.plan import Plan
from clorefleet.domain.recipe import EngineName, EngineSupport
from clorefleet.domain.text import clean_line
from clorefleet.planner.gpus import GpuTable, load_gpus
from clorefleet.planner.hardware import ram_bandwidth_gb_s

CODES = {
    "no_gpu": "nvidia-smi shows no GPU",
    "gpu_count": "fewer GPUs than offered",
    "gpu_model": "another GPU than offered",
    "gpu_trouble": "nvidia-smi complains, though all GPUs are there",
    "compute_capability": "not the chip of its name, or too old for the engine",
    "vram": "less GPU memory than offered",
    "vram_in_use": "somebody else holds GPU memory",
    "gpu_speed": "the GPU computes far slower than its model",
    "cuda": "the driver's CUDA is older than offered, or than the engine's image needs",
    "driver": "driver and CUDA version contradict each other",
    "pcie": "a narrower or older link than offered",
    "nvlink": "no NVLink where the GPU's model has it",
    "ram": "less memory than offered",
    "memory_speed": "memory far slower than the CPU's own kind",
    "cores": "fewer CPU threads than offered",
    "disk": "less free disk than offered, or than the plan needs",
    "disk_speed": "the disk is far slower than offered",
    "network": "the line is far slower than offered",
    "shm": "shared memory is too small for several GPUs",
}

VRAM_SHORTFALL = Decimal("0.08")
"""Offers tell marketing gigabytes (24), drivers tell less (23.99 or, with ECC, 22.5 GiB)."""
RAM_SHORTFALL = Decimal("0.10")
DISK_SHORTFALL = Decimal("0.20")
"""Not fatal while the plan's files fit: images and other renters' leftovers take their part."""
VRAM_IN_USE_MIB_MAX = 1024
"""A display server holds some hundred; an earlier renter's process holds gigabytes."""
MEMORY_SPEED_MIN = 0.3
"""Of the CPU family's peak. A copy from Python reaches some 0.6 of it with every channel filled."""
SLOW_SHARE = 0.25
"""Of an offered disk or line speed, below which it counts as another one."""
GPU_SPEED_MIN = 0.4
"""Of the model's dense 16-bit peak; an honest card reaches 0.6 to 0.9 in a large product."""
LOAD_S_MAX = 3600
"""From disk into memory, for the plan's weights: what an engine's launch may take."""
SYNC_S_MAX = 3 * 3600
"""For the plan's weights over the line: below the time limit of the syncing phase."""
SHM_MIN_BYTES = 1 << 30
"""Docker's default of 64 MB makes NCCL fail between GPUs; how Clore's hosts set it is not known."""
_BLACKWELL, _BLACKWELL_CUDA = (10, 0), (12, 8)
_DRIVER_CUDA = (
    # The least driver of a CUDA version: NVIDIA's CUDA release notes.
    ((580, 65), (13, 0)),
    ((575, 51), (12, 9)),
    ((570, 26), (12, 8)),
    ((560, 28), (12, 6)),
    ((550, 54), (12, 4)),
    ((525, 60), (12, 0)),
    ((450, 80), (11, 0)),
)
_GIB = 1 << 30


@dataclass(frozen=True, slots=True)
class Needs:
    """What a plan asks of the server, whatever was offered."""

    disk_bytes: int
    weights_bytes: int = 0
    min_cuda: tuple[int, int] | None = None
    min_compute_capability: tuple[int, int] | None = None
    uses_ram: bool = False
    """Some of the model is computed by the CPU from RAM."""
    gpus_talk: bool = False
    """Several GPUs exchange data through NCCL."""


def needs_of(plan: Plan, support: EngineSupport, *, disk_bytes: int) -> Needs:
    setup = plan.setup
    return Needs(
        disk_bytes=disk_bytes,
        weights_bytes=setup.checkpoint_bytes,
        min_cuda=_version(support.min_cuda_of(setup.image)),
        min_compute_capability=_version(support.min_compute_capability),
        uses_ram=bool(setup.experts_in_ram),
        gpus_talk=setup.tensor_parallel > 1 and setup.engine is not EngineName.LLAMACPP,
    )


def compare(offer: Offer, facts: NodeFacts, needs: Needs) -> tuple[Discrepancy, ...]:
    """Where the server is not what was offered, or not what the plan needs; fatal ones first."""
    found = [
        *_gpus(offer, facts),
        *_chip(facts, needs),
        *_vram(offer, facts),
        *_cuda(offer, facts, needs),
        *_links(offer, facts),
        *_memory(offer, facts, needs),
        *_cores(offer, facts, needs),
        *_disk(offer, facts, needs),
        *_line(offer, facts, needs),
    ]
    return tuple(sorted(found, key=lambda each: not each.is_fatal))


# -- GPUs


_TROUBLE_WORDS = {
    GpuTrouble.NOT_FOUND: "nvidia-smi is not installed",
    GpuTrouble.DRIVER_MISMATCH: "driver and library differ in version: updated and not restarted",
    GpuTrouble.NO_DRIVER: "nvidia-smi cannot reach the driver",
    GpuTrouble.NO_DEVICES: "the driver finds no device",
    GpuTrouble.GPU_LOST: "a GPU is lost: its host must be restarted",
    GpuTrouble.NVML: "the container has no access to its GPUs",
    GpuTrouble.TIMED_OUT: "nvidia-smi hangs",
    GpuTrouble.UNREADABLE: "nvidia-smi shows no GPU",
}


def _gpus(offer: Offer, facts: NodeFacts) -> Iterator[Discrepancy]:
    trouble = "" if facts.gpu_trouble is None else _TROUBLE_WORDS[facts.gpu_trouble]
    if not facts.gpus:
        yield Discrepancy("no_gpu", offer.gpu_summary, trouble or "nvidia-smi shows no GPU", is_fatal=True)
        return
    if len(facts.gpus) < offer.gpu_count:
        found = f"{len(facts.gpus)}; {trouble}" if trouble else str(len(facts.gpus))
        yield Discrepancy("gpu_count", str(offer.gpu_count), found, is_fatal=True)
        return
    if trouble:
        yield Discrepancy("gpu_trouble", offer.gpu_summary, trouble, is_fatal=False)
    unmatched = list(facts.gpus)
    for offered in offer.gpus:
        match = next((gpu for gpu in unmatched if is_same_gpu(offered.name, gpu.name)), None)
        if match is None:
            names = ", ".join(sorted({gpu.name for gpu in unmatched}))
            yield Discrepancy("gpu_model", offer.gpu_summary, clean_line(names, max_chars=120), is_fatal=True)
            return
        unmatched.remove(match)


_DECORATION = re.compile(
    r"nvidia|geforce|tesla|quadro|generation|[0-9]+ ?gb|\(.*?\)|sxm[0-9]*|pcie|hbm[0-9]e?|[^a-z0-9]+"
)
_VARIANTS = frozenset({"ti", "super", "laptop", "mobile", "ada", "d", "pro", "max", "mig"})
"""Words that make another chip of a name, so that both sides must have them."""


def is_same_gpu(offered: str, found: str) -> bool:
    """Whether an offer's name and a driver's name mean one model: `RTX 4090`, `NVIDIA GeForce RTX 4090`.

    Memory is left out; it is compared by itself.
    """
    mine, theirs = _gpu_words(offered), _gpu_words(found)
    if not mine or not theirs or (mine ^ theirs) & _VARIANTS:
        return False
    return mine <= theirs or theirs <= mine


def _gpu_words(name: str) -> frozenset[str]:
    spaced = re.sub(r"(?<=[rg]tx)(?=[0-9])|(?<=[0-9]{4})(?=ti|super)", " ", name.lower())
    return frozenset(_DECORATION.sub(" ", spaced).split())


def _chip(facts: NodeFacts, needs: Needs) -> Iterator[Discrepancy]:
    """A name is easily changed; the compute capability and the speed must go with it."""
    measured = () if facts.measured is None else facts.measured.gpu_tflops
    for index, gpu in enumerate(facts.gpus):
        model = _model(gpu.name, gpu.vram_mib)
        capability = _version(gpu.compute_capability)
        if model is not None and capability is not None and capability != model.compute_capability:
            wanted = f"{model.name}: {_dotted(model.compute_capability)}"
            yield Discrepancy("compute_capability", wanted, gpu.compute_capability, is_fatal=True)
            return
        least = needs.min_compute_capability
        if least is not None and capability is not None and capability < least:
            yield Discrepancy(
                "compute_capability",
                f"{_dotted(least)} needed",
                gpu.compute_capability,
                is_fatal=True,
            )
            return
        if model is None or model.bf16_tflops is None or index >= len(measured):
            continue
        if measured[index] < model.bf16_tflops * GPU_SPEED_MIN:
            yield Discrepancy(
                "gpu_speed",
                f"{model.name}: {model.bf16_tflops:.0f} TFLOPS",
                f"{measured[index]:.0f} TFLOPS",
                is_fatal=True,
            )
            return


@cache
def _table() -> GpuTable:
    return load_gpus()


def _model(name: str, vram_mib: int) -> GpuModel | None:
    return _table().find(name, Decimal(vram_mib) / 1024)


def _vram(offer: Offer, facts: NodeFacts) -> Iterator[Discrepancy]:
    if not facts.gpus:
        return
    claims = [gpu.claimed_vram_gib for gpu in offer.gpus if gpu.claimed_vram_gib is not None]
    least_mib = min(gpu.vram_mib for gpu in facts.gpus)
    if claims and Decimal(least_mib) / 1024 < min(claims) * (1 - VRAM_SHORTFALL):
        yield Discrepancy("vram", f"{min(claims)} GiB", f"{least_mib / 1024:.1f} GiB", is_fatal=True)
    used_mib = max((gpu.used_mib or 0) for gpu in facts.gpus)
    if used_mib > VRAM_IN_USE_MIB_MAX:
        yield Discrepancy("vram_in_use", "free GPUs", f"{used_mib / 1024:.1f} GiB in use", is_fatal=True)


def _cuda(offer: Offer, facts: NodeFacts, needs: Needs) -> Iterator[Discrepancy]:
    by_driver = cuda_of_driver(facts.driver_version)
    found = facts.cuda_version or by_driver
    if facts.cuda_version and by_driver and facts.cuda_version[0] > by_driver[0]:
        yield Discrepancy(
            "driver",
            f"CUDA {_dotted(facts.cuda_version)}",
            f"driver {facts.driver_version}, which has CUDA {_dotted(by_driver)}",
            is_fatal=False,
        )
    if found is None:
        return
    newest = max((_version(gpu.compute_capability) or (0, 0) for gpu in facts.gpus), default=(0, 0))
    for wanted, why in (
        (offer.cuda_version, ""),
        (needs.min_cuda, " needed by the image"),
        (_BLACKWELL_CUDA if newest >= _BLACKWELL else None, " needed by Blackwell"),
    ):
        if wanted is not None and found < wanted:
            yield Discrepancy("cuda", f"{_dotted(wanted)}{why}", _dotted(found), is_fatal=True)
            return


def cuda_of_driver(version: str) -> tuple[int, int] | None:
    """The newest CUDA that a driver supports at least, by NVIDIA's table; None for one that is not known."""
    parts = re.match(r"([0-9]{1,4})\.([0-9]{1,4})", version)
    if parts is None:
        return None
    driver = (int(parts.group(1)), int(parts.group(2)))
    return next((cuda for least, cuda in _DRIVER_CUDA if driver >= least), None)


def _links(offer: Offer, facts: NodeFacts) -> Iterator[Discrepancy]:
    if offer.pcie_generation and offer.pcie_width:
        offered = 2**offer.pcie_generation * offer.pcie_width
        for gpu in facts.gpus:
            if not gpu.pcie_generation or not gpu.pcie_width:
                continue
            if 2**gpu.pcie_generation * gpu.pcie_width * 2 <= offered:
                yield Discrepancy(
                    "pcie",
                    f"PCIe {offer.pcie_generation} x{offer.pcie_width}",
                    f"PCIe {gpu.pcie_generation} x{gpu.pcie_width}",
                    is_fatal=False,
                )
                break
    if facts.has_nvlink is False:
        models = [_model(gpu.name, gpu.vram_mib) for gpu in facts.gpus]
        if all(model is not None and model.has_nvlink for model in models):
            yield Discrepancy("nvlink", "NVLink between all", "PCIe between some", is_fatal=False)


# -- memory, CPU, disk, line


def _memory(offer: Offer, facts: NodeFacts, needs: Needs) -> Iterator[Discrepancy]:
    if offer.ram_bytes and facts.ram_bytes and facts.ram_bytes < offer.ram_bytes * (1 - RAM_SHORTFALL):
        offered, found = f"{offer.ram_bytes / _GIB:.0f} GiB", f"{facts.ram_bytes / _GIB:.0f} GiB"
        yield Discrepancy("ram", offered, found, is_fatal=True)
    if needs.gpus_talk and facts.shm_bytes is not None and facts.shm_bytes < SHM_MIN_BYTES:
        yield Discrepancy(
            "shm", f"{SHM_MIN_BYTES / _GIB:.0f} GiB wanted", f"{facts.shm_bytes >> 20} MiB", is_fatal=False
        )
    speed = None if facts.measured is None else facts.measured.memory_gb_s
    if speed is not None and facts.cpu_model:
        peak = ram_bandwidth_gb_s(facts.cpu_model)
        if speed < peak * MEMORY_SPEED_MIN:
            yield Discrepancy(
                "memory_speed",
                f"{peak:.0f} GB/s by its CPU",
                f"{speed:.0f} GB/s measured",
                is_fatal=needs.uses_ram,
            )


def _cores(offer: Offer, facts: NodeFacts, needs: Needs) -> Iterator[Discrepancy]:
    offered = offer.threads or offer.cores
    usable = [each for each in (facts.cores, facts.cpu_limit) if each is not None]
    if offered is None or not usable or min(usable) * 2 >= offered:
        return
    is_limit = facts.cpu_limit is not None and facts.cpu_limit == min(usable)
    found = f"{min(usable):g}" + (", by the container's limit" if is_limit else "")
    yield Discrepancy("cores", str(offered), found, is_fatal=needs.uses_ram)


def _disk(offer: Offer, facts: NodeFacts, needs: Needs) -> Iterator[Discrepancy]:
    """A disk that is smaller than offered and still large enough is no reason to leave."""
    free, offered = facts.disk_free_bytes, offer.disk_free_bytes
    if free is not None and free < needs.disk_bytes:
        text = f"{free / _GIB:.0f} GiB free, {needs.disk_bytes / _GIB:.0f} GiB needed"
        claim = "?" if offered is None else f"{offered / _GIB:.0f} GiB"
        yield Discrepancy("disk", claim, text, is_fatal=True)
    elif free is not None and offered is not None and free < offered * (1 - DISK_SHORTFALL):
        yield Discrepancy("disk", f"{offered / _GIB:.0f} GiB", f"{free / _GIB:.0f} GiB", is_fatal=False)
    speed = None if facts.measured is None else facts.measured.disk_read_mb_s
    if speed is None or offer.disk_mb_s is None or speed >= float(offer.disk_mb_s) * SLOW_SHARE:
        return
    load_s = needs.weights_bytes / max(speed * 1e6, 1.0)
    yield Discrepancy(
        "disk_speed",
        f"{offer.disk_mb_s:.0f} MB/s",
        f"{speed:.0f} MB/s measured",
        is_fatal=load_s > LOAD_S_MAX,
    )


def _line(offer: Offer, facts: NodeFacts, needs: Needs) -> Iterator[Discrepancy]:
    speed = None if facts.measured is None else facts.measured.download_mbit_s
    if speed is None or offer.down_mbit_s is None or speed >= float(offer.down_mbit_s) * SLOW_SHARE:
        return
    sync_s = needs.weights_bytes / max(speed * 125_000, 1.0)
    yield Discrepancy(
        "network",
        f"{offer.down_mbit_s:.0f} Mbit/s",
        f"{speed:.0f} Mbit/s measured",
        is_fatal=sync_s > SYNC_S_MAX,
    )


def _version(text: str) -> tuple[int, int] | None:
    found = re.match(r"([0-9]{1,3})(?:\.([0-9]{1,3}))?", text, re.ASCII)
    return None if found is None else (int(found.group(1)), int(found.group(2) or 0))


def _dotted(version: tuple[int, int]) -> str:
    return f"{version[0]}.{version[1]}"
