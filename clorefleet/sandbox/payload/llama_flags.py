"""The arguments of `llama-server` that the stand-in knows, with their values' kinds.

An argument that the real program has and that is missing here is refused; add it rather than ignore it.
"""

from __future__ import annotations

import sys

_TEXT, _INTEGER, _NUMBER, _ON = str, int, float, None

FLAGS: dict[str, tuple[tuple[str, ...], type | None]] = {
    "model": (("-m", "--model"), _TEXT),
    "alias": (("-a", "--alias"), _TEXT),
    "gpu_layers": (("-ngl", "--gpu-layers", "--n-gpu-layers"), _TEXT),
    "cpu_moe": (("-cmoe", "--cpu-moe"), _ON),
    "n_cpu_moe": (("-ncmoe", "--n-cpu-moe"), _INTEGER),
    "override_tensor": (("-ot", "--override-tensor"), _TEXT),
    "moe_cache_mib": (("--moe-cache-mib",), _INTEGER),
    "tensor_split": (("-ts", "--tensor-split"), _TEXT),
    "split_mode": (("-sm", "--split-mode"), _TEXT),
    "main_gpu": (("-mg", "--main-gpu"), _INTEGER),
    "device": (("-dev", "--device"), _TEXT),
    "ctx_size": (("-c", "--ctx-size"), _INTEGER),
    "parallel": (("-np", "--parallel"), _INTEGER),
    "kv_unified": (("-kvu", "--kv-unified"), _ON),
    "flash_attn": (("-fa", "--flash-attn"), _TEXT),
    "jinja": (("--jinja",), _ON),
    "no_jinja": (("--no-jinja",), _ON),
    "cache_type_k": (("-ctk", "--cache-type-k"), _TEXT),
    "cache_type_v": (("-ctv", "--cache-type-v"), _TEXT),
    "threads": (("-t", "--threads"), _INTEGER),
    "threads_batch": (("-tb", "--threads-batch"), _INTEGER),
    "threads_http": (("--threads-http",), _INTEGER),
    "numa": (("--numa",), _TEXT),
    "host": (("--host",), _TEXT),
    "port": (("--port",), _INTEGER),
    "api_key": (("--api-key",), _TEXT),
    "api_key_file": (("--api-key-file",), _TEXT),
    "metrics": (("--metrics",), _ON),
    "props": (("--props",), _ON),
    "slots": (("--slots",), _ON),
    "no_slots": (("--no-slots",), _ON),
    "no_mmap": (("--no-mmap",), _ON),
    "mmap": (("--mmap",), _ON),
    "mlock": (("--mlock",), _ON),
    "direct_io": (("-dio", "--direct-io"), _ON),
    "batch_size": (("-b", "--batch-size"), _INTEGER),
    "ubatch_size": (("-ub", "--ubatch-size"), _INTEGER),
    "fit": (("-fit", "--fit"), _TEXT),
    "fit_target": (("-fitt", "--fit-target"), _TEXT),
    "fit_ctx": (("-fitc", "--fit-ctx"), _INTEGER),
    "no_warmup": (("--no-warmup",), _ON),
    "warmup": (("--warmup",), _ON),
    "cont_batching": (("-cb", "--cont-batching"), _ON),
    "no_cont_batching": (("-nocb", "--no-cont-batching"), _ON),
    "no_kv_offload": (("-nkvo", "--no-kv-offload"), _ON),
    "swa_full": (("--swa-full",), _ON),
    "cache_reuse": (("--cache-reuse",), _INTEGER),
    "cache_ram": (("-cram", "--cache-ram"), _INTEGER),
    "chat_template": (("--chat-template",), _TEXT),
    "chat_template_file": (("--chat-template-file",), _TEXT),
    "chat_template_kwargs": (("--chat-template-kwargs",), _TEXT),
    "reasoning_format": (("--reasoning-format",), _TEXT),
    "reasoning_budget": (("--reasoning-budget",), _INTEGER),
    "spec_type": (("--spec-type",), _TEXT),
    "spec_draft_n_max": (("--spec-draft-n-max", "--draft-max", "--draft"), _INTEGER),
    "spec_draft_n_min": (("--spec-draft-n-min", "--draft-min"), _INTEGER),
    "temp": (("--temp", "--temperature"), _NUMBER),
    "top_p": (("--top-p",), _NUMBER),
    "top_k": (("--top-k",), _INTEGER),
    "min_p": (("--min-p",), _NUMBER),
    "repeat_penalty": (("--repeat-penalty",), _NUMBER),
    "seed": (("-s", "--seed"), _INTEGER),
    "predict": (("-n", "--predict", "--n-predict"), _INTEGER),
    "timeout": (("-to", "--timeout"), _INTEGER),
    "no_webui": (("--no-webui",), _ON),
    "log_disable": (("--log-disable",), _ON),
    "log_file": (("--log-file",), _TEXT),
    "log_timestamps": (("--log-timestamps",), _ON),
    "log_prefix": (("--log-prefix",), _ON),
    "verbose": (("-v", "--verbose"), _ON),
    "verbosity": (("-lv", "--verbosity", "--log-verbosity"), _INTEGER),
    "offline": (("--offline",), _ON),
    "version": (("--version",), _ON),
    "help": (("-h", "--help", "--usage"), _ON),
}
CHOICES = {
    "split_mode": ("none", "layer", "row", "tensor"),
    "cache_type_k": ("f32", "f16", "bf16", "q8_0", "q4_0", "q4_1", "iq4_nl", "q5_0", "q5_1"),
    "cache_type_v": ("f32", "f16", "bf16", "q8_0", "q4_0", "q4_1", "iq4_nl", "q5_0", "q5_1"),
    "flash_attn": ("on", "off", "auto", "1", "0"),
    "numa": ("distribute", "isolate", "numactl"),
    "fit": ("on", "off"),
    "reasoning_format": ("none", "auto", "deepseek", "deepseek-legacy"),
    "spec_type": ("none", "draft", "draft-simple", "draft-eagle3", "draft-mtp", "ngram-simple", "ngram-mod"),
}
_REPEATED = ("override_tensor",)


def parse(words: list[str]) -> dict:
    """Values by name; absent arguments are absent. Ends the program as the real one does for a wrong one."""
    by_flag = {flag: name for name, (flags, _) in FLAGS.items() for flag in flags}
    given: dict = {}
    rest = iter(words)
    for word in rest:
        name = by_flag.get(word)
        if name is None:
            _refuse(f"error: invalid argument: {word}")
        kind = FLAGS[name][1]
        if kind is _ON:
            given[name] = True
            continue
        text = next(rest, None)
        if text is None:
            _refuse(f'error while handling argument "{word}": expected value for argument')
        try:
            value = kind(text)
        except ValueError:
            _refuse(f'error while handling argument "{word}": stoi')
        if name in CHOICES and value not in CHOICES[name]:
            _refuse(f"error while handling argument \"{word}\": unknown value: '{value}'")
        if name in _REPEATED:
            value = [*given.get(name, []), value]
        given[name] = value
    return given


def _refuse(message: str) -> None:
    print(message, file=sys.stderr, flush=True)
    sys.exit(1)
