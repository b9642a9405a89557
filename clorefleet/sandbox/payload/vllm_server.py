"""`vllm serve` of a simulated node.

A stand-in: arguments, failures, log lines, health and metrics of vLLM for the server's simulated hardware;
the text is written by a small real model. Its log and its model card say that it is simulated.
"""

from __future__ import annotations

import json
import sys
import time

import node_truth
import openai_front
import tensor_engine
import vllm_flags
from tensor_engine import GIB, MIB, Fatal

DEFAULT_UTILISATION = 0.92
ACTIVATION_BYTES = 2 * GIB
GRAPH_BYTES = 1 * GIB
DEFAULT_SEQUENCES = 256
THINKING_MODELS = ("glm", "qwen3_5", "gpt_oss", "deepseek_v32")
KV_TYPES = ("auto", "bfloat16", "fp8", "fp8_e4m3", "fp8_e5m2", "fp8_inc", "fp8_ds_mla")


def say(line: str) -> None:
    print(f"(EngineCore) INFO {time.strftime('%m-%d %H:%M:%S')} {line}", file=sys.stderr, flush=True)


def main(words: list[str]) -> int:
    if words == ["--version"]:
        print(vllm_flags.VERSION)
        return 0
    if words[:1] != ["serve"]:
        print("usage: vllm serve [model_tag] [options]", file=sys.stderr)
        return 2
    args = vllm_flags.parse(words[1:])
    print(f"SIMULATED by clorefleet's sandbox: vLLM {vllm_flags.VERSION}", file=sys.stderr, flush=True)
    try:
        return start(args, node_truth.load())
    except Fatal as fatal:
        tensor_engine.fail(fatal, "(EngineCore) ERROR ")
        print(
            "RuntimeError: Engine core initialization failed. See root cause above.",
            file=sys.stderr,
            flush=True,
        )
        return 1


def start(args, truth: dict) -> int:
    name = args.model_tag or args.model
    if not name:
        raise Fatal("ValueError: no model was given")
    tensor_engine.check_driver(truth)
    weights = tensor_engine.find_checkpoint(name)
    facts = tensor_engine.facts_of(weights.model)
    load = tensor_engine.Load(
        facts, weights, truth, ranks=args.tensor_parallel_size, stages=args.pipeline_parallel_size
    )
    check_arguments(args, load)
    tensor_engine.check_shared_memory(truth, load.ranks)
    fitted = fit(args, load)
    drafts = draft_tokens(args, facts)
    engine = VllmEngine(args, name, load, fitted, drafts)
    before = [
        f"Starting to load model {name}...",
        f"Model loading took {load.weights_per_gpu / GIB:.4f} GiB memory and "
        f"{tensor_engine.load_seconds(load):.6f} seconds",
        f"Available KV cache memory: {fitted['kv_bytes'] / GIB:.2f} GiB",
        f"GPU KV cache size: {fitted['kv_tokens']:,} tokens",
        f"Maximum concurrency for {fitted['context']:,} tokens per request: "
        f"{fitted['kv_tokens'] / fitted['context']:.2f}x",
    ]
    after = [f"Starting vLLM API server 0 on http://{args.host}:{args.port}", "Application startup complete."]
    return tensor_engine.run(
        engine,
        load,
        name="VLLM::EngineCore",
        gpu_bytes=fitted["used_bytes"],
        before=before,
        after=after,
        bound=None,
        host=args.host,
        port=args.port,
    )


