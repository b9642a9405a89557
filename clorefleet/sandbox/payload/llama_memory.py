"""Where llama.cpp would put a model on this server, and whether it would fit. Not the planner's arithmetic.

Layers go to GPUs in order, in shares of free VRAM (or of --tensor-split), and *not* by their bytes: with the
experts of the first layers in RAM, the last GPU has the heaviest layers, as with the real program.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import node_truth

MIB, GIB = 1 << 20, 1 << 30
CUDA_CONTEXT_BYTES = 450 * MIB
COMPUTE_BYTES_BASE = 300 * MIB
COMPUTE_BYTES_PER_UBATCH = 1 * MIB
"""Per token of ubatch: 0.8 GiB at 512, 2.3 GiB at 2048."""
_KV_BITS = {
    "f32": 32,
    "f16": 16,
    "bf16": 16,
    "q8_0": 8.5,
    "q5_1": 6,
    "q5_0": 5.5,
    "q4_1": 5,
    "q4_0": 4.5,
    "iq4_nl": 4.5,
}
RAM_USABLE_SHARE = 0.97
MIN_CUDA = (12, 4)
"""Of the official CUDA image."""


class OutOfVram(Exception):
    def __init__(self, device: int, what: str, size: int) -> None:
        super().__init__(f"CUDA{device}: {what}")
        self.device, self.what, self.size = device, what, size


@dataclass
class Placement:
    gpu_bytes: list[int]
    ram_bytes: int
    expert_share_in_ram: float
    gpus_used: int


_FIT_STEPS_AT = ("gpu_layers", "n_cpu_moe", "cpu_moe", "override_tensor", "tensor_split")
FIT_CONTEXT_MIN = 4096


def fit(facts: dict, true_bytes: int, args: dict, truth: dict) -> Placement:
    """`place`, after what `--fit on` (the default) does: arguments that were *not* given are lowered until
    the model fits. First the context, then experts go to RAM, then whole layers. `args` holds the result.
    """
    if args.get("fit", "on") == "off" or any(name in args for name in _FIT_STEPS_AT):
        return place(facts, true_bytes, args, truth)
    tries: list[dict] = [{}]
    if not args.get("ctx_size"):
        tries.append({"ctx_size": min(FIT_CONTEXT_MIN, facts["max_context"])})
    smallest = tries[-1]
    layers = facts["layers"]
    if facts["experts"]:
        tries += [{**smallest, "gpu_layers": "all", "n_cpu_moe": count} for count in range(1, layers + 1)]
        smallest = tries[-1]
    tries += [{**smallest, "gpu_layers": str(count)} for count in range(layers, -1, -1)]
    for lowered in tries[:-1]:
        try:
            placement = place(facts, true_bytes, args | lowered, truth)
        except OutOfVram:
            continue
        args.update(lowered)
        return placement
    args.update(tries[-1])
    return place(facts, true_bytes, args, truth)


def place(facts: dict, true_bytes: int, args: dict, truth: dict) -> Placement:
    """Raises OutOfVram for the first buffer that does not fit."""
    layers = facts["layers"]
    experts = facts["experts"] * expert_weights(facts)
    weight_bytes = true_bytes / max(1, facts["total_weights"])
    expert_layer = int(experts * weight_bytes)
    moe_layers = layers - facts["first_k_dense"] if experts else 0
    plain_layer = int(max(0, true_bytes - expert_layer * moe_layers) / (layers + 1))
    gpus = truth["gpus"] if _has_cuda(truth) else []
    on_gpu = _gpu_layers(args, layers) if gpus else 0
    first = layers - min(on_gpu, layers)
    owners = _owners(first, layers, gpus, args, on_gpu)
    in_ram = _experts_in_ram(args, layers)
    weights, kv, ram, ram_experts = [0] * len(gpus), [0] * len(gpus), 0, 0
    context = args.get("ctx_size") or facts["max_context"]
    bits = (_KV_BITS[args.get("cache_type_k", "f16")] + _KV_BITS[args.get("cache_type_v", "f16")]) / 2
    kv_layer = int(context * facts["kv_bf16"] / layers * bits / 16)
    for layer in range(layers):
        has_experts = bool(experts) and layer >= facts["first_k_dense"]
        owner = owners[layer]
        if owner is None:
            ram += plain_layer + kv_layer + (expert_layer if has_experts else 0)
            ram_experts += has_experts
            continue
        weights[owner] += plain_layer
        if args.get("no_kv_offload"):
            ram += kv_layer
        else:
            kv[owner] += kv_layer
        if has_experts and layer in in_ram:
            ram += expert_layer
            ram_experts += 1
        elif has_experts:
            weights[owner] += expert_layer
    if on_gpu > layers and gpus:
        weights[owners[layers - 1] or 0] += plain_layer  # the output head
    else:
        ram += plain_layer
    used = _check(weights, kv, args, truth, gpus)
    if experts:
        share = ram_experts / max(1, moe_layers)
    else:
        share = first / layers
    return Placement(used, ram, share if gpus else 1.0, sum(1 for size in weights if size))


def _check(weights: list[int], kv: list[int], args: dict, truth: dict, gpus: list[dict]) -> list[int]:
    held = node_truth.used_mib(len(gpus), of_others=True)
    compute = COMPUTE_BYTES_BASE + COMPUTE_BYTES_PER_UBATCH * args.get("ubatch_size", 512)
    used = []
    for device, gpu in enumerate(gpus):
        if not weights[device] and not kv[device]:
            used.append(0)
            continue
        free = gpu["vram_mib"] * MIB * 994 // 1000 - held[device] * MIB - CUDA_CONTEXT_BYTES
        total = 0
        for what, size in (("weights", weights[device]), ("kv", kv[device]), ("compute", compute)):
            total += size
            if total > free:
                raise OutOfVram(device, what, size)
        used.append(total + CUDA_CONTEXT_BYTES)
    return used


def _has_cuda(truth: dict) -> bool:
    return bool(truth["gpus"]) and version(truth["cuda_version"]) >= MIN_CUDA


def version(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", text)[:2])


def expert_weights(facts: dict) -> int:
    """Of one expert of one layer: gate, up and down."""
    return facts["one_expert"] or 3 * facts["hidden"] * facts["moe_intermediate"]


def _gpu_layers(args: dict, layers: int) -> int:
    text = args.get("gpu_layers", "auto")
    return layers + 1 if text in ("auto", "all", "-1") else int(text)


def _owners(first: int, layers: int, gpus: list[dict], args: dict, on_gpu: int) -> list[int | None]:
    """The GPU of each layer; None = CPU."""
    if not gpus or not on_gpu:
        return [None] * layers
    if args.get("split_mode") == "none":
        return [None if layer < first else args.get("main_gpu", 0) for layer in range(layers)]
    if "tensor_split" in args:
        shares = [float(part) for part in re.split(r"[,/]+", args["tensor_split"])][: len(gpus)]
        shares += [0.0] * (len(gpus) - len(shares))
    else:
        shares = [float(gpu["vram_mib"]) for gpu in gpus]
    sums, total = [], 0.0
    for share in shares:
        total += share
        sums.append(total)
    edges = [edge / total for edge in sums] if total else [1.0] * len(gpus)
    count = min(on_gpu, layers + 1)
    owners: list[int | None] = []
    for layer in range(layers):
        if layer < first:
            owners.append(None)
        else:
            at = (layer - first) / count
            owners.append(next((device for device, edge in enumerate(edges) if at < edge), len(gpus) - 1))
    return owners


def _experts_in_ram(args: dict, layers: int) -> set[int]:
    if args.get("cpu_moe"):
        return set(range(layers))
    found = set(range(args.get("n_cpu_moe", 0)))
    for given in args.get("override_tensor", []):
        for rule in given.split(","):
            pattern, _, place_name = rule.rpartition("=")
            if place_name == "CPU":
                names = {layer: f"blk.{layer}.ffn_up_exps.weight" for layer in range(layers)}
                found |= {layer for layer, name in names.items() if re.search(pattern, name)}
    return found
