"""What the stand-ins of SGLang and vLLM share: the checkpoint, the GPUs, and whether one fits on the others.

The arithmetic is this file's own. It is deliberately not the planner's, so that a plan can be wrong here.
"""

from __future__ import annotations

import json
import os
import re
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import node_truth
import openai_front
import scaled_weights
import serving_speed
import text_writer

MIB, GIB = 1 << 20, 1 << 30
CUDA_CONTEXT_BYTES = 600 * MIB
NCCL_BYTES = 700 * MIB
REPLICATED_MLA_WEIGHTS_PER_LAYER = 27_000_000
"""q_a, kv_a, indexer and router are whole on each rank of a model with MLA and sparse attention."""
SHM_BYTES_MIN = 256 * MIB
RAM_SHARE = 0.97
WARM_UP_S = 90.0
WARM_UP_PER_GPU_S = 20.0
_SERVE_NEEDS_CUDA = (13, 0)
_OLDER_IMAGE = re.compile(r"cu12\d")


class Fatal(Exception):
    """The engine would stop here. The message is its traceback's end or its error."""

    def __init__(self, *lines: str) -> None:
        super().__init__(lines[-1])
        self.lines = lines


@dataclass(frozen=True)
class Load:
    """One model on one server."""

    facts: dict
    weights: scaled_weights.Weights
    truth: dict
    ranks: int
    """GPUs that share each layer."""
    stages: int
    """Pipeline stages."""

    @property
    def gpu_total_bytes(self) -> int:
        return min(gpu["vram_mib"] for gpu in self.truth["gpus"]) * MIB

    @property
    def weight_bytes(self) -> float:
        return self.weights.true_bytes / max(1, self.facts["total_weights"])

    @property
    def weights_per_gpu(self) -> int:
        """With what MLA replicates on each rank."""
        replicated = 0.0
        if self.facts["sparse_attention"]:
            own = REPLICATED_MLA_WEIGHTS_PER_LAYER * self.facts["layers"] * self.weight_bytes
            replicated = own * (1 - 1 / self.ranks)
        return int((self.weights.true_bytes / self.ranks + replicated) / self.stages)

    def kv_per_token(self, *, is_fp8: bool) -> int:
        """Bytes per token on each GPU."""
        whole = self.facts["kv_fp8" if is_fp8 else "kv_bf16"]
        shards = 1 if self.facts["kv_replicated"] else min(self.ranks, max(1, self.facts["kv_heads"]))
        return max(1, whole // shards // self.stages)

    def speed(self, *, draft_tokens: int, share_in_ram: float = 0.0) -> serving_speed.Speed:
        gpus, facts = self.truth["gpus"], self.facts
        has_nvlink = all(gpu["nvlink"] for gpu in gpus)
        if self.ranks == 1:
            layer_s = serving_speed.LAYER_S_ONE_GPU
        else:
            layer_s = serving_speed.LAYER_S_NVLINK if has_nvlink else serving_speed.LAYER_S_PCIE
        return serving_speed.Speed(
            weight_bytes=self.weight_bytes,
            active_weights=facts["active_weights"],
            layers=facts["layers"],
            moe_layers=facts["layers"] - facts["first_k_dense"] if facts["experts"] else 0,
            experts=facts["experts"],
            experts_per_token=facts["experts_per_token"],
            one_expert=facts["one_expert"] or 3 * facts["hidden"] * facts["moe_intermediate"],
            share_in_ram=share_in_ram,
            gpus_in_parallel=self.ranks,
            gpu_bandwidth=min(gpu["memory_bandwidth_gb_s"] for gpu in gpus) * 1e9,
            ram_bandwidth=self.truth["ram_bandwidth_gb_s"] * 1e9,
            layer_s=layer_s,
            draft_tokens=draft_tokens,
        )


def find_checkpoint(name: str) -> scaled_weights.Weights:
    """The weights in a folder, or in the hub client's cache for a repository's name.

    Raises Fatal with the texts of the real loaders when they are missing, cut short or mixed.
    """
    folder = Path(name)
    if not folder.is_dir():
        if name.count("/") != 1 or name.startswith("/"):
            raise Fatal(
                f"OSError: {name} is not a local folder and is not a valid model identifier listed on "
                "'https://huggingface.co/models'"
            )
        home = Path(os.environ.get("HF_HOME") or node_truth.ROOT / "root/.cache/huggingface")
        cache = (
            Path(os.environ.get("HF_HUB_CACHE") or home / "hub")
            / f"models--{name.replace('/', '--')}/snapshots"
        )
        snapshots = sorted(cache.glob("*"), key=lambda path: path.stat().st_mtime) if cache.is_dir() else []
        if not snapshots:
            raise Fatal(
                f"OSError: We couldn't connect to the hub to load the files of {name}, and couldn't find "
                "them in the cached files."
            )
        folder = snapshots[-1]
    if not (folder / "config.json").is_file():
        raise Fatal(f"OSError: {folder} does not appear to have a file named config.json.")
    shards = sorted(folder.glob("*.safetensors"))
    if not shards:
        raise Fatal(f"RuntimeError: Cannot find any model weights with `{folder}`")
    try:
        return scaled_weights.load(scaled_weights.parts_of(shards[0]))
    except scaled_weights.BadWeights as error:
        raise Fatal(f"safetensors_rust.SafetensorError: Error while deserializing: {error}") from error


def facts_of(model: str) -> dict:
    return json.loads(Path(__file__).with_name("models.json").read_text("utf-8"))[model]


def compute_capability(truth: dict) -> tuple[int, ...]:
    return min(version(gpu["compute_capability"]) for gpu in truth["gpus"])


def version(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", text)[:2])


def check_driver(truth: dict) -> None:
    """The PyTorch of the image, or of what was installed on it, against the server's driver."""
    if not truth["gpus"]:
        raise Fatal("RuntimeError: No CUDA GPUs are available")
    cuda = version(truth["cuda_version"])
    needed = (12, 0) if _OLDER_IMAGE.search(truth["image"]) else _SERVE_NEEDS_CUDA
    installed = os.environ.get("SANDBOX_BUILT_FOR_CUDA")
    if installed:
        needed = version(installed)
    if cuda < needed:
        raise Fatal(
            "RuntimeError: The NVIDIA driver on your system is too old (found version "
            f"{cuda[0] * 1000 + cuda[1] * 10}). Please update your GPU driver by downloading and installing "
            "a new version from the URL: http://www.nvidia.com/Download/index.aspx"
        )
    if compute_capability(truth) < (7, 5):
        raise Fatal("RuntimeError: CUDA error: no kernel image is available for execution on the device")


def check_shared_memory(truth: dict, ranks: int) -> None:
    if ranks > 1 and truth["shm_bytes"] < SHM_BYTES_MIN:
        raise Fatal(
            "NCCL WARN Error while creating shared memory segment /dev/shm/nccl-a1b2c3 (size 9637888)",
            "torch.distributed.DistBackendError: NCCL error in: ProcessGroupNCCL.cpp, unhandled system error "
            "(run with NCCL_DEBUG=INFO for details), ncclSystemError",
        )


def out_of_memory(load: Load, weights: int, free: int) -> Fatal:
    """What PyTorch says at the first layer that does not fit any more."""
    layer = max(1, weights // load.facts["layers"])
    return Fatal(
        f"torch.OutOfMemoryError: CUDA out of memory. Tried to allocate {layer / GIB:.2f} GiB. GPU 0 has a "
        f"total capacity of {load.gpu_total_bytes / GIB:.2f} GiB of which {free % layer / GIB:.2f} GiB is "
        "free."
    )


def fail(fatal: Fatal, prefix: str) -> int:
    """Print as the engine's log would, and give its exit status."""
    for line in fatal.lines[:-1]:
        print(f"{prefix}{line}", file=sys.stderr)
    print("Traceback (most recent call last):\n  (simulated by clorefleet's sandbox)", file=sys.stderr)
    print(fatal.lines[-1], file=sys.stderr, flush=True)
    return 1


def load_seconds(load: Load) -> float:
    """What the real engine would take: reading the files, then graphs and warm-up."""
    return (
        load.weights.true_bytes / (load.truth["disk_mb_s"] * 1e6) + WARM_UP_S + WARM_UP_PER_GPU_S * load.ranks
    )


def run(
    engine: openai_front.Engine,
    load: Load,
    *,
    name: str,
    gpu_bytes: int,
    before: list[str],
    after: list[str],
    bound: openai_front.Server | None,
    host: str,
    port: int,
) -> int:
    """Claim the VRAM, take the time that loading takes, say the ready lines and serve until stopped.

    `bound` None: the port is opened only when the model is ready, as vLLM does.
    """
    node_truth.claim([gpu_bytes // MIB] * (load.ranks * load.stages), name)
    if bound is not None:
        openai_front.run_until_stopped(bound)
    for line in before:
        print(line, file=sys.stderr, flush=True)
    engine.writer = text_writer.Writer()
    time.sleep(load_seconds(load) * load.truth["load_scale"])
    if bound is None:
        openai_front.run_until_stopped(openai_front.bind(engine, host, port))
    engine.is_ready.set()
    for line in after:
        print(line, file=sys.stderr, flush=True)
    threading.Event().wait()
    return 0
