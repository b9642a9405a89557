"""What a rented server says that it is: one round trip, and a tolerant reader.

The node's tools may be missing, broken or lying; whatever cannot be read stays None and is never guessed.
What is timed rather than told is `measure`; what both mean beside the offer is `attest`.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

from clorefleet.domain.errors import CommandFailed, NodeUnreachable, OutputTooLarge
from clorefleet.domain.node import GpuFact, GpuTrouble, Measured, NodeFacts
from clorefleet.domain.text import clean_line
from clorefleet.node.session import NodeSession, shell

PROBE_TIMEOUT_S = 45.0
"""A first nvidia-smi on a sleeping driver can take tens of seconds."""
PROBE_MAX_BYTES = 64 * 1024
MEASURE_TIMEOUT_S = 75.0
"""The program bounds each of its parts itself; importing torch from a cold disk is the longest."""
MEASURE_MAX_BYTES = 16 * 1024
VRAM_MIB_MAX = 1 << 20
GPUS_MAX = 64
FIGURE_MAX = 1e9
"""In GB/s, MB/s, Mbit/s or TFLOPS: no server measures more of itself."""
_MEASURE_PATH = ".clorefleet/bin/measure.py"
_NO_LIMIT_BYTES = 1 << 50
"""Version 1 of control groups writes a huge number where there is no limit."""

# In the order in which they are looked for: the first that is found names the trouble.
_TROUBLES: tuple[tuple[str, GpuTrouble], ...] = (
    (r"driver/library version mismatch", GpuTrouble.DRIVER_MISMATCH),
    (r"couldn't communicate with the nvidia driver", GpuTrouble.NO_DRIVER),
    (r"nvidia driver is not loaded|driver not loaded", GpuTrouble.NO_DRIVER),
    (r"gpu is lost|unable to determine the device handle|fallen off the bus", GpuTrouble.GPU_LOST),
    (r"\[(unknown error|gpu is lost|gpu requires reset)\]", GpuTrouble.GPU_LOST),
    (r"no devices were found", GpuTrouble.NO_DEVICES),
    (r"failed to initialize nvml|nvml_error|insufficient permissions", GpuTrouble.NVML),
    (r"nvidia-smi: (command )?not found|nvidia-smi.*no such file", GpuTrouble.NOT_FOUND),
)
"""Texts of `nvidia-smi` [widely seen, not re-read in its source]."""

_SCRIPT = r"""
w=${1:-$HOME}; mkdir -p "$w" 2>/dev/null
s() { printf '\n==%s==\n' "$1"; }
# A driver that hangs must not take the other answers with it.
if command -v timeout > /dev/null; then t() { timeout 20 "$@"; }; else t() { "$@"; }; fi
q() { t nvidia-smi --query-gpu="$1" --format=csv,noheader,nounits 2>&1; }
s gpus; { q name,memory.total,driver_version,compute_cap,pcie.link.gen.max,pcie.link.width.max,memory.used
  printf '\nstatus %s\n' "$?"; } | head -c 20000
