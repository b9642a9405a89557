"""One model as data. Recipes are TOML files in `recipes/`; `clorefleet.config.recipes` reads them.

Every figure carries where it comes from: `source` names it, `mark` says how much to trust it.
"""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal
from enum import StrEnum

from clorefleet.domain.kinds import EngineName as EngineName
from clorefleet.domain.kinds import Mark as Mark
from clorefleet.domain.kinds import Precision as Precision
from clorefleet.domain.kinds import WeightsLayout as WeightsLayout


class Confidence(StrEnum):
    """How far a figure may be leaned on: read in a primary source, derived or second-hand, guessed."""

    HIGH = "high"
    MEDIUM = "medium"
    LOW = "low"


@dataclass(frozen=True, slots=True)
class Parameters:
    """Counts of weights, not bytes."""

    total: int
    active_per_token: int
    """With the output head, without the input embedding."""
    one_expert: int = 0
    mtp_layer: int = 0
    mtp_active: int = 0
    mark: Mark = Mark.COMPUTED
    source: str = ""
    confidence: Confidence = Confidence.LOW


@dataclass(frozen=True, slots=True)
class Architecture:
    num_layers: int
    hidden: int
    heads: int
    vocab: int
    attention: str
    """`GQA`, `MLA`, `MLA+DSA`, `hybrid`."""
    kv_heads: int = 0
    head_dim: int = 0
    first_k_dense: int = 0
    """Leading layers without experts."""
    experts: int = 0
    experts_per_token: int = 0
    shared_experts: int = 0
    moe_intermediate: int = 0
    mtp_layers: int = 0
    replicated_per_layer: int = 0
    """Weights that every tensor-parallel rank holds whole: MLA's q_a and kv_a, sparse indexer, router."""
    kv_layers: int = 0
    """Layers whose context memory grows with each token; 0: all. Hybrid models have fewer."""
    kv_lora_rank: int = 0
    qk_rope_head_dim: int = 0
    """MLA keeps `kv_lora_rank + qk_rope_head_dim` values per layer and token."""
    index_bytes: int = 0
    """Per layer and token, of the sparse indexer: 128 FP8 values and a 4-byte scale."""
    source: str = ""
    confidence: Confidence = Confidence.LOW


@dataclass(frozen=True, slots=True)
class KvCache:
    """Bytes of context memory per token for all layers together."""

    per_token_bytes_bf16: int
    per_token_bytes_fp8: int
    is_replicated_across_tp: bool
    """True for MLA: tensor parallelism does not shrink it."""
    shard_limit: int = 1
    """For GQA: shrinks up to this many ranks (the number of KV heads)."""
    per_sequence_bytes: int = 0
    """Fixed state of hybrid models."""
    mtp_extra_bytes_bf16: int = 0
    mark: Mark = Mark.COMPUTED
    source: str = ""
    confidence: Confidence = Confidence.LOW


@dataclass(frozen=True, slots=True, eq=False)  # as `Recipe`
class Checkpoint:
    """One published set of weights."""

    key: str
    """Unique in the recipe, for instance `fp8` or `q4_k_m`."""
    precision: Precision
    format: str
    """The publisher's name: `FP8`, `BF16`, `GGUF Q4_K_M`."""
    layout: WeightsLayout
    repo: str
    revision: str
    files: tuple[str, ...]
    """Patterns (fnmatch) of the files needed; all others in the repository are left alone."""
    bytes: int
    bytes_mark: Mark
    source: str
    confidence: Confidence = Confidence.LOW
    """Of `bytes`."""
    fp8_block: int = 0
    """Side of the blocks that share a scale; a tensor-parallel shard must be a multiple. 0: per channel."""


@dataclass(frozen=True, slots=True)
class ImageVariant:
    """The same engine built for an older CUDA, for servers whose driver is too old for the usual image."""

    image: str
    min_cuda: str
    source: str = ""
    packages: tuple[str, ...] = ()
    """`name==version`: the image is a base image, and these are installed on the server (`node.install`)."""
    install_bytes: int = 0
    """Disk that the packages take with their cache, besides the image."""


