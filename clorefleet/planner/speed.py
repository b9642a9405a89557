"""Predicted speed: decode for one stream and for many, prefill, and the time to the first token.

At batch 1 a large model is bound by per-layer latency and, with experts in RAM, by RAM bandwidth; a model
of GPU bandwidth alone is wrong by ten times.

    step = weights and context read on the GPUs / (bandwidth x efficiency), or the arithmetic if longer
         + layers x (latency + link) + experts read in RAM / (RAM bandwidth x efficiency) + drafting
    tokens/s of one stream = accepted tokens a step / step
    tokens/s of all = output tokens / (their steps' share + their prompts' prefill)

Constants are fits to published measurements or assumed, and say which. `docs/calibration.md` sets predictions
beside every published figure, misses included: `clorefleet models calibration` makes it, from `evidence`.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass, replace
from decimal import Decimal
from functools import lru_cache
from itertools import accumulate

from clorefleet.domain.plan import Speed, Term
from clorefleet.domain.recipe import Checkpoint, EngineName, Mark, Recipe
from clorefleet.domain.setup import Setup
from clorefleet.planner.hardware import Hardware
from clorefleet.planner.tensor_fit import tokens_that_fit
from clorefleet.planner.weights import (
    Weights,
    expert_layers,
    kv_bytes_per_token_and_rank,
    weights_of,
)

GPU_EFFICIENCY = 0.7
"""Share of memory bandwidth that matrix-vector products reach: 0.65 to 0.75 [assumed]."""
CPU_EFFICIENCY = 0.40
"""Share of peak RAM bandwidth on offloaded experts: 0.27 to 0.40 by published runs."""
LAYER_S = {
    # Many small kernels and the router, per layer at batch 1 on one GPU, for SGLang and vLLM.
    "MLA+DSA": 0.000184,  # fit: GLM-5.2 FP8 on 8xH200 without drafts, less the link below
    "MLA": 0.000109,  # fit: GLM-4.7-Flash BF16 on one H100
    "GQA": 0.000085,  # assumed: fewer kernels than MLA; GLM-4.6 is the check
    "hybrid": 0.000085,  # assumed: as GQA
    "compressed": 0.000184,  # assumed: as sparse attention
}
DENSE_LAYER_S = 0.00002
"""Without experts. Fit: Llama-3.1-8B on one H100 leaves no more than this."""
SPLIT_LAYER_S = 0.000172
SPLIT_DENSE_LAYER_S = 0.00005
"""llama.cpp, with experts (fit: GLM-4.7-Flash IQ5_K wholly on one RTX PRO 6000) and without [assumed]."""
LINK_S_NVLINK = 0.00004
"""Two all-reduces a layer over eight GPUs: 10 to 20 us each [assumed]."""
LINK_S_PCIE = 0.000107
"""The same over PCIe with peer-to-peer: 40 to 150 us each [assumed]. Fit: GLM-5.2 on 8xRTX PRO 6000."""
LINK_S_NO_PEER = 0.00025
"""GeForce: through host memory, peer-to-peer being off in the driver [assumed]."""
ACCEPT_PROBABILITY = 0.68
"""That a drafted token is right, on chat. Fit: three drafts on GLM-5.2 FP8, 8xH200, 109.3 tok/s."""
DRAFT_S = 0.00025
"""Around each drafted token, beside its layer and the output head [assumed]."""
MATRIX_EFFICIENCY = 0.25
"""Share of dense BF16 FLOPS in prefill and in large batches, FP8 weights counted alike. Fit: GLM-5.2 FP8 on
8xH200 with 256 streams of 8,192 + 1,024 tokens, which prefill decides."""
SPLIT_MATRIX_EFFICIENCY = 0.20
"""llama.cpp's, one GPU at work at a time [assumed]."""
FLOPS_PER_BYTE = 70.0
"""BF16 FLOPS by memory bandwidth, for GPUs whose figure the table lacks [assumed]."""
CPU_FLOPS = 2e12
"""What host CPUs reach on experts of a prompt [assumed]."""
PCIE_BYTES_S = 25e9
"""PCIe 4 x16 in practice: experts in RAM can cross it once per batch of a prompt's tokens [assumed]."""
SPLIT_BATCH_TOKENS = 512
"""llama.cpp's micro-batch."""
PROMPT_TOKENS, OUTPUT_TOKENS = 3584, 1024
"""Of a typical request [assumed]: on average 4,096 tokens of context are read back."""
SPARSE_READ_TOKENS = 2048
"""DSA reads at most so many tokens' keys and values, and 132 bytes of each other token's index."""


