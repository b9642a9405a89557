"""What the sandbox's hub has to offer: repositories, their files, and every byte of them.

Weight files of large models are scaled down one by one. A scaled file begins with one line

    CLOREFLEET-SCALED-WEIGHTS v1 {"model": ..., "checkpoint": ..., "true_bytes": ..., ...}

from which the engine stand-ins know what they serve, and goes on with a stream of bytes that depends only on
repository, path and offset. Nothing is stored: any range of any file is computed when it is asked for.
"""

from __future__ import annotations

import functools
import hashlib
import json
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from clorefleet.sandbox.assets import Assets

DEFAULT_WEIGHTS_SCALE = 1 / 10_000
WEIGHTS_SCALE_MAX = 1 / 50
"""Above that, computing digests of the largest repositories would take minutes."""
SCALED_FILE_BYTES_MIN = 4096
SCALED_MARK = "CLOREFLEET-SCALED-WEIGHTS v1"
SAFETENSORS_SHARD_BYTES = 5_000_000_000
GGUF_SPLIT_BYTES = 46_000_000_000
GGUF_WHOLE_BYTES_MAX = 50_000_000_000
"""The real hub takes no file above this size, so publishers split larger ones."""
_BLOCK_BYTES = 1 << 20
_READ_BYTES = 1 << 20
_PAYLOAD = Path(__file__).parent / "payload"


class Content:
    """Bytes with random access. `size` and digests never change."""

    size: int

    def read(self, offset: int, length: int) -> bytes:
        raise NotImplementedError

    def chunks(self) -> Iterator[bytes]:
        for offset in range(0, self.size, _READ_BYTES):
            yield self.read(offset, min(_READ_BYTES, self.size - offset))

    @functools.cached_property
    def sha256(self) -> str:
        return self._digest(hashlib.sha256())

    @functools.cached_property
    def git_blob_sha1(self) -> str:
        return self._digest(hashlib.sha1(b"blob %d\0" % self.size, usedforsecurity=False))

    def _digest(self, digest: Any) -> str:
        for chunk in self.chunks():
            digest.update(chunk)
        return str(digest.hexdigest())


class TextContent(Content):
    def __init__(self, text: str) -> None:
        self._data = text.encode()
        self.size = len(self._data)

    def read(self, offset: int, length: int) -> bytes:
        return self._data[offset : offset + length]


class DiskContent(Content):
    def __init__(self, path: Path) -> None:
        self._path = path
        self.size = path.stat().st_size

    def read(self, offset: int, length: int) -> bytes:
        with self._path.open("rb") as file:
            file.seek(offset)
            return file.read(length)


class ScaledContent(Content):
    """The header line, then blocks that a hash function expands from seed and number."""

    def __init__(self, seed: str, header: str, size: int) -> None:
        self._seed = seed
        self._header = header.encode()
        self.size = max(size, len(self._header))

    def read(self, offset: int, length: int) -> bytes:
        end = min(offset + length, self.size)
        parts = [self._header[offset:end]]
        at = max(offset, len(self._header))
        while at < end:
            number, start = divmod(at, _BLOCK_BYTES)
            part = _block(self._seed, number)[start : start + end - at]
            parts.append(part)
            at += len(part)
        return b"".join(parts)


@functools.lru_cache(maxsize=8)
def _block(seed: str, number: int) -> bytes:
    return hashlib.shake_128(f"{seed}\0{number}".encode()).digest(_BLOCK_BYTES)


@dataclass(frozen=True, slots=True)
class RepoFile:
    path: str
    content: Content
    is_large: bool
    """Kept as LFS on the real hub, and so described by its SHA-256."""
    true_bytes: int
    """Size of the real file; differs from the content's where that is scaled down."""

    @property
    def etag(self) -> str:
        return self.content.sha256 if self.is_large else self.content.git_blob_sha1

    @property
    def pointer(self) -> bytes:
        """The text that git stores in place of a large file."""
        content = self.content
        return (
            f"version https://git-lfs.github.com/spec/v1\noid sha256:{content.sha256}\nsize {content.size}\n"
        ).encode()

    @property
    def git_oid(self) -> str:
        if not self.is_large:
            return self.content.git_blob_sha1
        return TextContent(self.pointer.decode()).git_blob_sha1


