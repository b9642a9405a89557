"""The command line of `vllm serve` that the stand-in knows (release 0.33.0).

As in the real program underscores and dashes are the same, an option of a JSON argument may be written with
dots (`--speculative-config.method mtp`), and token counts may end in k or K.
"""

from __future__ import annotations

import argparse
import json
import re

VERSION = "0.33.0"
TOOL_PARSERS = (
    "deepseek_v3 deepseek_v31 deepseek_v32 deepseek_v4 glm45 glm47 granite hermes internlm jamba kimi_k2 "
    "llama3_json llama4_pythonic minimax_m2 mistral openai phi4_mini_json pythonic qwen3_coder qwen3_xml "
    "step3 xlam"
).split()
REASONING_PARSERS = (
    "deepseek_r1 deepseek_v3 deepseek_v4 glm45 glm47 granite kimi_k2 minimax_m2 mistral openai_gptoss "
    "qwen3 step3"
).split()
_TOKENS = re.compile(r"(\d+(?:\.\d+)?)([kKmMgG]?)")
_FACTORS = {"": 1, "k": 1000, "m": 10**6, "g": 10**9, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30}
_JSON_FLAGS = (
    "--speculative-config",
    "--compilation-config",
    "--override-generation-config",
    "--hf-overrides",
)


def tokens(text: str) -> int:
    match = _TOKENS.fullmatch(text)
    if match is None:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of tokens")
    return int(float(match[1]) * _FACTORS[match[2]])


_VALUED: dict[str, object] = {
    "--model": str,
    "--tokenizer": str,
    "--revision": str,
    "--host": str,
    "--port": int,
    "--api-key": str,
    "--dtype": str,
    "--quantization": str,
    "--load-format": str,
    "--download-dir": str,
    "--max-model-len": tokens,
    "--max-num-seqs": int,
    "--max-num-batched-tokens": tokens,
    "--gpu-memory-utilization": float,
    "--swap-space": float,
    "--cpu-offload-gb": float,
    "--tensor-parallel-size": int,
    "--pipeline-parallel-size": int,
    "--data-parallel-size": int,
    "--decode-context-parallel-size": int,
    "--block-size": int,
    "--seed": int,
    "--chat-template": str,
    "--chat-template-content-format": str,
    "--kv-cache-dtype": str,
    "--distributed-executor-backend": str,
    "--generation-config": str,
    "--uvicorn-log-level": str,
    "--attention-backend": str,
}
_SWITCHES = (
    "--trust-remote-code --enable-auto-tool-choice --enforce-eager --enable-prefix-caching "
    "--no-enable-prefix-caching --enable-expert-parallel --enable-chunked-prefill "
    "--no-enable-chunked-prefill --disable-log-stats --disable-log-requests --enable-log-requests "
    "--disable-custom-all-reduce --disable-uvicorn-access-log --async-scheduling --no-async-scheduling"
).split()
_SHORT = {"--tensor-parallel-size": "-tp", "--pipeline-parallel-size": "-pp", "--data-parallel-size": "-dp"}


def parse(words: list[str]) -> argparse.Namespace:
    """Ends the program with status 2 for an unknown flag or a bad value, as argparse does."""
    made = argparse.ArgumentParser(prog="vllm serve")
    made.add_argument("model_tag", nargs="?")
    made.add_argument("--served-model-name", nargs="+")
    made.add_argument("--tool-call-parser", choices=TOOL_PARSERS)
    made.add_argument("--reasoning-parser", choices=REASONING_PARSERS)
    for flag, kind in _VALUED.items():
        made.add_argument(*([_SHORT[flag]] if flag in _SHORT else []), flag, type=kind)
    for flag in _JSON_FLAGS:
        made.add_argument(flag, type=json.loads)
    for flag in _SWITCHES:
        made.add_argument(flag, action="store_true")
    made.set_defaults(host="127.0.0.1", port=8000, tensor_parallel_size=1, pipeline_parallel_size=1)
    made.set_defaults(data_parallel_size=1)
    args = made.parse_args(_without_dots([_dashed(word) for word in words]))
    if args.enable_auto_tool_choice and not args.tool_call_parser:
        made.exit(1, "Error: --enable-auto-tool-choice requires --tool-call-parser\n")
    return args


def _dashed(word: str) -> str:
    name, equals, value = word.partition("=")
    return name.replace("_", "-") + equals + value if name.startswith("--") and "." not in name else word


def _without_dots(words: list[str]) -> list[str]:
    """Fold `--config.key value` into one JSON argument."""
    kept: list[str] = []
    folded: dict[str, dict] = {}
    rest = iter(words)
    for word in rest:
        name, _, tail = word.partition(".")
        name = name.replace("_", "-")
        if name not in _JSON_FLAGS or not tail:
            kept.append(word)
            continue
        key, equals, value = tail.partition("=")
        value = value if equals else next(rest, "")
        try:
            parsed = json.loads(value)
        except ValueError:
            parsed = value
        folded.setdefault(name, {})[key] = parsed
    for name, value in folded.items():
        kept += [name, json.dumps(value)]
    return kept
