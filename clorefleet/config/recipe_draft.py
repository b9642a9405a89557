"""A first recipe from what a hub tells of a repository. Pure: values in, TOML text out.

Dimensions come from `config.json`, bytes from the file list, everything else is assumed and says so: a draft
is a beginning for a person, never a recipe that was checked.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass

from clorefleet.config.hub import HubModel
from clorefleet.domain.errors import HubError

_LOW_RANK = re.compile(r"[^a-z0-9.-]+")
_QUANTISATION = re.compile(r"(?i)(UD-)?(BF16|F16|Q[1-8]_[0-9A-Z_]+|IQ[1-4]_[A-Z0-9_]+|TQ1_0|MXFP4)(?=[-.]|$)")
_PRECISION_OF_GGUF = (
    ("bf16", "bf16"), ("f16", "bf16"), ("q8", "q8"), ("q6", "q6"), ("q5", "q5"), ("q4", "q4"), ("iq4", "q4"),
    ("mxfp4", "fp4"), ("q3", "q3"), ("iq3", "q3"), ("q2", "q2"), ("iq2", "q2"), ("q1", "q1"), ("iq1", "q1"),
    ("tq1", "q1"),
)  # fmt: skip
_SAFETENSORS = 'files = ["*.safetensors", "*.json", "*.jinja", "*.txt", "*.model"]'
_ENGINES = """[[engines]]
engine = "sglang"
image = "lmsysorg/sglang:v0.5.23"
layouts = ["safetensors"]
min_version = "0.5.23"  # assumed: the image's; name the first release that has this model
min_version_mark = "assumed"
# tool_call_parser = "..."  reasoning_parser = "..."  speculative = "EAGLE"
min_compute_capability = "{capability}"  # assumed
min_cuda = "13.0"  # the image's torch is built for CUDA 13: driver 580 or newer
source = "drafted; not tried"