def check_arguments(args, load: tensor_engine.Load) -> None:
    facts, truth, ranks = load.facts, load.truth, load.ranks
    if facts["heads"] % ranks:
        raise Fatal(
            f"ValueError: Total number of attention heads ({facts['heads']}) must be divisible by tensor "
            f"parallel size ({ranks})."
        )
    if ranks * load.stages * args.data_parallel_size > len(truth["gpus"]):
        raise Fatal(
            f"ValueError: World size ({ranks * load.stages}) is larger than the number of available GPUs "
            f"({len(truth['gpus'])}) in this node."
        )
    if args.kv_cache_dtype not in (None, *KV_TYPES):
        raise Fatal(f"ValueError: Unknown kv_cache_dtype: {args.kv_cache_dtype}")
    is_block_fp8 = load.weights.checkpoint == "FP8" and not facts["model_type"] == "glm4_moe"
    if is_block_fp8 and facts["moe_intermediate"] and not args.enable_expert_parallel:
        shard = facts["moe_intermediate"] / ranks
        if shard % 128:
            raise Fatal(
                f"ValueError: The output_size of gate's and up's weight = {shard:g} is not divisible by "
                "weight quantization block_n = 128."
            )
    capability = tensor_engine.compute_capability(truth)
    if facts["sparse_attention"] and capability < (9, 0):
        raise Fatal(
            "ValueError: No valid attention backend found for cuda with AttentionSelectorConfig(use_mla="
            f"True, use_sparse=True): compute capability {capability[0]}.{capability[1]} not supported"
        )
    if load.weights.checkpoint == "NVFP4" and capability < (7, 5):
        raise Fatal("ValueError: The quantization method modelopt_fp4 is not supported for the current GPU.")


def draft_tokens(args, facts: dict) -> int:
    config = args.speculative_config or {}
    if not config:
        return 0
    if config.get("method") in ("mtp", "deepseek_mtp", "glm4_moe_mtp") and not facts["mtp_layers"]:
        raise Fatal("ValueError: the model has no MTP layer, so method 'mtp' cannot be used")
    if "num_speculative_tokens" not in config:
        raise Fatal("ValueError: num_speculative_tokens was provided neither in the config nor by the model")
    return int(config["num_speculative_tokens"])


def fit(args, load: tensor_engine.Load) -> dict:
    total, facts = load.gpu_total_bytes, load.facts
    utilisation = args.gpu_memory_utilization or DEFAULT_UTILISATION
    held = max(node_truth.used_mib(len(load.truth["gpus"]), of_others=True), default=0) * MIB
    free = total - held - tensor_engine.CUDA_CONTEXT_BYTES
    budget = int(total * utilisation)
    if free < budget:
        raise Fatal(
            f"ValueError: Free memory on device cuda:0 ({free / GIB:.2f}/{total / GIB:.2f} GiB) on startup "
            f"is less than desired GPU memory utilization ({utilisation}, {budget / GIB:.2f} GiB). Decrease "
            "GPU memory utilization or reduce GPU memory used by other processes."
        )
    weights = load.weights_per_gpu
    if args.cpu_offload_gb:
        weights = max(0, weights - int(args.cpu_offload_gb * GIB))
    if weights > free:
        raise tensor_engine.out_of_memory(load, weights, max(0, free))
    kv_bytes = budget - weights - ACTIVATION_BYTES - (0 if args.enforce_eager else GRAPH_BYTES)
    if load.ranks > 1:
        kv_bytes -= tensor_engine.NCCL_BYTES
    if kv_bytes <= 0:
        raise Fatal(
            "ValueError: No available memory for the cache blocks. Try increasing `gpu_memory_utilization` "
            "when initializing the engine."
        )
    per_token = load.kv_per_token(is_fp8=(args.kv_cache_dtype or "auto").startswith("fp8"))
    context = args.max_model_len or facts["max_context"]
    kv_tokens = kv_bytes // per_token
    if kv_tokens < context:
        raise Fatal(
            f"ValueError: To serve at least one request with the model's max seq len ({context}), "
            f"({context * per_token / GIB:.2f} GiB KV cache is needed, which is larger than the available KV "
            f"cache memory ({kv_bytes / GIB:.2f} GiB). Based on the available memory, the estimated maximum "
            f"model length is {kv_tokens // 16 * 16}. Try increasing `gpu_memory_utilization` or decreasing "
            "`max_model_len` when initializing the engine."
        )
    return {"kv_bytes": kv_bytes, "kv_tokens": kv_tokens, "context": context, "used_bytes": budget}