s gpus_old; { q name,memory.total,driver_version; printf '\nstatus %s\n' "$?"; } | head -c 20000
s header; t nvidia-smi 2>/dev/null | head -n 6
s topology; t nvidia-smi topo -m 2>/dev/null | head -n 70 | cut -c 1-400
s cores; nproc 2>/dev/null
s cpu; lscpu 2>/dev/null | sed -n 's/^Model name: *//p' | head -n1
sed -n 's/^model name[^:]*: *//p' /proc/cpuinfo 2>/dev/null | head -n1
s ram; free -b 2>/dev/null | sed -n 's/^Mem: *\([0-9]*\).*/\1/p'
s meminfo; sed -n 's/^MemTotal: *\([0-9]*\) kB/\1/p' /proc/meminfo 2>/dev/null
s ramlimit; cat /sys/fs/cgroup/memory.max /sys/fs/cgroup/memory/memory.limit_in_bytes 2>/dev/null | head -n1
s cpulimit; cat /sys/fs/cgroup/cpu.max 2>/dev/null
s cpulimit_old; cat /sys/fs/cgroup/cpu/cpu.cfs_quota_us /sys/fs/cgroup/cpu/cpu.cfs_period_us 2>/dev/null
s pids; cat /sys/fs/cgroup/pids.max /sys/fs/cgroup/pids/pids.max 2>/dev/null | head -n1
s channels; t dmidecode -t memory 2>/dev/null | grep -c 'Size: [0-9]'
s disk; df -B1 --output=avail "$w" 2>/dev/null | tail -n1
s shm; df -B1 --output=size /dev/shm 2>/dev/null | tail -n1
s python; python3 --version 2>&1 | head -n1
s end
"""


def probe(session: NodeSession, folder: str = "") -> NodeFacts:
    """Ask the server what it is; `folder` is where the weights will go.

    Raises:
        NodeError: the server cannot be asked. What it cannot tell is None in the facts.
    """
    command = shell(_SCRIPT, *([folder] if folder else []))
    result = session.run(command, timeout_s=PROBE_TIMEOUT_S, max_output_bytes=PROBE_MAX_BYTES)
    if "end" not in _sections(result.stdout):
        # Half an answer would read as a server without GPUs, which is given back and blocked.
        raise NodeUnreachable("The server stopped while it was measured.")
    return parse_probe(result.stdout)


def measure(session: NodeSession, facts: NodeFacts, sample: str = "", *, mirror: str = "") -> Measured:
    """Time the server's memory, disk, line and GPUs for some seconds.

    `sample` is a file of the weights, as a path below the address of `mirror`, else of the node's own hub.
    A measurement that fails is skipped and says so: not every image has the tools.

    Raises:
        NodeUnreachable: the connection broke.
    """
    if not facts.python_version:
        return Measured(skipped=("all: the image has no python3",))
    path = f"{session.home()}/{_MEASURE_PATH}"
    program = Path(__file__).parent / "payload" / "measure.py"
    try:
        session.write_file(path, program.read_bytes(), mode=0o700)
        result = session.run(
            (*(("env", f"HF_ENDPOINT={mirror}") if mirror else ()), "python3", path, session.home(), sample),
            timeout_s=MEASURE_TIMEOUT_S,
            max_output_bytes=MEASURE_MAX_BYTES,
        )
    except (CommandFailed, OutputTooLarge) as error:
        return Measured(skipped=(f"all: {clean_line(error.what, max_chars=120)}",))
    return parse_measured(result.stdout)


def parse_measured(text: str) -> Measured:
    """Read what `payload/measure.py` prints; anything odd counts as not measured."""
    try:
        document = json.loads(text.strip().splitlines()[-1])
    except (ValueError, IndexError, RecursionError):
        document = None
    if not isinstance(document, dict):
        return Measured(skipped=("all: the server's answer cannot be read",))
    skipped, tflops = document.get("skipped"), document.get("gpu_tflops")
    figures = [_figure(each) for each in tflops[:GPUS_MAX]] if isinstance(tflops, list) else []
    return Measured(
        memory_gb_s=_figure(document.get("memory_gb_s")),
        disk_write_mb_s=_figure(document.get("disk_write_mb_s")),
        disk_read_mb_s=_figure(document.get("disk_read_mb_s")),
        download_mbit_s=_figure(document.get("download_mbit_s")),
        gpu_tflops=tuple(figure for figure in figures if figure is not None),
        skipped=tuple(clean_line(each, max_chars=120) for each in skipped[:8])
        if isinstance(skipped, list)
        else (),
        is_simulated=document.get("simulated") is True,
    )


def _figure(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    try:
        figure = float(value)
    except OverflowError:
        return None
    return figure if 0 <= figure <= FIGURE_MAX else None


def parse_probe(text: str) -> NodeFacts:
    """Read what `_SCRIPT` prints."""
    sections = _sections(text)
    told, status = _told(sections.get("gpus", ""))
    gpus, driver = _gpus(told)
    if not gpus:
        old, old_status = _told(sections.get("gpus_old", ""))
        status = status if old_status is None else old_status
        gpus, driver = _gpus(old)
        told = f"{told}\n{old}"
    ram = _ram_bytes(sections)
    python = re.search(r"Python (3\.[0-9]+(?:\.[0-9]+)?)", sections.get("python", ""))
    channels = _number(sections.get("channels", ""))
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
        gpu_trouble=_trouble(told, status, found=len(gpus)),
        has_nvlink=_has_nvlink(sections.get("topology", ""), len(gpus)),
        memory_channels=channels or None,
        cpu_limit=_cpu_limit(sections),
        pids_limit=_number(sections.get("pids", "")),
    )


def _sections(text: str) -> dict[str, str]:
    parts = re.split(r"^==([a-z_]+)==$", text, flags=re.MULTILINE)
    return {name: body.strip("\n") for name, body in zip(parts[1::2], parts[2::2], strict=False)}


def _told(section: str) -> tuple[str, int | None]:
    """What nvidia-smi printed, and its exit status where it came along."""
    found = re.search(r"(?:^|\n)status ([0-9]{1,3})\s*$", section, re.ASCII)
    return (section, None) if found is None else (section[: found.start()], int(found.group(1)))


def _trouble(told: str, status: int | None, *, found: int) -> GpuTrouble | None:
    text = told.lower()
    for pattern, trouble in _TROUBLES:
        if re.search(pattern, text):
            return trouble
    if status == 124:
        return GpuTrouble.TIMED_OUT
    if status == 127:
        return GpuTrouble.NOT_FOUND
    return None if found else GpuTrouble.UNREADABLE


def _gpus(text: str) -> tuple[tuple[GpuFact, ...], str]:
    """GPUs and driver of nvidia-smi's CSV; none when it printed an error instead."""
    gpus, driver = [], ""
    for line in text.splitlines()[:GPUS_MAX]:
        fields = [clean_line(field, max_chars=80) for field in line.split(",")]
        if len(fields) not in (3, 6, 7) or not re.fullmatch(r"[0-9]{1,8}", fields[1]):
            continue
        if not 0 < int(fields[1]) <= VRAM_MIB_MAX:
            continue
        driver = driver or (fields[2] if re.fullmatch(r"[0-9]+(\.[0-9]+)+", fields[2]) else "")
        has_more = len(fields) > 3
        capability = fields[3] if has_more and re.fullmatch(r"[0-9]+\.[0-9]+", fields[3]) else ""
        gpus.append(
            GpuFact(
                name=fields[0],
                vram_mib=int(fields[1]),
                compute_capability=capability,
                pcie_generation=_small(fields[4]) if has_more else None,
                pcie_width=_small(fields[5]) if has_more else None,
                used_mib=_number(fields[6]) if len(fields) == 7 else None,
            )
        )
    return tuple(gpus), driver