@dataclass(frozen=True, slots=True)
class EngineSupport:
    """How one engine runs this model."""

    engine: EngineName
    image: str
    """Container image with the engine inside, or a base image with an install job."""
    layouts: tuple[WeightsLayout, ...]
    min_version: str = ""
    min_version_mark: Mark = Mark.ASSUMED
    transformers: str = ""
    """What the engine needs of the `transformers` package, for instance `>=5.4.0`; "" where not known."""
    tool_call_parser: str = ""
    reasoning_parser: str = ""
    speculative: str = ""
    """`EAGLE`, `mtp` or "" for none."""
    min_compute_capability: str = ""
    min_cuda: str = ""
    """CUDA version that the image needs from the driver, for instance `13.0`."""
    source: str = ""
    confidence: Confidence = Confidence.LOW
    packages: tuple[str, ...] = ()
    """As of `ImageVariant`: not empty where `image` itself is a base image."""
    install_bytes: int = 0
    variants: tuple[ImageVariant, ...] = ()
    """Tried in order where `min_cuda` is too new."""

    def variant_of(self, image: str) -> ImageVariant:
        """What the recipe says of `image`: one of the variants, else the engine's usual image."""
        for each in self.variants:
            if each.image == image:
                return each
        return ImageVariant(self.image, self.min_cuda, self.source, self.packages, self.install_bytes)

    @property
    def base_images(self) -> frozenset[str]:
        """Images that bring no engine: it is installed on the server."""
        images = (self.image, *(each.image for each in self.variants))
        return frozenset(image for image in images if self.variant_of(image).packages)

    def min_cuda_of(self, image: str) -> str:
        """What `image`, or what is installed on it, needs of the driver."""
        return next((each.min_cuda for each in self.variants if each.image == image), self.min_cuda)


@dataclass(frozen=True, slots=True)
class Unsupported:
    """An engine that people ask for and that does not run this model here, with the reason."""

    engine: str
    reason: str
    source: str = ""


@dataclass(frozen=True, slots=True)
class OllamaName:
    """What Ollama's library calls the model, for users who know it by that name. Never run by clorefleet."""

    name: str
    source: str


@dataclass(frozen=True, slots=True)
class HostedPrice:
    """What the same model costs at a hosted API, the alternative to renting. Absent where no source tells."""

    provider: str
    usd_per_million_input: Decimal
    usd_per_million_output: Decimal
    read_on: str
    """Date of the source, `2026-08` or `2026-08-19`."""
    source: str
    confidence: Confidence = Confidence.LOW


@dataclass(frozen=True, slots=True)
class Sampling:
    temperature: float | None = None
    top_p: float | None = None
    source: str = ""


@dataclass(frozen=True, slots=True)
class Floors:
    """Below these a plan is not offered unless the user says so."""

    context_tokens: int
    decode_tokens_per_s: float


# Known by identity: what was computed is looked up by it thousands of times in one plan.
@dataclass(frozen=True, slots=True, eq=False)
class Recipe:
    name: str
    """What the user types, for instance `glm-5.1`."""
    title: str
    license: str
    max_context_tokens: int
    parameters: Parameters
    architecture: Architecture
    kv_cache: KvCache
    checkpoints: tuple[Checkpoint, ...]
    engines: tuple[EngineSupport, ...]
    sampling: Sampling
    floors: Floors
    max_output_tokens: int = 0
    """0 where the vendor names none."""
    hosted_price: HostedPrice | None = None
    ollama: OllamaName | None = None
    unsupported: tuple[Unsupported, ...] = ()
    source_file: str = ""

    def checkpoint(self, key: str) -> Checkpoint:
        return next(checkpoint for checkpoint in self.checkpoints if checkpoint.key == key)

    def engine(self, name: EngineName) -> EngineSupport:
        return next(support for support in self.engines if support.engine is name)
