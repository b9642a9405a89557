"""The command line of `sglang.launch_server` that the stand-in knows (release 0.5.23).

argparse's own rules hold as in the real program: abbreviations of one flag are taken, ambiguous and unknown
ones end it with status 2, and so do values outside a list of choices.
"""

from __future__ import annotations

import argparse

VERSION = "0.5.23"
TOOL_PARSERS = (
    "auto deepseekv3 deepseekv31 deepseekv32 deepseekv4 deepseekv41 glm glm45 glm47 gpt-oss hermes kimi_k2 "
    "lfm2 llama3 mimo minimax-m2 mistral pythonic qwen qwen25 qwen3_coder step3 trinity interns1"
).split()
REASONING_PARSERS = (
    "auto deepseek-r1 deepseek-v3 deepseek-v4 glm45 gpt-oss kimi kimi_k2 qwen3 qwen3-thinking minimax "
    "minimax-append-think step3 interns1"
).split()
KV_TYPES = ["auto", "fp8_e5m2", "fp8_e4m3", "bf16", "bfloat16", "fp4_e2m1"]
ATTENTION = (
    "triton torch_native flex_attention flashinfer fa3 fa4 flashmla cutlass_mla trtllm_mla trtllm_mha dsa "
    "nsa aiter dual_chunk_flash_attn tilelang"
).split()
DSA_BACKENDS = ["flashmla_sparse", "flashmla_kv", "flashmla_auto", "fa3", "tilelang", "aiter", "trtllm"]

_VALUED: dict[str, type] = {
    "--served-model-name": str,
    "--tokenizer-path": str,
    "--revision": str,
    "--load-format": str,
    "--host": str,
    "--port": int,
    "--api-key": str,
    "--admin-api-key": str,
    "--mem-fraction-static": float,
    "--max-running-requests": int,
    "--max-queued-requests": int,
    "--max-total-tokens": int,
    "--chunked-prefill-size": int,
    "--max-prefill-tokens": int,
    "--context-length": int,
    "--page-size": int,
    "--schedule-policy": str,
    "--schedule-conservativeness": float,
    "--cuda-graph-max-bs-decode": int,
    "--cuda-graph-max-bs-prefill": int,
    "--cuda-graph-backend-decode": str,
    "--attn-dp-size": int,
    "--dcp-size": int,
    "--dist-init-addr": str,
    "--nnodes": int,
    "--node-rank": int,
    "--watchdog-timeout": float,
    "--random-seed": int,
    "--log-level": str,
    "--log-level-http": str,
    "--chat-template": str,
    "--moe-runner-backend": str,
    "--moe-a2a-backend": str,
    "--fp8-gemm-backend": str,
    "--quantization": str,
    "--dtype": str,
    "--device": str,
    "--download-dir": str,
    "--model-loader-extra-config": str,
    "--json-model-override-args": str,
    "--cpu-offload-gb": int,
    "--stream-interval": int,
    "--speculative-draft-model-path": str,
    "--speculative-num-steps": int,
    "--speculative-eagle-topk": int,
    "--speculative-num-draft-tokens": int,
    "--kt-weight-path": str,
    "--kt-method": str,
    "--kt-cpuinfer": int,
    "--kt-threadpool-count": int,
    "--kt-num-gpu-experts": int,
    "--kt-max-deferred-experts-per-token": int,
}
_SWITCHES = (
    "--trust-remote-code --enable-metrics --enable-mixed-chunk --enable-p2p-check --enable-cache-report "
    "--disable-shared-experts-fusion --disable-custom-all-reduce --disable-radix-cache --disable-cuda-graph "
    "--disable-overlap-schedule --enable-dp-attention --enable-torch-compile --skip-server-warmup "
    "--log-requests --allow-auto-truncate --enable-nccl-nvls --enable-symm-mem --enable-memory-saver "
    "--skip-tokenizer-init --enable-flashinfer-allreduce-fusion"
).split()
_KT_ONLY_VALUED = {"--kt-gpu-prefill-token-threshold": int, "--kt-expert-placement-strategy": str}
_KT_ONLY_SWITCHES = ("--kt-enable-dynamic-expert-update",)


def parser(*, has_kt: bool) -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(prog="launch_server.py")
    add = made.add_argument
    add("--model-path", "--model", required=True)
    add("--tp-size", "--tensor-parallel-size", type=int, default=1)
    add("--pp-size", "--pipeline-parallel-size", type=int, default=1)
    add("--dp-size", "--data-parallel-size", type=int, default=1)
    add("--ep-size", "--expert-parallel-size", type=int, default=1)
    add("--tool-call-parser", choices=TOOL_PARSERS)
    add("--reasoning-parser", choices=REASONING_PARSERS)
    add("--kv-cache-dtype", choices=KV_TYPES, default="auto")
    add("--attention-backend", choices=ATTENTION)
    add("--dsa-prefill-backend", choices=DSA_BACKENDS)
    add("--dsa-decode-backend", choices=DSA_BACKENDS)
    add("--speculative-algorithm", choices=["EAGLE", "EAGLE3", "NEXTN", "STANDALONE", "NGRAM"])
    for flag, kind in _VALUED.items():
        add(flag, type=kind)
    for flag in _SWITCHES:
        add(flag, action="store_true")
    if has_kt:
        for flag, kind in _KT_ONLY_VALUED.items():
            add(flag, type=kind)
        for flag in _KT_ONLY_SWITCHES:
            add(flag, action="store_true")
    made.set_defaults(host="127.0.0.1", port=30000)
    return made
