"""What a server says that it is, read tolerantly; and what that means beside its offer (F9, F10, F11)."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from decimal import Decimal
from pathlib import Path

import pytest

from clorefleet.domain.node import GpuFact, GpuTrouble, Measured
from clorefleet.node import probe
from clorefleet.node.attest import CODES, Needs, compare, cuda_of_driver, is_same_gpu
from clorefleet.node.probe import parse_measured, parse_probe
from clorefleet.node.session import NodeSession
from tests.fleet.builders import offer
from tests.node.world import prove_nonce, sandbox_node

HONEST = """
==gpus==
NVIDIA GeForce RTX 4090, 24564, 580.95.05, 8.9, 4, 16
==gpus_old==
NVIDIA GeForce RTX 4090, 24564, 580.95.05
==header==
Tue Nov 24 12:00:00 2026
+-----------------------------------------------------------------------------+
| NVIDIA-SMI 580.95.05    Driver Version: 580.95.05    CUDA Version: 13.0     |
==cores==
128
==cpu==
AMD EPYC 7702 64-Core Processor
==ram==
549755813888
==disk==
2199023255552
==shm==
68719476736
==python==
Python 3.11.2
==end==
"""


def test_an_honest_server_is_read_whole():
    facts = parse_probe(HONEST)
    assert facts.gpus == (GpuFact("NVIDIA GeForce RTX 4090", 24564, "8.9", 4, 16),)
    assert (facts.driver_version, facts.cuda_version) == ("580.95.05", (13, 0))
    assert (facts.cores, facts.ram_bytes, facts.python_version) == (128, 512 << 30, "3.11.2")
    assert compare(offer(cores=64, threads=128), facts, Needs(10**9)) == ()


@pytest.mark.parametrize(
    "old, new, code",
    [
        ("NVIDIA GeForce RTX 4090, 24564, 580.95.05, 8.9, 4, 16\n", "NVIDIA-SMI has failed\n", "vram"),
        ("RTX 4090", "GTX 1660", "gpu_model"),
        ("24564", "12288", "vram"),
        ("CUDA Version: 13.0", "CUDA Version: 12.2", "cuda"),
        ("549755813888", "137438953472", "ram"),
        ("2199023255552", "500000000", "disk"),
    ],
)
def test_a_lie_is_a_fatal_discrepancy(old: str, new: str, code: str):
    text = HONEST.replace(old, new)
    if "failed" in new:
        text = text.replace("NVIDIA GeForce RTX 4090, 24564, 580.95.05\n", "no\n")
        code = "no_gpu"
    found = compare(offer(), parse_probe(text), Needs(10**9))
    assert [each.code for each in found if each.is_fatal] == [code]


def test_fewer_gpus_than_offered_are_fatal():
    facts = parse_probe(HONEST)
    two = offer(gpus=offer().gpus * 2)
    assert [each.code for each in compare(two, facts, Needs(0))] == ["gpu_count"]


@pytest.mark.parametrize(
    "offered, found",
    [
        ("RTX 4090", "NVIDIA GeForce RTX 4090"),
        ("H200", "NVIDIA H200"),
        ("H100 80GB HBM3", "NVIDIA H100 80GB HBM3"),
        ("A100-SXM4-80GB", "NVIDIA A100-SXM4-80GB"),
        ("Tesla V100-SXM2-16GB", "Tesla V100-SXM2-16GB"),
        ("RTX PRO 6000 Blackwell Workstation Edition", "NVIDIA RTX PRO 6000 Blackwell Workstation Edition"),
    ],
)
def test_names_of_offers_and_drivers_are_recognised_as_the_same(offered: str, found: str):
    facts = replace(parse_probe(HONEST), gpus=(GpuFact(found, 200_000, ""),))
    gpus = (replace(offer().gpus[0], name=offered, claimed_vram_gib=Decimal(10)),)
    assert [e.code for e in compare(offer(gpus=gpus), facts, Needs(0)) if e.is_fatal] == []


@pytest.mark.parametrize(
    "offered, found",
    [
        ("A100", "NVIDIA A10"),
        ("L40", "NVIDIA L4"),
        ("RTX 4060 Ti", "NVIDIA GeForce RTX 4060"),
        ("RTX 4070", "NVIDIA GeForce RTX 4070 Laptop GPU"),
        ("RTX 4080", "NVIDIA GeForce RTX 4080 SUPER"),
        ("RTX 6000 Ada Generation", "Quadro RTX 6000"),
        ("RTX PRO 6000 Blackwell", "RTX A6000"),
        ("H200", "NVIDIA H100 80GB HBM3"),
        ("A100-SXM4-80GB", "NVIDIA A100-SXM4-80GB MIG 1g.10gb"),
        ("RTX 4090", ""),
    ],
)
def test_another_chip_with_a_name_alike_is_not_the_same(offered: str, found: str):
    """F10."""
    assert not is_same_gpu(offered, found)


def test_a_mixed_rig_is_compared_card_by_card():
    names = ("RTX 3060", "RTX 3090", "RTX 3090")
    mixed = offer(gpus=tuple(replace(offer().gpus[0], name=name, claimed_vram_gib=None) for name in names))
    found = [GpuFact(f"NVIDIA GeForce {name}", 24_576, "8.6") for name in reversed(names)]
    facts = replace(parse_probe(HONEST), gpus=tuple(found))
    assert compare(mixed, facts, Needs(0)) == ()
    facts = replace(facts, gpus=(found[0], found[2], found[2]))
    assert [each.code for each in compare(mixed, facts, Needs(0))] == ["gpu_model"]


@pytest.mark.parametrize(
    "text",
    ["", "==gpus==\n" + "x" * 10_000, "==gpus==\n\x1b[2J, 24564, 1.0\n", "==ram==\n-5\n", "==cores==\nmany\n",
     "==gpus==\n" + "A, 1, 2.0\n" * 1000, "==header==\nCUDA Version: 99999.1\n"],
)  # fmt: skip
def test_anything_else_a_node_prints_is_none_not_an_error(text: str):
    facts = parse_probe(text)
    assert len(facts.gpus) <= 64
    assert all("\x1b" not in gpu.name for gpu in facts.gpus)


# -- nvidia-smi's ways to fail

_CSV = "NVIDIA GeForce RTX 4090, 24564, 580.95.05, 8.9, 4, 16, 4"


@pytest.mark.parametrize(
    "printed, status, trouble",
    [
        ("sh: 1: nvidia-smi: not found", 127, GpuTrouble.NOT_FOUND),
        ("bash: line 1: nvidia-smi: command not found", 127, GpuTrouble.NOT_FOUND),
        ("Failed to initialize NVML: Driver/library version mismatch", 18, GpuTrouble.DRIVER_MISMATCH),
        ("NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver.", 9,
         GpuTrouble.NO_DRIVER),
        ("No devices were found", 6, GpuTrouble.NO_DEVICES),
        ("Failed to initialize NVML: Unknown Error", 255, GpuTrouble.NVML),
        ("Unable to determine the device handle for GPU0000:41:00.0: Unknown Error", 255,
         GpuTrouble.GPU_LOST),
        ("Unable to determine the device handle for GPU0000:41:00.0: GPU is lost.  Reboot", 15,
         GpuTrouble.GPU_LOST),
        ("NVIDIA GeForce RTX 4090, [Unknown Error], 580.95.05, 8.9, 4, 16, [Unknown Error]", 0,
         GpuTrouble.GPU_LOST),
        ("", 124, GpuTrouble.TIMED_OUT),
        ("what?", 1, GpuTrouble.UNREADABLE),
    ],
)  # fmt: skip
def test_each_way_in_which_nvidia_smi_fails_has_its_name(printed: str, status: int, trouble: GpuTrouble):
    text = f"\n==gpus==\n{printed}\n\nstatus {status}\n==end==\n"
    facts = parse_probe(text)
    assert (facts.gpus, facts.gpu_trouble) == ((), trouble)
    [found] = [each for each in compare(offer(), facts, Needs(0)) if each.is_fatal]
    assert found.code == "no_gpu" and found.found


def test_one_lost_gpu_among_others_is_a_missing_one_with_its_reason():
    text = f"\n==gpus==\n{_CSV}\nUnable to determine the device handle for GPU1: GPU is lost.\n\nstatus 15\n"
    facts = parse_probe(text)
    assert (len(facts.gpus), facts.gpu_trouble) == (1, GpuTrouble.GPU_LOST)
    found = compare(offer(gpus=offer().gpus * 2), facts, Needs(0))
    assert [each.code for each in found] == ["gpu_count"] and "lost" in found[0].found


def test_what_a_driver_does_not_know_is_none_and_no_trouble():
    text = "\n==gpus==\nNVIDIA H200, 143771, 580.95.05, 9.0, [N/A], [Not Supported], [N/A]\n\nstatus 0\n"
    facts = parse_probe(text)
    assert facts.gpu_trouble is None
    assert facts.gpus == (GpuFact("NVIDIA H200", 143_771, "9.0"),)


@pytest.mark.parametrize("lie, code, words", [
    ("driver_mismatch", "no_gpu", "differ in version"),
    ("no_devices", "no_gpu", "finds no device"),
    ("nvml", "no_gpu", "no access"),
    ("gpu_lost", "gpu_count", "lost"),
])  # fmt: skip
def test_a_node_whose_driver_fails_is_given_back_for_what_it_is(
    lie: str, code: str, words: str, tmp_path: Path
):
    two = offer(gpus=offer().gpus * 2, ram_bytes=1, disk_free_bytes=1)
    with (
        sandbox_node(tmp_path, lies=frozenset({lie})) as server,
        NodeSession.connect(server.address, server.keys.private_key_file, allow_loopback=True) as session,
    ):
        prove_nonce(session, server)
        [found] = [each for each in compare(two, probe.probe(session), Needs(0)) if each.is_fatal]
    assert found.code == code and words in found.found


# -- containers, links


def test_a_containers_limits_count_where_they_are_lower():
    limited = HONEST.replace(
        "==end==", "==ramlimit==\n68719476736\n==cpulimit==\n800000 100000\n==pids==\n4096\n==end=="
    )
    facts = parse_probe(limited)
    assert (facts.ram_bytes, facts.cpu_limit, facts.pids_limit) == (64 << 30, 8.0, 4096)
    codes = {each.code: each.is_fatal for each in compare(offer(threads=128), facts, Needs(0, uses_ram=True))}
    assert codes == {"ram": True, "cores": True}
    for nothing in ("max", "9223372036854771712"):
        free = HONEST.replace("==end==", f"==ramlimit==\n{nothing}\n==cpulimit==\nmax 100000\n==end==")
        assert (parse_probe(free).ram_bytes, parse_probe(free).cpu_limit) == (512 << 30, None)


@pytest.mark.parametrize(
    "rows, linked",
    [
        ("GPU0\t X \tNV18\t0-63\nGPU1\tNV18\t X \t0-63", True),
        ("GPU0\t X \tPHB\t0-63\nGPU1\tPHB\t X \t0-63", False),
        ("GPU0\t X \tNV18", None),
        ("", None),
    ],
)
def test_nvlink_is_between_each_pair_or_not_there(rows: str, linked: bool | None):
    two = f"\n==gpus==\n{_CSV}\n{_CSV}\n\nstatus 0\n==topology==\n\tGPU0\tGPU1\tCPU Affinity\n{rows}\n"
    assert parse_probe(two).has_nvlink is linked


# -- what the plan needs


@pytest.mark.parametrize(
    "driver, cuda",
    [("580.95.05", (13, 0)), ("575.57.08", (12, 9)), ("570.124", (12, 8)), ("550.54.15", (12, 4)),
     ("535.183.01", (12, 0)), ("470.42", (11, 0)), ("390.1", None), ("", None), ("x", None)],
)  # fmt: skip
def test_a_driver_tells_its_cuda_by_nvidias_table(driver: str, cuda: tuple[int, int] | None):
    assert cuda_of_driver(driver) == cuda


H200 = GpuFact("NVIDIA H200", 143_771, "9.0")


@pytest.mark.parametrize(
    "changes, needs, code",
    [
        ({"cuda_version": (12, 4)}, Needs(0, min_cuda=(13, 0)), "cuda"),
        ({"cuda_version": None, "driver_version": "550.54.15"}, Needs(0, min_cuda=(12, 8)), "cuda"),
        ({"gpus": (GpuFact("NVIDIA GeForce RTX 4090", 24_564, "12.0"),)}, Needs(0), "compute_capability"),
        ({}, Needs(0, min_compute_capability=(9, 0)), "compute_capability"),
        ({"gpus": (GpuFact("NVIDIA GeForce RTX 4090", 24_564, "8.9", used_mib=9_000),)}, Needs(0),
         "vram_in_use"),
        ({"measured": Measured(gpu_tflops=(20.0,))}, Needs(0), "gpu_speed"),
        ({"measured": Measured(memory_gb_s=20.0)}, Needs(0, uses_ram=True), "memory_speed"),
        ({"measured": Measured(download_mbit_s=50.0)}, Needs(0, weights_bytes=756 * 10**9), "network"),
        ({"measured": Measured(disk_read_mb_s=90.0)}, Needs(0, weights_bytes=756 * 10**9), "disk_speed"),
    ],
)  # fmt: skip
def test_what_the_plan_cannot_live_with_is_fatal(changes: dict, needs: Needs, code: str):
    facts = replace(parse_probe(HONEST), **changes)
    the_offer = offer(cuda_version=None, down_mbit_s=Decimal(1000), disk_mb_s=Decimal(2000))
    found = compare(the_offer, facts, needs)
    assert [each.code for each in found if each.is_fatal] == [code]
    assert {each.code for each in found} <= set(CODES)


@pytest.mark.parametrize(
    "measured, code",
    [
        (Measured(memory_gb_s=20.0), "memory_speed"),
        (Measured(download_mbit_s=50.0), "network"),
        (Measured(disk_read_mb_s=90.0), "disk_speed"),
    ],
)
def test_a_slow_server_that_still_does_the_work_is_kept_on_record(measured: Measured, code: str):
    facts = replace(parse_probe(HONEST), measured=measured)
    the_offer = offer(down_mbit_s=Decimal(1000), disk_mb_s=Decimal(2000))
    found = compare(the_offer, facts, Needs(0, weights_bytes=10**8))
    assert [(each.code, each.is_fatal) for each in found] == [(code, False)]


def test_shared_memory_matters_only_where_gpus_talk():
    facts = replace(parse_probe(HONEST), shm_bytes=64 << 20)
    assert compare(offer(), facts, Needs(0)) == ()
    assert [each.code for each in compare(offer(), facts, Needs(0, gpus_talk=True))] == ["shm"]


# -- what is timed

MEASURE = Path(probe.__file__).parent / "payload/measure.py"


def test_this_machine_can_be_timed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Memory and disk of a real machine; a GPU only where there is torch, and it says so."""
    run = subprocess.run([sys.executable, MEASURE, tmp_path], capture_output=True, check=True, timeout=120)
    measured = parse_measured(run.stdout.decode())
    assert (measured.memory_gb_s or 0) > 0.1
    assert (measured.disk_write_mb_s or 0) > 0.1 and (measured.disk_read_mb_s or 0) > 0.1
    assert measured.download_mbit_s is None and not measured.is_simulated
    assert measured.gpu_tflops or any(each.startswith("gpu: ") for each in measured.skipped)
    assert list(tmp_path.iterdir()) == []


