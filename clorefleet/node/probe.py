"""What a rented server really is: one round trip, a tolerant reader, and a comparison with the offer.

The node's tools may be missing, broken or lying; whatever cannot be read stays None and is never guessed.
`nvidia-smi` can be faked by a hostile host: this comparison catches careless lies, and the measured speed
of the replica catches the others.
"""

from __future__ import annotations

import re
from decimal import Decimal

from clorefleet.domain.errors import NodeUnreachable
from clorefleet.domain.node import Discrepancy, GpuFact, NodeFacts
from clorefleet.domain.offer import Offer
from clorefleet.domain.text import clean_line
from clorefleet.node.session import NodeSession, shell

PROBE_TIMEOUT_S = 45.0
"""A first nvidia-smi on a sleeping driver can take tens of seconds."""
PROBE_MAX_BYTES = 64 * 1024
VRAM_MIB_MAX = 1 << 20
GPUS_MAX = 64

VRAM_SHORTFALL = Decimal("0.08")
"""Offers tell marketing gigabytes (24), drivers tell less (23.99 or, with ECC, 22.5 GiB)."""
RAM_SHORTFALL = Decimal("0.10")
DISK_SHORTFALL = Decimal("0.20")
"""Not fatal while the plan's files fit: images and other renters' leftovers take their part."""
_GIB = 1 << 30

_SCRIPT = r"""
w=${1:-$HOME}; mkdir -p "$w" 2>/dev/null
s() { printf '\n==%s==\n' "$1"; }
# A driver that hangs must not take the other answers with it.
if command -v timeout > /dev/null; then t() { timeout 20 "$@"; }; else t() { "$@"; }; fi
q() { t nvidia-smi --query-gpu="$1" --format=csv,noheader,nounits 2>&1 | head -n 70; }
s gpus; q name,memory.total,driver_version,compute_cap,pcie.link.gen.max,pcie.link.width.max
s gpus_old; q name,memory.total,driver_version
s header; t nvidia-smi 2>/dev/null | head -n 6
s cores; nproc 2>/dev/null
s cpu; lscpu 2>/dev/null | sed -n 's/^Model name: *//p' | head -n1
sed -n 's/^model name[^:]*: *//p' /proc/cpuinfo 2>/dev/null | head -n1
s ram; free -b 2>/dev/null | sed -n 's/^Mem: *\([0-9]*\).*/\1/p'
s meminfo; sed -n 's/^MemTotal: *\([0-9]*\) kB/\1/p' /proc/meminfo 2>/dev/null
s disk; df -B1 --output=avail "$w" 2>/dev/null | tail -n1
s shm; df -B1 --output=size /dev/shm 2>/dev/null | tail -n1
s python; python3 --version 2>&1 | head -n1
s end
"""


def probe(session: NodeSession, folder: str = "") -> NodeFacts:
    """Measure the server; `folder` is where the weights will go.

    Raises:
        NodeError: the server cannot be asked. What it cannot tell is None in the facts.
    """
    command = shell(_SCRIPT, *([folder] if folder else []))
    result = session.run(command, timeout_s=PROBE_TIMEOUT_S, max_output_bytes=PROBE_MAX_BYTES)
    if "end" not in _sections(result.stdout):
        # Half an answer would read as a server without GPUs, which is given back and blocked.
        raise NodeUnreachable("The server stopped while it was measured.")
    return parse_probe(result.stdout)


def parse_probe(text: str) -> NodeFacts:
    sections = _sections(text)
    gpus, driver = _gpus(sections.get("gpus", ""))
    if not gpus:
        gpus, driver = _gpus(sections.get("gpus_old", ""))
    ram = _number(sections.get("ram", ""))
    if ram is None:
        kib = _number(sections.get("meminfo", ""))
        ram = None if kib is None else kib * 1024
    python = re.search(r"Python (3\.[0-9]+(?:\.[0-9]+)?)", sections.get("python", ""))
    return NodeFacts(
        gpus=gpus,
        driver_version=driver,
        cuda_version=_cuda(sections.get("header", "")),
        ram_bytes=ram,
        cores=_number(sections.get("cores", "")),
        cpu_model=clean_line(sections.get("cpu", "").split("\n")[0], max_chars=80),
        disk_free_bytes=_number(sections.get("disk", "")),
        shm_bytes=_number(sections.get("shm", "")),
        python_version=python.group(1) if python else "",
    )


def _sections(text: str) -> dict[str, str]:
    parts = re.split(r"^==([a-z_]+)==$", text, flags=re.MULTILINE)
    return {name: body.strip("\n") for name, body in zip(parts[1::2], parts[2::2], strict=False)}


def _gpus(text: str) -> tuple[tuple[GpuFact, ...], str]:
    """GPUs and driver of nvidia-smi's CSV; none when it printed an error instead."""
    gpus, driver = [], ""
    for line in text.splitlines()[:GPUS_MAX]:
        fields = [clean_line(field, max_chars=80) for field in line.split(",")]
        if len(fields) not in (3, 6) or not re.fullmatch(r"[0-9]{1,8}", fields[1]):
            continue
        if not 0 < int(fields[1]) <= VRAM_MIB_MAX:
            continue
        driver = driver or (fields[2] if re.fullmatch(r"[0-9]+(\.[0-9]+)+", fields[2]) else "")
        has_more = len(fields) == 6
        capability = fields[3] if has_more and re.fullmatch(r"[0-9]+\.[0-9]+", fields[3]) else ""
        gpus.append(
            GpuFact(
                name=fields[0],
                vram_mib=int(fields[1]),
                compute_capability=capability,
                pcie_generation=_small(fields[4]) if has_more else None,
                pcie_width=_small(fields[5]) if has_more else None,
            )
        )
    return tuple(gpus), driver