def _has_nvlink(topology: str, gpu_count: int) -> bool | None:
    """Whether every pair of GPUs in `nvidia-smi topo -m` is joined by NVLink (`NV4`, `NV18`, ...)."""
    rows = [line.split() for line in topology.splitlines() if re.match(r"\s*GPU[0-9]+\s", line)]
    rows = [row for row in rows if len(row) > gpu_count and row[1] != "GPU1"]
    if gpu_count < 2 or len(rows) < gpu_count:
        return None
    links = [link for row in rows[:gpu_count] for link in row[1 : gpu_count + 1] if link != "X"]
    return bool(links) and all(re.fullmatch(r"NV[0-9]+", link) for link in links)


def _ram_bytes(sections: dict[str, str]) -> int | None:
    """The less of what the machine has and what the container may use."""
    total = _number(sections.get("ram", ""))
    if total is None:
        kib = _number(sections.get("meminfo", ""))
        total = None if kib is None else kib * 1024
    limit = _number(sections.get("ramlimit", ""))
    if limit is None or not 0 < limit < _NO_LIMIT_BYTES:
        return total
    return limit if total is None else min(total, limit)


def _cpu_limit(sections: dict[str, str]) -> float | None:
    words = (sections.get("cpulimit", "") or sections.get("cpulimit_old", "")).split()
    if len(words) != 2 or not all(re.fullmatch(r"[0-9]{1,12}", word) for word in words):
        return None
    quota, period = int(words[0]), int(words[1])
    return quota / period if quota and period else None


def _small(text: str) -> int | None:
    return int(text) if text.isdecimal() and text.isascii() and len(text) <= 3 else None


def _number(text: str) -> int | None:
    found = re.match(r"\s*([0-9]{1,18})\b", text, re.ASCII)
    return int(found.group(1)) if found else None


def _cuda(text: str) -> tuple[int, int] | None:
    found = re.search(r"CUDA Version: *([0-9]{1,3})\.([0-9]{1,3})", text)
    return (int(found.group(1)), int(found.group(2))) if found else None