def test_a_nodes_figures_are_its_truth_and_called_simulated(tmp_path: Path):
    with (
        sandbox_node(tmp_path) as server,
        NodeSession.connect(server.address, server.keys.private_key_file, allow_loopback=True) as session,
    ):
        prove_nonce(session, server)
        measured = probe.measure(session, probe.probe(session), "org/m/resolve/x/y")
    assert measured.is_simulated and measured.memory_gb_s == pytest.approx(205 * 0.6)
    assert measured.download_mbit_s == pytest.approx(930)


@pytest.mark.parametrize(
    "text",
    ["", "no", "[1]", "[" * 100_000, '{"memory_gb_s": NaN}', '{"memory_gb_s": "12"}', '{"memory_gb_s": -1}',
     '{"memory_gb_s": 1e999}', '{"gpu_tflops": {"a": 1}}', '{"memory_gb_s": true, "skipped": 3}',
     '{"memory_gb_s": 1' + "0" * 400 + "}", '{"memory_gb_s": 1e300}'],
)  # fmt: skip
def test_odd_figures_are_not_measured(text: str):
    measured = parse_measured(text)
    assert (measured.memory_gb_s, measured.gpu_tflops) == (None, ())


def test_what_a_host_says_was_skipped_is_inert():
    measured = parse_measured(json.dumps({"skipped": ["gpu: \x1b[2J" + "x" * 1000] * 99}))
    assert len(measured.skipped) <= 8
    assert all(each.isprintable() and len(each) < 200 for each in measured.skipped)
