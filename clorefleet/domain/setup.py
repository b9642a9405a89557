"""A setup: how a model runs, apart from where."""

from __future__ import annotations

from dataclasses import dataclass

from clorefleet.domain.kinds import EngineName, Precision, WeightsLayout


@dataclass(frozen=True, slots=True)
class Speculation:
    """Draft tokens ahead of the model (EAGLE over the model's own MTP layer)."""

    algorithm: str
    num_steps: int
    top_k: int
    num_draft_tokens: int


@dataclass(frozen=True, slots=True)
class Setup:
    """Checkpoint, engine, parallelism, offload split, context and concurrency.

    Complete enough that an engine module makes its command line from this and the recipe alone.
    """

    model: str
    checkpoint: str
    precision: Precision
    layout: WeightsLayout
    repo: str
    revision: str
    files: tuple[str, ...]
    checkpoint_bytes: int
    engine: EngineName
    image: str
    tensor_parallel: int
    """GPUs that share one copy; for llama.cpp, GPUs over which layers are split."""
    context_tokens: int
    """Per request."""
    concurrency: int
    """Requests served at once at that context."""
    kv_dtype: str
    """`bf16`, `fp8` or `q8_0`."""
    pipeline_parallel: int = 1
    """Runs of layers, each on `tensor_parallel` GPUs of its own, one after the other."""
    expert_parallel: int = 1
    """Above 1: whole experts are dealt out to that many GPUs, instead of a slice of each."""
    gpu_experts: int = 0
    """KTransformers: experts of each layer that lie on the GPUs too; the others are computed by the CPU."""
    experts_in_ram: tuple[int, ...] = ()
    """Layers (from 0) whose experts stay in RAM."""
    layers_per_gpu: tuple[int, ...] = ()
    """llama.cpp's split, the output head counted as one more layer of the last GPU."""
    memory_fraction: float | None = None
    """SGLang's static share, or vLLM's utilisation."""
    speculation: Speculation | None = None
    context_floor_tokens: int = 0
    """What was asked for: no correction goes below it. 0: the context is never shortened."""
    prefill_chunk_tokens: int | None = None
    """Tokens of a prompt that are read at once; None: the engine's own choice."""
    has_peer_to_peer: bool = True
    """False: the GPUs of the host fail to reach each other directly, and go through its memory."""

    def __hash__(self) -> int:
        """By what tells nearly all apart: setups are looked up thousands of times in one plan."""
        size = self.tensor_parallel, self.context_tokens, self.concurrency
        return hash((self.checkpoint, self.engine, size, self.experts_in_ram, self.layers_per_gpu))

    @property
    def reads_ram(self) -> bool:
        """Experts are read from RAM for each token, so that its bandwidth decides about the speed."""
        return bool(self.experts_in_ram) or self.engine is EngineName.KTRANSFORMERS

    @property
    def gpus_needed(self) -> int:
        return self.tensor_parallel * self.pipeline_parallel
