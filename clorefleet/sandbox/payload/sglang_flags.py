"""The command line of `sglang.launch_server`, of the plain release and of KTransformers' build."""

from __future__ import annotations

import argparse

import real_flags

_DEFAULTS = {
    "host": "127.0.0.1",
    "port": 30000,
    "tp_size": 1,
    "pp_size": 1,
    "dp_size": 1,
    "ep_size": 1,
    "kv_cache_dtype": "auto",
}
_SPELT = {
    "--tp-size": "tp_size",
    "--pp-size": "pp_size",
    "--dp-size": "dp_size",
    "--ep-size": "ep_size",
    "--model-path": "model_path",
}
_ONLY_IN_ONE = ("cuda_graph_max_bs_decode", "disable_cuda_graph", "kt_num_gpu_experts", "cuda_graph_max_bs")
METHODS = ("EAGLE", "EAGLE3", "NEXTN", "STANDALONE", "NGRAM")
"""Speculative algorithms; the release checks them after parsing."""


def release(*, has_kt: bool) -> str:
    return "sglang-kt" if has_kt else "sglang"


def version(*, has_kt: bool) -> str:
    return real_flags.snapshot(release(has_kt=has_kt))["version"]


def parser(*, has_kt: bool) -> argparse.ArgumentParser:
    """Both releases' arguments under the same names, whichever spelling a release lists first."""
    made = real_flags.parser(release(has_kt=has_kt), "launch_server.py")
    for action in made._actions:
        action.dest = next((_SPELT[flag] for flag in action.option_strings if flag in _SPELT), action.dest)
        if action.dest == "model_path":
            action.required = True
    made.set_defaults(**dict.fromkeys(_ONLY_IN_ONE), **_DEFAULTS)
    return made
