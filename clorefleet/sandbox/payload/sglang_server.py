"""`python3 -m sglang.launch_server` and `sglang serve` of a simulated node, with KTransformers' variant.

A stand-in: arguments, failures, log lines, health and metrics of SGLang for the server's simulated hardware;
the text is written by a small real model. Its log and its model card say that it is simulated.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time

import node_truth
import openai_front
import sglang_flags
import tensor_engine
from tensor_engine import GIB, MIB, Fatal

_RESERVE_MIN_MIB = 10240
_KT_METHODS = {"FP8", "BF16", "RAWINT4", "AMXINT4", "AMXINT8", "LLAMAFILE", "MOE_INT4", "MOE_INT8"}
DECODE_LOG_S = 5.0
THINKING_PARSERS_NEEDED = ("glm", "qwen3_5", "gpt_oss", "deepseek_v32")


def say(line: str) -> None:
    print(f"[{time.strftime('%Y-%m-%d %H:%M:%S')}] {line}", file=sys.stderr, flush=True)


def main(words: list[str]) -> int:
    if words[:1] == ["--entry"]:  # the console script: `sglang serve ...`
        if words[1:2] != ["serve"]:
            print("usage: sglang serve --model-path PATH [options]", file=sys.stderr)
            return 2
        words = words[2:]
    truth = node_truth.load()
    has_kt = truth["software"] == "ktransformers"
    args = sglang_flags.parser(has_kt=has_kt).parse_args(words)
    args.version = sglang_flags.version(has_kt=has_kt)
    name = sglang_flags.release(has_kt=has_kt)
    print(f"SIMULATED by clorefleet's sandbox: {name} {args.version}", file=sys.stderr, flush=True)
    shown = {name: value for name, value in vars(args).items() if value and not name.endswith("api_key")}
    say(f"server_args=ServerArgs({', '.join(f'{name}={value!r}' for name, value in shown.items())})")
    try:
        return start(args, truth)
    except Fatal as fatal:
        tensor_engine.fail(fatal, f"[{time.strftime('%Y-%m-%d %H:%M:%S')} TP0] ")
        say("Received sigquit from a child process. It usually means the child failed.")
        return 1


def start(args, truth: dict) -> int:
    tensor_engine.check_driver(truth)
    weights = tensor_engine.find_checkpoint(args.model_path)
    facts = tensor_engine.facts_of(weights.model)
    load = tensor_engine.Load(facts, weights, truth, ranks=args.tp_size, stages=args.pp_size)
    check_arguments(args, load)
    tensor_engine.check_shared_memory(truth, args.tp_size)
    draft_tokens = speculation(args, facts)
    pool = fit(args, load, draft_tokens)
    engine = SglangEngine(args, load, pool, draft_tokens)
    try:
        bound = openai_front.bind(engine, args.host, args.port)
    except OSError as error:
        raise Fatal(f"OSError: [Errno 98] error while attempting to bind on address: {error}") from error
    shown = args.host
    per_token = load.kv_per_token(is_fp8=pool.is_fp8)
    before = [
        f"[TP0] Load weight begin. avail mem={load.gpu_total_bytes / GIB:.2f} GB",
        f"[TP0] Load weight end. type={facts['architecture'] or facts['model_type']}, "
        f"mem usage={pool.weights_bytes / GIB:.2f} GB.",
        f"[TP0] KV Cache is allocated. #tokens: {pool.tokens}, "
        f"KV size: {pool.tokens * per_token / GIB:.2f} GB",
    ]
    after = [
        f"[TP0] max_total_num_tokens={pool.tokens}, chunked_prefill_size={pool.chunk}, "
        f"max_running_requests={pool.requests}, context_len={engine.context_tokens}",
        f"INFO:     Uvicorn running on http://{shown}:{args.port} (Press CTRL+C to quit)",
        "The server is fired up and ready to roll!",
    ]
    return tensor_engine.run(
        engine,
        load,
        name="sglang::scheduler",
        gpu_bytes=pool.used_bytes,
        before=before,
        after=after,
        bound=bound,
        host=args.host,
        port=args.port,
    )


def check_arguments(args, load: tensor_engine.Load) -> None:
    facts, truth = load.facts, load.truth
    if args.tp_size * args.pp_size > len(truth["gpus"]):
        raise Fatal(
            f"AssertionError: tp_size {args.tp_size} x pp_size {args.pp_size} needs more GPUs than the "
            f"{len(truth['gpus'])} visible: torch.AcceleratorError: CUDA error: invalid device ordinal"
        )
    if facts["heads"] % args.tp_size:
        raise Fatal(f"AssertionError: {facts['heads']} is not divisible by {args.tp_size}")
    is_block_fp8 = load.weights.checkpoint == "FP8" and not facts["model_type"] == "glm4_moe"
    if is_block_fp8 and facts["moe_intermediate"] and args.ep_size == 1:
        shard = facts["moe_intermediate"] / args.tp_size
        if shard % 128:
            raise Fatal(
                f"ValueError: The output_size of gate's and up's weight = {shard:g} is not divisible by "
                "weight quantization block_n = 128."
            )
    if facts["experts"] and facts["experts"] % args.ep_size:
        raise Fatal(f"AssertionError: {facts['experts']} experts are not divisible by ep_size {args.ep_size}")
    capability = tensor_engine.compute_capability(truth)
    if facts["sparse_attention"] and capability < (9, 0):
        raise Fatal("ValueError: triton_sparse_mla requires SM90 (Hopper) or newer")
    if load.weights.checkpoint == "NVFP4" and capability < (10, 0):
        raise Fatal("ValueError: Current platform does not support NVFP4 quantization: needs SM100 or newer")
    if args.kt_weight_path and args.kt_method and args.kt_method not in _KT_METHODS:
        raise Fatal(f"NotImplementedError: Unsupported KT method: {args.kt_method}")


def speculation(args, facts: dict) -> int:
    """Draft steps; 0 = none."""
    numbers = (args.speculative_num_steps, args.speculative_eagle_topk, args.speculative_num_draft_tokens)
    if args.speculative_algorithm is None:
        return 0
    if args.speculative_algorithm not in sglang_flags.METHODS:
        raise Fatal(f"ValueError: Unknown speculative algorithm name: {args.speculative_algorithm}")
    if args.speculative_num_steps is None:
        if any(number is not None for number in numbers):
            raise Fatal(
                "AssertionError: speculative_eagle_topk and speculative_num_draft_tokens need "
                "speculative_num_steps"
            )
        return 3 if facts["mtp_layers"] else 0
    if not facts["mtp_layers"] and not args.speculative_draft_model_path:
        raise Fatal("ValueError: The draft model is not provided and the model has no MTP layer.")
    return int(args.speculative_num_steps)


class Pool:
    """How the VRAM of each GPU is used."""

    weights_bytes = used_bytes = tokens = chunk = requests = 0
    is_fp8 = False
    share_in_ram = 0.0


def _defaults(visible_gib: float, tp: int) -> tuple[int, int]:
    """Chunked prefill size and largest batch of the decode graphs by visible memory."""
    if visible_gib < 20:
        return 2048, 8
    if visible_gib < 35:
        return 4096, 160 if tp >= 4 else 48
    if visible_gib < 60:
        return 4096, 160 if tp >= 4 else 32
    if visible_gib < 160:
        return 8192, 512 if tp >= 4 else 256
    return 16384, 512


def fit(args, load: tensor_engine.Load, draft_tokens: int) -> Pool:
    facts, total = load.facts, load.gpu_total_bytes
    pool = Pool()
    chunk, batch = _defaults(total / GIB, args.tp_size)
    pool.chunk = args.chunked_prefill_size or chunk
    batch = args.cuda_graph_max_bs_decode or min(batch, args.max_running_requests or batch)
    graphs_mib = 0 if args.disable_cuda_graph else 2 * batch + (1536 if facts["mla"] else 512)
    reserved_mib = 512 + 1.5 * max(pool.chunk, 2048) + 1024 * args.tp_size * args.pp_size / 8 + graphs_mib
    if total > 60 * GIB:
        reserved_mib = max(reserved_mib, _RESERVE_MIN_MIB)
    fraction = args.mem_fraction_static or max(0.1, 1 - reserved_mib * MIB / total)
    weights = load.weights_per_gpu
    if args.kt_weight_path:
        weights, pool.share_in_ram = _with_kt(args, load)
    held = node_truth.used_mib(len(load.truth["gpus"]), of_others=True)
    free = total - max(held, default=0) * MIB - tensor_engine.CUDA_CONTEXT_BYTES
    if args.tp_size > 1:
        free -= tensor_engine.NCCL_BYTES
        if max(held, default=0) != min(held, default=0):
            raise Fatal(
                "ValueError: The memory capacity is unbalanced. Some GPUs may be occupied by other processes."
            )
    if weights > free:
        raise tensor_engine.out_of_memory(load, weights, max(0, free))
    pool.weights_bytes = weights
    pool.is_fp8 = args.kv_cache_dtype.startswith("fp8") or (
        args.kv_cache_dtype == "auto"
        and facts["sparse_attention"]
        and tensor_engine.compute_capability(load.truth) >= (10, 0)
    )
    room = int(total * fraction) - (total - free) - weights
    if room <= 0:
        raise Fatal("RuntimeError: Not enough memory. Please try to increase --mem-fraction-static.")
    per_token = load.kv_per_token(is_fp8=pool.is_fp8)
    if draft_tokens:
        per_token = per_token * (facts["layers"] + 1) // facts["layers"]
    pool.tokens = min(room // per_token, args.max_total_tokens or room)
    left = free - weights - pool.tokens * per_token
    if left < (graphs_mib + pool.chunk // 4) * MIB:
        raise Fatal(
            "Capture cuda graph failed: CUDA out of memory.",
            "Possible solutions:\n1. set --mem-fraction-static to a smaller value (e.g., 0.8 or 0.7)\n"
            "2. set --cuda-graph-max-bs-decode to a smaller value (e.g., 16)\n3. disable torch compile\n"
            "Exception: Capture cuda graph failed: CUDA out of memory.",
        )
    pool.used_bytes = total - left + graphs_mib * MIB
    context = args.context_length or facts["max_context"]
    pool.requests = max(
        1, min(args.max_running_requests or 1 << 30, max(1, pool.tokens // max(1, context // 64)), 2048)
    )
    return pool


def _with_kt(args, load: tensor_engine.Load) -> tuple[int, float]:
    """VRAM per GPU and the share of experts in RAM, when KTransformers keeps experts there.

    The weights are in RAM *whole*, whatever part of them is copied to the GPUs.
    """
    facts = load.facts
    if load.weights.true_bytes > load.truth["ram_bytes"] * tensor_engine.RAM_SHARE:
        os.kill(os.getpid(), signal.SIGKILL)  # what the kernel's out-of-memory killer does
    experts_on_gpu = min(args.kt_num_gpu_experts or 0, facts["experts"])
    one_expert = (facts["one_expert"] or 3 * facts["hidden"] * facts["moe_intermediate"]) * load.weight_bytes
    moe_layers = facts["layers"] - facts["first_k_dense"]
    in_ram = one_expert * moe_layers * (facts["experts"] - experts_on_gpu)
    share = (facts["experts"] - experts_on_gpu) / max(1, facts["experts"])
    return int(load.weights_per_gpu - in_ram / load.ranks / load.stages), share


class SglangEngine(openai_front.Engine):
    title = "SGLang"

    def __init__(self, args, load: tensor_engine.Load, pool: Pool, draft_tokens: int) -> None:
        facts = load.facts
        super().__init__(
            names=[args.served_model_name or args.model_path],
            context_tokens=args.context_length or facts["max_context"],
            kv_tokens=pool.tokens,
            slots=pool.requests,
            speed=load.speed(draft_tokens=draft_tokens, share_in_ram=pool.share_in_ram),
            api_keys=[args.api_key] if args.api_key else [],
            thinks=facts["model_type"].startswith(THINKING_PARSERS_NEEDED),
            splits_thinking=args.reasoning_parser is not None,
            parses_tools=args.tool_call_parser is not None,
        )
        self.args, self.pool, self.draft_tokens = args, pool, draft_tokens
        self._last_log_s = 0.0

    def get(self, path: str) -> tuple[int, str, str] | None:
        if path in ("/health", "/health_generate", "/ready", "/ping"):
            if not self.is_ready.is_set():
                return 503, "text/plain", ""
            if path == "/health_generate" and not self._generates():
                return 503, "text/plain", ""
            return 200, "text/plain", ""
        if not self.is_ready.is_set():
            return 503, "text/plain", ""
        if path in ("/server_info", "/get_server_info"):
            info = {k: v for k, v in vars(self.args).items() if k not in ("api_key", "admin_api_key")}
            info |= {
                "version": self.args.version,
                "max_total_num_tokens": self.kv_tokens,
                "simulated": True,
            }
            state = {"last_gen_throughput": self.counters.last_speed}
            if self.draft_tokens:
                state["avg_spec_accept_length"] = self.speed.accept_length
            return 200, "application/json", json.dumps({**info, "internal_states": [state]})
        if path in ("/model_info", "/get_model_info"):
            info = {"model_path": self.args.model_path, "is_generation": True, "simulated": True}
            return 200, "application/json", json.dumps(info)
        if path == "/metrics" and self.args.enable_metrics:
            return 200, "text/plain; version=0.0.4; charset=utf-8", self.metrics()
        return None

    def _generates(self) -> bool:
        """Whether one token comes out of the small model."""
        if self.writer is None or "dead_gpu" in self.faults:
            return False
        asked = {"messages": [{"role": "user", "content": "."}]}
        return any(True for _ in self.writer.write(asked, tokens_max=1))

    def check(self, request: dict, prompt_tokens: int) -> None:
        wanted = request.get("max_completion_tokens") or request.get("max_tokens") or 0
        if prompt_tokens + wanted > self.context_tokens or prompt_tokens > self.kv_tokens:
            message = (
                f"Requested token count exceeds the model's maximum context length of {self.context_tokens} "
                f"tokens. You requested a total of {prompt_tokens + wanted} tokens."
            )
            body = {
                "object": "error",
                "message": message,
                "type": "BadRequestError",
                "param": None,
                "code": 400,
            }
            raise openai_front.Refused(400, body)
        now_s = time.monotonic()
        if now_s - self._last_log_s > DECODE_LOG_S:
            self._last_log_s = now_s
            self._log_decode()

    def _log_decode(self) -> None:
        c = self.counters
        accept = (
            f"accept len: {self.speed.accept_length:.2f}, accept rate: 0.58, " if self.draft_tokens else ""
        )
        say(
            f"Decode batch, #running-req: {c.running}, #token: {c.context_tokens}, token usage: "
            f"{c.context_tokens / max(1, self.kv_tokens):.2f}, {accept}cuda graph: True, "
            f"gen throughput (token/s): {c.last_speed:.2f}, #queue-req: {c.waiting}, "
        )

    def metrics(self) -> str:
        c = self.counters
        label = f'model_name="{self.names[0]}"'
        with c.lock:
            gauges = {
                "num_running_reqs": c.running,
                "num_queue_reqs": c.waiting,
                "num_used_tokens": c.context_tokens,
                "max_total_num_tokens": self.kv_tokens,
                "token_usage": round(c.context_tokens / max(1, self.kv_tokens), 4),
                "gen_throughput": round(c.last_speed if c.running else 0.0, 3),
                "cache_hit_rate": 0.0,
                "num_retracted_reqs": 0,
            }
            if self.draft_tokens:
                gauges["spec_accept_length"] = self.speed.accept_length
                gauges["spec_accept_rate"] = round((self.speed.accept_length - 1) / self.draft_tokens, 3)
            totals = {
                "prompt_tokens": c.prompt_tokens,
                "generation_tokens": c.generated_tokens,
                "num_requests": c.requests,
            }
            lines = []
            for name, value in gauges.items():
                lines += [f"# TYPE sglang:{name} gauge", f"sglang:{name}{{{label}}} {value}"]
            for name, value in totals.items():
                lines += [f"# TYPE sglang:{name}_total counter", f"sglang:{name}_total{{{label}}} {value}"]
            for name, histogram in (
                ("time_to_first_token_seconds", c.first_token),
                ("inter_token_latency_seconds", c.between_tokens),
            ):
                lines += [f"# TYPE sglang:{name} histogram", *histogram.lines(f"sglang:{name}", label)]
        return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