class VllmEngine(openai_front.Engine):
    title = "vLLM"

    def __init__(self, args, name: str, load: tensor_engine.Load, fitted: dict, drafts: int) -> None:
        facts = load.facts
        super().__init__(
            names=args.served_model_name or [name],
            context_tokens=fitted["context"],
            kv_tokens=fitted["kv_tokens"],
            slots=args.max_num_seqs or DEFAULT_SEQUENCES,
            speed=load.speed(draft_tokens=drafts),
            api_keys=[args.api_key] if args.api_key else [],
            thinks=facts["model_type"].startswith(THINKING_MODELS),
            splits_thinking=args.reasoning_parser is not None,
            parses_tools=args.enable_auto_tool_choice,
        )
        self.args, self.drafts = args, drafts

    def get(self, path: str) -> tuple[int, str, str] | None:
        if path in ("/health", "/ping"):
            return 200, "text/plain", ""
        if path == "/version":
            return 200, "application/json", json.dumps({"version": vllm_flags.VERSION, "simulated": True})
        if path == "/load":
            return 200, "application/json", json.dumps({"server_load": self.counters.running})
        if path == "/metrics":
            return 200, "text/plain; version=0.0.4; charset=utf-8", self.metrics()
        return None

    def check(self, request: dict, prompt_tokens: int) -> None:
        model = request.get("model")
        if model and model not in self.names:
            raise _refused(404, f"The model `{model}` does not exist.", "NotFoundError")
        wanted = request.get("max_completion_tokens") or request.get("max_tokens") or 0
        if prompt_tokens + wanted > self.context_tokens:
            message = (
                f"This model's maximum context length is {self.context_tokens} tokens. However, you "
                f"requested {prompt_tokens + wanted} tokens. Please reduce the length of the messages or "
                "completion."
            )
            raise _refused(400, message, "BadRequestError")
        if request.get("tools") and request.get("tool_choice", "auto") == "auto" and not self.parses_tools:
            message = '"auto" tool choice requires --enable-auto-tool-choice and --tool-call-parser to be set'
            raise _refused(400, message, "BadRequestError")

    def metrics(self) -> str:
        c = self.counters
        label = f'engine="0",model_name="{self.names[0]}"'
        with c.lock:
            gauges = {
                "num_requests_running": c.running,
                "num_requests_waiting": c.waiting,
                "kv_cache_usage_perc": round(c.context_tokens / max(1, self.kv_tokens), 4),
            }
            totals = {
                "prompt_tokens_total": c.prompt_tokens,
                "generation_tokens_total": c.generated_tokens,
                "num_preemptions_total": 0,
                "prefix_cache_hits_total": 0,
                "prefix_cache_queries_total": c.prompt_tokens,
            }
            if self.drafts:
                rounds = int(c.generated_tokens / self.speed.accept_length)
                totals["spec_decode_num_drafts_total"] = rounds
                totals["spec_decode_num_draft_tokens_total"] = rounds * self.drafts
                totals["spec_decode_num_accepted_tokens_total"] = c.generated_tokens - rounds
            lines = []
            for name, value in gauges.items():
                lines += [f"# TYPE vllm:{name} gauge", f"vllm:{name}{{{label}}} {value}"]
            for name, value in totals.items():
                lines += [f"# TYPE vllm:{name} counter", f"vllm:{name}{{{label}}} {value}"]
            for name, histogram in (
                ("time_to_first_token_seconds", c.first_token),
                ("inter_token_latency_seconds", c.between_tokens),
            ):
                lines += [f"# TYPE vllm:{name} histogram", *histogram.lines(f"vllm:{name}", label)]
        return "\n".join(lines) + "\n"


def _refused(status: int, message: str, kind: str) -> openai_front.Refused:
    error = {"message": message, "type": kind, "param": None, "code": status}
    return openai_front.Refused(status, {"error": error})


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