@dataclass(frozen=True, slots=True)
class Repository:
    id: str
    files: Mapping[str, RepoFile]
    is_scaled: bool

    @property
    def commit(self) -> str:
        """One commit per repository and scale."""
        names = "\n".join(f"{file.path} {file.content.size}" for file in self.files.values())
        return hashlib.sha1(f"{self.id}\n{names}".encode(), usedforsecurity=False).hexdigest()


class Shelf:
    """All repositories, made when they are first asked for."""

    def __init__(self, *, assets: Callable[[], Assets], weights_scale: float = DEFAULT_WEIGHTS_SCALE) -> None:
        """Raises ValueError for a scale outside (0, WEIGHTS_SCALE_MAX]."""
        if not 0 < weights_scale <= WEIGHTS_SCALE_MAX:
            raise ValueError(f"weights_scale must be above 0 and at most {WEIGHTS_SCALE_MAX}")
        self.weights_scale = weights_scale
        self._assets = assets
        text = resources.files("clorefleet.data").joinpath("hub.json").read_text("utf-8")
        self._table: dict[str, Any] = json.loads(text)
        self._facts: dict[str, Any] = json.loads((_PAYLOAD / "models.json").read_text("utf-8"))
        self._made: dict[str, Repository] = {}

    def names(self) -> list[str]:
        return sorted(name for name in self._table if "/" in name)

    def find(self, name: str) -> Repository | None:
        """May block for seconds at the first call for a repository with real weights."""
        if "/" not in name or name not in self._table:
            return None
        if name not in self._made:
            self._made[name] = self._make(name, self._table[name])
        return self._made[name]

    def _make(self, name: str, entry: Mapping[str, Any]) -> Repository:
        files: dict[str, RepoFile] = {}

        def add(
            path: str, content: Content, *, is_large: bool = False, true_bytes: int | None = None
        ) -> None:
            files[path] = RepoFile(path, content, is_large, true_bytes or content.size)

        add(".gitattributes", TextContent("*.gguf filter=lfs diff=lfs merge=lfs -text\n"))
        add("README.md", TextContent(_readme(name, entry, self.weights_scale)))
        if entry["layout"] == "safetensors":
            for path, text in _model_files(self._facts[entry["model"]], entry).items():
                add(path, TextContent(text))
        real = entry.get("real")
        for checkpoint, true_total in entry["files"].items():
            for path, true_bytes in _weight_files(name, entry["layout"], checkpoint, true_total).items():
                if path == real:
                    add(path, DiskContent(self._assets().gguf_path), is_large=True, true_bytes=true_bytes)
                else:
                    content = self._scaled(name, entry, checkpoint, path, true_bytes)
                    add(path, content, is_large=True, true_bytes=true_bytes)
        return Repository(name, files, is_scaled=real is None)

    def _scaled(
        self, name: str, entry: Mapping[str, Any], checkpoint: str, path: str, true_bytes: int
    ) -> Content:
        told = {
            "model": entry["model"],
            "checkpoint": checkpoint,
            "layout": entry["layout"],
            "repo": name,
            "file": path,
            "true_bytes": true_bytes,
            "scale": self.weights_scale,
        }
        size = max(SCALED_FILE_BYTES_MIN, round(true_bytes * self.weights_scale))
        return ScaledContent(f"{name}\0{path}", f"{SCALED_MARK} {json.dumps(told)}\n", size)