[[engines]]
engine = "vllm"
image = "vllm/vllm-openai:v0.33.0"
layouts = ["safetensors"]
min_version = "0.33.0"  # assumed: the image's; name the first release that has this model
min_version_mark = "assumed"
min_compute_capability = "{capability}"  # assumed
min_cuda = "13.0"  # the image's torch is built for CUDA 13: driver 580 or newer
source = "drafted; not tried"
variants = [
  {{ image = "vllm/vllm-openai:v0.33.0-cu129", min_cuda = "12.9", source = "vLLM's docs" }},  # assumed
]
"""
_LLAMACPP = """[[engines]]
engine = "llama.cpp"
image = "ghcr.io/ggml-org/llama.cpp:server-cuda"
layouts = ["gguf"]
min_compute_capability = "7.0"
min_cuda = "12.4"  # assumed: the image's CUDA release
source = "drafted; not tried"
"""


@dataclass(frozen=True, slots=True)
class _Dims:
    """What a `config.json` says, under the names that its makers use."""

    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int
    first_k_dense: int
    experts: int
    chosen: int
    shared: int
    moe_intermediate: int
    mtp_layers: int
    kv_lora_rank: int
    rope_dim: int
    index_bytes: int
    kv_layers: int
    context: int

    @property
    def attention(self) -> str:
        if self.kv_lora_rank:
            return "MLA+DSA" if self.index_bytes else "MLA"
        return "hybrid" if self.kv_layers != self.layers else "GQA"

    @property
    def one_expert(self) -> int:
        return 3 * self.hidden * self.moe_intermediate

    @property
    def kv_bytes(self) -> int:
        if self.kv_lora_rank:
            return self.kv_layers * (2 * (self.kv_lora_rank + self.rope_dim) + self.index_bytes)
        return 4 * self.kv_layers * self.kv_heads * self.head_dim


def draft_recipe(model: HubModel, original: HubModel | None = None, *, name: str = "") -> str:
    """The text of a recipe file. `original` has the `config.json` that a GGUF repository lacks.

    Args:
        name: the recipe's; the repository's where it is empty.

    Raises:
        HubError: the dimensions or the weights are missing, or are none.
    """
    source = original or model
    dims = _dims(source)
    checkpoints = list(_checkpoints(model))
    if not checkpoints:
        raise HubError(f"{model.repo} has no safetensors or GGUF files.", remedy="Nothing was written.")
    total = _total_weights(source if source.weights_total or source is model else model, checkpoints)
    experts = dims.one_expert * (dims.layers - dims.first_k_dense)
    active = total - dims.hidden * dims.vocab - experts * max(0, dims.experts - dims.chosen)
    has_gguf = any(layout == "gguf" for *_, layout, _, _ in checkpoints)
    scaled = "; sizes scaled up from a sandbox's small files" if model.is_simulated else ""
    lines = [
        f"# {model.repo}: drafted by `clorefleet models add`. Check every line.",
        "",
        f"name = {_text(name or recipe_name(source.repo))}",
        f"title = {_text(source.repo)}",
        'license = "see the model card"',
        f"max_context_tokens = {dims.context}",
        "",
        "[parameters]",
        f"total = {total}",
        f"active_per_token = {max(1, active)}",
        *([f"one_expert = {dims.one_expert}"] if dims.experts else []),
        'mark = "computed"',
        f'source = "total from the bytes on the hub, active from the dimensions{scaled}"',
        'confidence = "low"',
        "",
        *_architecture(dims),
        "",
        *(line for each in checkpoints for line in _checkpoint(model, each, scaled)),
        _LLAMACPP if has_gguf else _ENGINES.format(capability="9.0" if dims.index_bytes else "8.0"),
        "[sampling]",
        'source = ""  # no vendor figure looked up',
        "",
        "[floors]",
        f"context_tokens = {min(8192, dims.context)}  # assumed",
        "decode_tokens_per_s = 5.0  # assumed",
    ]
    return "\n".join(lines) + "\n"


def recipe_name(repo: str) -> str:
    name = _LOW_RANK.sub("-", repo.split("/")[-1].lower()).strip("-.")
    return (name or "model")[:60]


def _text(value: str) -> str:
    """A TOML string; JSON's escapes are TOML's."""
    return json.dumps(value, ensure_ascii=True)


def _dims(model: HubModel) -> _Dims:
    config = model.config
    inner = config.get("text_config")
    if isinstance(inner, dict):
        config = {**config, **inner}

    def number(*names: str, least: int = 0) -> int:
        for name in names:
            value = config.get(name)
            if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 10**9:
                return value
        if least:
            raise HubError(
                f"{model.repo} has no {names[0]} in its config.json.",
                remedy="For a GGUF repository name the original with --config-from ORG/NAME.",
            )
        return 0

    layers, heads = number("num_hidden_layers", least=1), number("num_attention_heads", least=1)
    hidden = number("hidden_size", least=1)
    kinds = config.get("layer_types")
    full = sum(1 for kind in kinds if kind == "full_attention") if isinstance(kinds, list) else layers
    has_linear = isinstance(kinds, list) and "linear_attention" in kinds
    is_sparse = bool(number("index_topk")) or "dsa" in str(config.get("model_type", ""))
    return _Dims(
        layers=layers,
        hidden=hidden,
        heads=heads,
        kv_heads=number("num_key_value_heads") or heads,
        head_dim=number("head_dim") or hidden // max(1, heads),
        vocab=number("vocab_size", least=1),
        first_k_dense=number("first_k_dense_replace"),
        experts=number("n_routed_experts", "num_experts", "num_local_experts"),
        chosen=number("num_experts_per_tok", "experts_per_token"),
        shared=number("n_shared_experts"),
        moe_intermediate=number("moe_intermediate_size", "intermediate_size"),
        mtp_layers=number("num_nextn_predict_layers", "mtp_num_hidden_layers"),
        kv_lora_rank=number("kv_lora_rank"),
        rope_dim=number("qk_rope_head_dim"),
        index_bytes=132 if is_sparse else 0,
        kv_layers=max(1, full) if has_linear else layers,
        context=number("max_position_embeddings", least=1),
    )


def _architecture(dims: _Dims) -> Iterator[str]:
    is_mla = bool(dims.kv_lora_rank)
    yield "[architecture]"
    yield f"num_layers = {dims.layers}"
    yield f"hidden = {dims.hidden}"
    yield f"heads = {dims.heads}"
    if not is_mla:
        yield f"kv_heads = {dims.kv_heads}"
        yield f"head_dim = {dims.head_dim}"
    yield f"vocab = {dims.vocab}"
    if dims.experts:
        yield f"first_k_dense = {dims.first_k_dense}"
        yield f"experts = {dims.experts}"
        yield f"experts_per_token = {dims.chosen}"
        yield f"shared_experts = {dims.shared}"
        yield f"moe_intermediate = {dims.moe_intermediate}"
    yield f"mtp_layers = {dims.mtp_layers}"
    yield f'attention = "{dims.attention}"'
    if dims.kv_layers != dims.layers:
        yield f"kv_layers = {dims.kv_layers}"
    if is_mla:
        yield f"kv_lora_rank = {dims.kv_lora_rank}"
        yield f"qk_rope_head_dim = {dims.rope_dim}"
    if dims.index_bytes:
        yield f"index_bytes = {dims.index_bytes}  # assumed: 128 FP8 values and a scale"
    yield 'source = "config.json on the hub"'
    yield 'confidence = "medium"'
    yield ""
    yield "[kv_cache]"
    yield f"per_token_bytes_bf16 = {dims.kv_bytes}"
    yield f"per_token_bytes_fp8 = {dims.kv_bytes // 2}  # assumed: half"
    yield f"is_replicated_across_tp = {str(is_mla).lower()}"
    if not is_mla:
        yield f"shard_limit = {dims.kv_heads}"
    yield 'mark = "computed"'
    yield 'source = "from the dimensions"'
    yield 'confidence = "medium"'


_Found = tuple[str, str, str, str, str, int]
"""Key, precision, format, layout, file patterns as TOML, bytes."""


def _checkpoints(model: HubModel) -> Iterator[_Found]:
    safetensors = sum(size for name, size in model.files.items() if name.endswith(".safetensors"))
    if safetensors:
        precision, name = _safetensors_precision(model)
        yield precision, precision, name, "safetensors", _SAFETENSORS, model.weights_total or safetensors
    by_kind: dict[str, int] = {}
    for path, size in model.files.items():
        kind = _QUANTISATION.search(path.rsplit("/", 1)[-1]) if path.endswith(".gguf") else None
        if kind and not path.rsplit("/", 1)[-1].lower().startswith("mmproj"):
            by_kind[kind.group(0).upper()] = by_kind.get(kind.group(0).upper(), 0) + size
    for kind_name, size in sorted(by_kind.items()):
        bare = kind_name.lower().removeprefix("ud-")
        precision = next((found for start, found in _PRECISION_OF_GGUF if bare.startswith(start)), "")
        if precision and size > 0:
            key = re.sub(r"[^a-z0-9]+", "_", kind_name.lower())
            yield (
                key,
                precision,
                f"GGUF {kind_name}",
                "gguf",
                f"files = [{_text(f'*{kind_name}*.gguf')}]",
                size,
            )


def _safetensors_precision(model: HubModel) -> tuple[str, str]:
    quantised = model.config.get("quantization_config")
    method = str(quantised.get("quant_method", "")) if isinstance(quantised, dict) else ""
    if method.startswith("fp8") or "fp8" in model.repo.lower():
        return "fp8", "FP8"
    if method in ("mxfp4", "modelopt", "modelopt_fp4") or "fp4" in model.repo.lower():
        return "fp4", "NVFP4" if "nvfp4" in model.repo.lower() else "MXFP4"
    if method in ("awq", "gptq"):
        return "q4", method.upper()
    return "bf16", "BF16"


def _total_weights(model: HubModel, checkpoints: list[_Found]) -> int:
    """From the bytes of the plainest checkpoint: nobody's file list says how many weights there are."""
    bits = {"bf16": 16.0, "fp8": 8.05, "q8": 8.5, "q6": 6.56, "q5": 5.7, "q4": 4.85, "fp4": 4.4, "q3": 3.7,
            "q2": 2.7, "q1": 2.1}  # fmt: skip
    if model.weights_total and _safetensors_precision(model)[0] == "bf16":
        return model.weights_total // 2
    found = sorted(checkpoints, key=lambda each: list(bits).index(each[1]))[0]
    return int(found[5] * 8 / bits[found[1]])


def _checkpoint(model: HubModel, found: _Found, scaled: str) -> Iterator[str]:
    key, precision, name, layout, files, size = found
    quantised = model.config.get("quantization_config")
    blocks = quantised.get("weight_block_size") if isinstance(quantised, dict) else None
    yield "[[checkpoints]]"
    yield f"key = {_text(key)}"
    yield f"precision = {_text(precision)}"
    yield f"format = {_text(name)}"
    yield f"layout = {_text(layout)}"
    yield f"repo = {_text(model.repo)}"
    yield 'revision = "main"'
    yield files
    yield f"bytes = {size}"
    yield f'bytes_mark = "{"assumed" if model.is_simulated else "published"}"'
    if precision == "fp8" and isinstance(blocks, list) and blocks and isinstance(blocks[0], int):
        yield f"fp8_block = {blocks[0]}"
    yield f'source = "file list on the hub{scaled}"'
    yield f'confidence = "{"low" if model.is_simulated else "high"}"'
    yield ""