@dataclass(frozen=True, slots=True)
class Load:
    """What is asked of a server: requests at once, and the tokens of each."""

    streams: int
    prompt_tokens: int = PROMPT_TOKENS
    output_tokens: int = OUTPUT_TOKENS
    accept_length: float | None = None
    """Tokens gained by each step with drafts, where it was measured; None: by `ACCEPT_PROBABILITY`."""
    attention_copies: int = 1
    """Attention data parallelism: the context is spread over so many GPUs instead of replicated."""


def predict(setup: Setup, recipe: Recipe, hardware: Hardware) -> Speed:
    """For one stream, and for all that `setup` serves at once."""
    return predict_load(setup, recipe, hardware, Load(setup.concurrency))


def predict_load(setup: Setup, recipe: Recipe, hardware: Hardware, load: Load) -> Speed:
    step = _Step.of(setup, recipe, hardware, load)
    speed = _speed(step, load, _running(setup, recipe, hardware, load))
    return replace(speed, terms=tuple(_terms(step, setup, recipe, hardware, load)))


def predict_bare(setup: Setup, recipe: Recipe, hardware: Hardware) -> Speed:
    """`predict` without the terms, which take longer to write than all else."""
    load = Load(setup.concurrency)
    return _speed(_Step.of(setup, recipe, hardware, load), load, setup.concurrency)


def _speed(step: _Step, load: Load, running: int) -> Speed:
    prefill, step_s = step.prefill_tokens_per_s(), step.seconds(1)
    return Speed(
        decode_tokens_per_s=step.gain / step_s,
        terms=(),
        mark=Mark.ASSUMED,
        throughput_tokens_per_s=_throughput(step, load, running, prefill),
        prefill_tokens_per_s=prefill,
        first_token_s=load.prompt_tokens / prefill + step_s,
    )


def accept_length(drafts: int) -> float:
    """Tokens that a step with so many drafts gives on average: one, and each that those before allow."""
    return sum(ACCEPT_PROBABILITY**i for i in range(drafts + 1))