def _weight_files(repo: str, layout: str, checkpoint: str, total: int) -> dict[str, int]:
    """Path and true size of each file of a checkpoint."""
    if layout == "safetensors":
        count = math.ceil(total / SAFETENSORS_SHARD_BYTES)
        if count == 1:
            return {"model.safetensors": total}
        return _split(total, count, lambda number: f"model-{number:05}-of-{count:05}.safetensors")
    base = repo.split("/")[1].split("-GGUF")[0]
    if repo.startswith("QuantFactory/"):
        return {f"{base}.{checkpoint}.gguf": total}
    if total <= GGUF_WHOLE_BYTES_MAX:
        return {f"{base}-{checkpoint}.gguf": total}
    count = math.ceil(total / GGUF_SPLIT_BYTES)
    return _split(total, count, lambda number: f"{base}-{checkpoint}-{number:05}-of-{count:05}.gguf")


def _split(total: int, count: int, name: Callable[[int], str]) -> dict[str, int]:
    share = total // count
    sizes = [share] * (count - 1) + [total - share * (count - 1)]
    return {name(number): size for number, size in enumerate(sizes, start=1)}


def _readme(name: str, entry: Mapping[str, Any], scale: float) -> str:
    return (
        f"# {name} (simulated)\n\nThis repository is served by clorefleet's sandbox. Its weight files have "
        f"the names and number of the real ones' kind and {scale:g} of their size; they hold no model.\n"
        f"Model: {entry['model']}\n"
    )


def _model_files(facts: Mapping[str, Any], entry: Mapping[str, Any]) -> dict[str, str]:
    """The small files beside safetensors weights."""
    checkpoint, total = next(iter(entry["files"].items()))
    config = {
        "architectures": [facts["architecture"] or "SimulatedForCausalLM"],
        "model_type": facts["model_type"],
        "num_hidden_layers": facts["layers"],
        "hidden_size": facts["hidden"],
        "intermediate_size": facts["intermediate"],
        "num_attention_heads": facts["heads"],
        "num_key_value_heads": facts["kv_heads"] or facts["heads"],
        "head_dim": facts["head_dim"] or None,
        "vocab_size": facts["vocab"],
        "max_position_embeddings": facts["max_context"],
        "first_k_dense_replace": facts["first_k_dense"],
        "n_routed_experts": facts["experts"] or None,
        "num_experts_per_tok": facts["experts_per_token"] or None,
        "n_shared_experts": facts["shared_experts"] or None,
        "moe_intermediate_size": facts["moe_intermediate"] or None,
        "num_nextn_predict_layers": facts["mtp_layers"],
        **facts["mla"],
        "torch_dtype": "bfloat16",
        "quantization_config": _quantisation(checkpoint),
        "sandbox": {"simulated": True, "model": entry["model"], "checkpoint": checkpoint},
    }
    shards = list(_weight_files("", "safetensors", checkpoint, total))
    layers = facts["layers"]
    placed = {
        f"model.layers.{layer}.self_attn.o_proj.weight": shards[layer * len(shards) // layers]
        for layer in range(layers)
    }
    index = {"metadata": {"total_size": total}, "weight_map": placed}
    return {
        "config.json": json.dumps({k: v for k, v in config.items() if v is not None}, indent=2),
        "generation_config.json": json.dumps({"do_sample": True, "temperature": 1.0}, indent=2),
        "model.safetensors.index.json": json.dumps(index, indent=2),
        "tokenizer.json": json.dumps({"version": "1.0", "sandbox": {"simulated": True}}, indent=2),
        "tokenizer_config.json": json.dumps({"model_max_length": facts["max_context"]}, indent=2),
        "chat_template.jinja": "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}",
    }


def _quantisation(checkpoint: str) -> dict[str, object] | None:
    if checkpoint.startswith("FP8"):
        return {"quant_method": "fp8", "fmt": "e4m3", "weight_block_size": [128, 128]}
    if checkpoint.startswith(("NVFP4", "MXFP4")):
        return {"quant_method": checkpoint.lower()}
    return None