def _small(text: str) -> int | None:
    return int(text) if text.isdigit() and len(text) <= 3 else None


def _number(text: str) -> int | None:
    found = re.match(r"\s*([0-9]{1,18})\b", text)
    return int(found.group(1)) if found else None


def _cuda(text: str) -> tuple[int, int] | None:
    found = re.search(r"CUDA Version: *([0-9]{1,3})\.([0-9]{1,3})", text)
    return (int(found.group(1)), int(found.group(2))) if found else None


def compare(offer: Offer, facts: NodeFacts, *, disk_needed_bytes: int) -> tuple[Discrepancy, ...]:
    """Where the server is not what was offered. Fatal ones end the lease; the others are kept on record.

    `disk_needed_bytes` is what the plan needs free: a disk that is smaller than offered and still large
    enough is no reason to leave.
    """
    return tuple(
        each
        for each in (
            _compare_gpus(offer, facts),
            _compare_vram(offer, facts),
            _compare_cuda(offer, facts),
            _compare_ram(offer, facts),
            _compare_disk(offer, facts, disk_needed_bytes),
            _compare_cores(offer, facts),
        )
        if each is not None
    )


def _compare_gpus(offer: Offer, facts: NodeFacts) -> Discrepancy | None:
    if not facts.gpus:
        return Discrepancy("no_gpu", offer.gpu_summary, "nvidia-smi shows no GPU", is_fatal=True)
    if len(facts.gpus) < offer.gpu_count:
        return Discrepancy("gpu_count", str(offer.gpu_count), str(len(facts.gpus)), is_fatal=True)
    unmatched = list(facts.gpus)
    for offered in offer.gpus:
        match = next((gpu for gpu in unmatched if is_same_gpu(offered.name, gpu.name)), None)
        if match is None:
            found = ", ".join(sorted({gpu.name for gpu in unmatched}))
            return Discrepancy(
                "gpu_model", offer.gpu_summary, clean_line(found, max_chars=120), is_fatal=True
            )
        unmatched.remove(match)
    return None


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


def _compare_vram(offer: Offer, facts: NodeFacts) -> Discrepancy | None:
    claims = [gpu.claimed_vram_gib for gpu in offer.gpus if gpu.claimed_vram_gib is not None]
    if not claims or not facts.gpus:
        return None
    least_claim = min(claims)
    least_mib = min(gpu.vram_mib for gpu in facts.gpus)
    if Decimal(least_mib) / 1024 >= least_claim * (1 - VRAM_SHORTFALL):
        return None
    return Discrepancy("vram", f"{least_claim} GiB", f"{least_mib / 1024:.1f} GiB", is_fatal=True)


def _compare_cuda(offer: Offer, facts: NodeFacts) -> Discrepancy | None:
    if offer.cuda_version is None or facts.cuda_version is None or facts.cuda_version >= offer.cuda_version:
        return None
    return Discrepancy("cuda", _dotted(offer.cuda_version), _dotted(facts.cuda_version), is_fatal=True)


def _dotted(version: tuple[int, int]) -> str:
    return f"{version[0]}.{version[1]}"


def _compare_ram(offer: Offer, facts: NodeFacts) -> Discrepancy | None:
    if offer.ram_bytes is None or facts.ram_bytes is None:
        return None
    if facts.ram_bytes >= offer.ram_bytes * (1 - RAM_SHORTFALL):
        return None
    offered, found = f"{offer.ram_bytes / _GIB:.0f} GiB", f"{facts.ram_bytes / _GIB:.0f} GiB"
    return Discrepancy("ram", offered, found, is_fatal=True)


def _compare_disk(offer: Offer, facts: NodeFacts, needed_bytes: int) -> Discrepancy | None:
    if facts.disk_free_bytes is None:
        return None
    if facts.disk_free_bytes < needed_bytes:
        text = f"{facts.disk_free_bytes / _GIB:.0f} GiB free, {needed_bytes / _GIB:.0f} GiB needed"
        offered = "?" if offer.disk_free_bytes is None else f"{offer.disk_free_bytes / _GIB:.0f} GiB"
        return Discrepancy("disk", offered, text, is_fatal=True)
    if offer.disk_free_bytes is not None and facts.disk_free_bytes < offer.disk_free_bytes * (
        1 - DISK_SHORTFALL
    ):
        return Discrepancy(
            "disk",
            f"{offer.disk_free_bytes / _GIB:.0f} GiB",
            f"{facts.disk_free_bytes / _GIB:.0f} GiB",
            is_fatal=False,
        )
    return None


def _compare_cores(offer: Offer, facts: NodeFacts) -> Discrepancy | None:
    offered = offer.threads or offer.cores
    if offered is None or facts.cores is None or facts.cores * 2 >= offered:
        return None
    return Discrepancy("cores", str(offered), str(facts.cores), is_fatal=False)