def _running(setup: Setup, recipe: Recipe, hardware: Hardware, load: Load) -> int:
    """Streams that the context memory holds; the others wait."""
    if setup.engine is EngineName.LLAMACPP or load.streams <= setup.concurrency:
        return load.streams
    tokens = tokens_that_fit(setup, recipe, hardware) * load.attention_copies
    return max(1, min(load.streams, tokens // (load.prompt_tokens + load.output_tokens)))


def _throughput(step: _Step, load: Load, running: int, prefill: float) -> float:
    """Output tokens/s over all requests, the time for their prompts included."""
    # Pipeline stages each work on their own part of the streams, at the same time.
    each = max(1, round(running / step.stages))
    decode_s = step.seconds(each) / (step.gain * each * min(step.stages, running))
    return load.output_tokens / (load.output_tokens * decode_s + load.prompt_tokens / prefill)


@dataclass(frozen=True, slots=True)
class _Step:
    """One decode step, in its parts. Bytes and seconds for one stream; `seconds` scales them."""

    dense_bytes: float
    """Read for every step, whatever the batch: attention, shared experts, head."""
    routed_bytes: float
    """Experts on GPUs that one token chooses."""
    ram_bytes: float
    """Experts in RAM that one token chooses."""
    experts: int
    chosen: int
    active: int
    """Weights at work on one token."""
    gpu_bandwidth: float
    """Bytes/s of the GPUs that read at the same time."""
    matrix_flops: float
    """Of the GPUs that compute at the same time."""
    ram_bandwidth: float
    ram_total_bytes: float
    """All experts in RAM."""
    is_split: bool
    context_bytes: float
    """One stream's, read at each step."""
    context_tokens: int
    context_bandwidth: float
    layers: int
    layer_s: float
    drafts: int
    draft_s: float
    gain: float
    stages: int

    @classmethod
    def of(cls, setup: Setup, recipe: Recipe, hardware: Hardware, load: Load) -> _Step:
        work = _work_of(recipe, recipe.checkpoint(setup.checkpoint))
        arch, is_split = recipe.architecture, setup.engine is EngineName.LLAMACPP
        in_ram = _share_in_ram(setup, recipe)
        bandwidth = _gpu_bandwidth(setup, hardware)
        layer_s, _, _ = _layer_latency(setup, recipe, hardware)
        drafts = setup.speculation.num_steps if setup.speculation is not None else 0
        tokens = min(load.prompt_tokens + load.output_tokens // 2, setup.context_tokens)
        return cls(
            dense_bytes=work.dense_bytes,
            routed_bytes=work.routed * (1 - in_ram) * work.expert_bytes,
            ram_bytes=work.routed * in_ram * work.expert_bytes,
            experts=arch.experts,
            chosen=arch.experts_per_token,
            active=recipe.parameters.active_per_token,
            gpu_bandwidth=bandwidth,
            matrix_flops=_matrix_flops(setup, hardware),
            ram_bandwidth=hardware.ram_bandwidth_gb_s * 1e9 * CPU_EFFICIENCY,
            ram_total_bytes=work.experts_total_bytes * in_ram,
            is_split=is_split,
            context_bytes=_context_bytes(setup, recipe, tokens) / load.attention_copies,
            context_tokens=tokens,
            context_bandwidth=bandwidth if is_split else bandwidth / setup.tensor_parallel,
            layers=arch.num_layers,
            layer_s=layer_s,
            drafts=drafts,
            draft_s=layer_s + DRAFT_S + work.draft_bytes / bandwidth,
            gain=(load.accept_length or accept_length(drafts)) if drafts else 1.0,
            stages=setup.pipeline_parallel,
        )

    def distinct(self, tokens: int) -> float:
        """Experts that a batch touches, as a multiple of those that one token does."""
        if not self.experts:
            return 1.0
        share = self.chosen / self.experts
        return float((1 - (1 - share) ** tokens) / share)

    def weights_s(self, streams: int) -> float:
        """Reading weights on the GPUs, or multiplying with them where that takes longer."""
        tokens = streams * (self.drafts + 1)
        read_s = (self.dense_bytes + self.routed_bytes * self.distinct(tokens)) / self.gpu_bandwidth
        return max(read_s, tokens * 2 * self.active / self.matrix_flops)

    def context_s(self, streams: int) -> float:
        return self.context_bytes * streams / self.context_bandwidth

    def ram_s(self, streams: int) -> float:
        if not self.ram_bytes:
            return 0.0
        return self.ram_bytes * self.distinct(streams * (self.drafts + 1)) / self.ram_bandwidth

    def seconds(self, streams: int) -> float:
        fixed = self.layers * self.layer_s + self.drafts * self.draft_s
        return self.weights_s(streams) + self.context_s(streams) + self.ram_s(streams) + fixed

    def prefill_tokens_per_s(self) -> float:
        """Of one prompt at a time. Experts in RAM cross PCIe for each batch, or the CPU computes them."""
        per_token = 2 * self.active / self.matrix_flops
        if not self.ram_total_bytes:
            return 1 / per_token
        over_pcie = self.ram_total_bytes / PCIE_BYTES_S / SPLIT_BATCH_TOKENS
        by_cpu = 2 * self.active * self.ram_bytes / (self.ram_bytes + self.routed_bytes) / CPU_FLOPS
        return 1 / (per_token + min(over_pcie, by_cpu))


def _terms(step: _Step, setup: Setup, recipe: Recipe, hardware: Hardware, load: Load) -> Iterator[Term]:
    """Of one stream. Their milliseconds sum to a step, which `gain` tokens come out of."""
    text = f"{_gpu_text(setup, hardware)} x {GPU_EFFICIENCY}"
    yield _ms("weights read on GPUs", step.weights_s(1), Mark.ASSUMED, text)
    yield _ms("context read back", step.context_s(1), Mark.ASSUMED, f"{step.context_tokens:,} tokens")
    layer_s, mark, link = _layer_latency(setup, recipe, hardware)
    where = f", {setup.tensor_parallel} GPUs over {link}" if link else " on one GPU"
    text = f"{layer_s * 1000:.3f} ms a layer{where}"
    yield _ms(f"{step.layers} layers' latency", step.layers * layer_s, mark, text)
    if step.ram_bytes:
        text = f"{hardware.ram_bandwidth_gb_s:.0f} GB/s by CPU model x {CPU_EFFICIENCY}"
        source = f"{step.ram_bytes / 1e9:.1f} GB a token / ({text})"
        yield _ms("experts read in RAM", step.ram_s(1), Mark.ASSUMED, source)
    if step.drafts:
        yield _ms(f"{step.drafts} drafts", step.drafts * step.draft_s, Mark.ASSUMED, "layer and head")
        right = "measured" if load.accept_length else f"each right with {ACCEPT_PROBABILITY}"
        gain = Decimal(str(round(step.gain, 3)))
        yield Term("tokens accepted a step", gain, "x", Mark.PUBLISHED, f"{step.drafts} drafts, {right}")
    yield _prefill_term(step.prefill_tokens_per_s(), step)


@dataclass(frozen=True, slots=True)
class _Work:
    """What one token asks of a checkpoint, wherever it runs."""

    dense_bytes: float
    routed: int
    """Weights of the experts that it chooses, and bytes of each of them."""
    expert_bytes: float
    draft_bytes: float
    """Read for each drafted token."""
    experts_total_bytes: int


@lru_cache(maxsize=512)
def _work_of(recipe: Recipe, checkpoint: Checkpoint) -> _Work:
    arch, params, weights = recipe.architecture, recipe.parameters, weights_of(recipe, checkpoint)
    expert_bytes, other_bytes = _bytes_each(recipe, weights)
    routed = arch.experts_per_token * params.one_expert * len(expert_layers(recipe))
    head = arch.hidden * arch.vocab
    return _Work(
        dense_bytes=max(0, params.active_per_token - routed) * other_bytes,
        routed=routed,
        expert_bytes=expert_bytes,
        draft_bytes=(params.mtp_active or params.active_per_token // arch.num_layers + head) * other_bytes,
        experts_total_bytes=weights.experts,
    )


def _bytes_each(recipe: Recipe, weights: Weights) -> tuple[float, float]:
    """Of one weight of an expert, and of one of all others."""
    arch, params = recipe.architecture, recipe.parameters
    if not weights.expert_layer:
        mean = weights.total / max(1, params.total + params.mtp_layer)
        return mean, mean
    expert = weights.expert_layer / (arch.experts * params.one_expert)
    layers = weights.expert_layers + weights.drafting_layers
    others = params.total + params.mtp_layer - params.one_expert * arch.experts * layers
    return expert, min(2.0, weights.elsewhere / max(1, others)) if others > 0 else expert


def _share_in_ram(setup: Setup, recipe: Recipe) -> float:
    """Of the experts that a token chooses."""
    if setup.engine is EngineName.KTRANSFORMERS:
        return 1 - min(1.0, setup.gpu_experts / max(1, recipe.architecture.experts))
    if not setup.experts_in_ram:
        return 0.0
    moe = expert_layers(recipe)
    in_ram = sorted(setup.experts_in_ram)
    return (bisect_left(in_ram, moe.stop) - bisect_left(in_ram, moe.start)) / max(1, len(moe))


def _gpu_bandwidth(setup: Setup, hardware: Hardware) -> float:
    """Tensor parallelism reads from all GPUs at once; a layer split from one after the other."""
    slowest = min(gpu.bandwidth_gb_s for gpu in hardware.gpus)
    if setup.engine is not EngineName.LLAMACPP:
        return slowest * 1e9 * GPU_EFFICIENCY * setup.tensor_parallel
    mean = _mean_bandwidth_gb_s(setup, hardware)
    return (slowest if mean is None else mean) * 1e9 * GPU_EFFICIENCY


def _mean_bandwidth_gb_s(setup: Setup, hardware: Hardware) -> float | None:
    """Over the layers of differing GPUs."""
    if not setup.layers_per_gpu or len(setup.layers_per_gpu) != len(hardware.gpus) or not hardware.is_mixed:
        return None
    layers = list(accumulate(setup.layers_per_gpu))[-1]
    each = zip(setup.layers_per_gpu, hardware.gpus, strict=True)
    return layers / sum(count / gpu.bandwidth_gb_s for count, gpu in each)


def _gpu_text(setup: Setup, hardware: Hardware) -> str:
    slowest = f"{min(gpu.bandwidth_gb_s for gpu in hardware.gpus):,.0f} GB/s"
    if setup.engine is not EngineName.LLAMACPP:
        return f"{setup.tensor_parallel} x {slowest}" if setup.tensor_parallel > 1 else slowest
    mean = _mean_bandwidth_gb_s(setup, hardware)
    return slowest if mean is None else f"{mean:,.0f} GB/s over the layers of differing GPUs"


def _matrix_flops(setup: Setup, hardware: Hardware) -> float:
    slowest = min(
        gpu.bf16_tflops * 1e12 if gpu.bf16_tflops else gpu.bandwidth_gb_s * 1e9 * FLOPS_PER_BYTE
        for gpu in hardware.gpus
    )
    if setup.engine is EngineName.LLAMACPP:
        return slowest * SPLIT_MATRIX_EFFICIENCY
    return slowest * MATRIX_EFFICIENCY * setup.tensor_parallel


def _context_bytes(setup: Setup, recipe: Recipe, tokens: int) -> float:
    """One stream's context as it is read at each step, by each GPU that holds a share of it."""
    if setup.engine is EngineName.LLAMACPP:
        # It reads all of it: no sparse attention there [assumed].
        return tokens * recipe.kv_cache.per_token_bytes_bf16
    each = kv_bytes_per_token_and_rank(setup, recipe)
    if recipe.architecture.attention != "MLA+DSA":
        return tokens * each
    index = recipe.architecture.index_bytes * recipe.architecture.num_layers
    return min(tokens, SPARSE_READ_TOKENS) * (each - index) + tokens * index


def _layer_latency(setup: Setup, recipe: Recipe, hardware: Hardware) -> tuple[float, Mark, str]:
    """Seconds of a layer, how far that is known, and the link between GPUs; "" for one at a time."""
    has_experts = bool(recipe.architecture.experts)
    if setup.engine is EngineName.LLAMACPP:
        base = SPLIT_LAYER_S if has_experts else SPLIT_DENSE_LAYER_S
    else:
        base = LAYER_S[recipe.architecture.attention] if has_experts else DENSE_LAYER_S
    mark = Mark.PUBLISHED if has_experts and recipe.architecture.attention.startswith("MLA") else Mark.ASSUMED
    if setup.engine is EngineName.LLAMACPP or setup.tensor_parallel == 1:
        return base, mark, ""
    # A ring or tree over n GPUs takes log2(n) of its steps; the figures are for eight.
    rounds = (setup.tensor_parallel - 1).bit_length() / 3
    if all(gpu.has_nvlink for gpu in hardware.gpus):
        link, name = LINK_S_NVLINK, "NVLink"
    elif any(gpu.name.startswith("GeForce") for gpu in hardware.gpus):
        link, name, mark = LINK_S_NO_PEER, "PCIe without peer-to-peer", Mark.ASSUMED
    else:
        link, name, mark = LINK_S_PCIE, "PCIe", Mark.ASSUMED
    total = base + link * rounds
    if setup.tensor_parallel != 8:
        mark = Mark.ASSUMED  # between the measured one and eight GPUs
    return total, mark, name


def _prefill_term(prefill: float, step: _Step) -> Term:
    share = SPLIT_MATRIX_EFFICIENCY if step.is_split else MATRIX_EFFICIENCY
    source = f"2 x {step.active / 1e9:.1f}B a token at {share:.0%} of dense BF16"
    if step.ram_total_bytes:
        source += ", experts in RAM over PCIe or by the CPU"
    return Term("prefill", Decimal(str(round(prefill, 1))), "tok/s", Mark.ASSUMED, source)


def _ms(name: str, seconds: float, mark: Mark, source: str) -> Term:
    return Term(name, Decimal(str(round(seconds * 1000, 4))), "ms/token", mark, source)
