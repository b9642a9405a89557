"""`llama-server` of a simulated node.

A real GGUF file is served by real llama.cpp, on the CPU of the user's machine. A scaled-down one gets a
stand-in: the same arguments, the memory of the simulated server, the failures that would follow from it, and
text by a small real model at the speed that the simulated hardware would have. Its log says SIMULATED.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from pathlib import Path

import llama_flags
import llama_memory
import node_truth
import openai_front
import scaled_weights
import serving_speed
import text_writer

BUILD = llama_flags.VERSION
WARM_UP_S = 12.0
_RESIDENT = ("none", "mlock", "mmap+mlock")
"""Load modes that need all of the CPU's part in RAM."""
REAL_CONTEXT_MAX = 8192
_LOADING = json.dumps({"error": {"message": "Loading model", "type": "unavailable_error", "code": 503}})
GIB = 1 << 30


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def main(words: list[str]) -> int:
    args = llama_flags.parse(words)
    if "help" in args:
        print("usage: llama-server [options]  (a stand-in of clorefleet's sandbox)")
        return 0
    if "version" in args:
        say(f"version: {BUILD[1:]} (simulated)\nbuilt with clorefleet sandbox for x86_64-linux-gnu")
        return 0
    model = Path(args.get("model", "models/7B/ggml-model-f16.gguf"))
    announce_devices(node_truth.load())
    if not model.is_file():
        say(f"gguf_init_from_file: failed to open GGUF file '{model}'")
        return fail_to_load(model)
    if scaled_weights.is_real_gguf(model):
        return serve_real(model, args)
    if scaled_weights.header(model) is None:
        say(f"gguf_init_from_file_impl: invalid magic characters: '{_magic(model)}', expected 'GGUF'")
        return fail_to_load(model)
    return serve_simulated(model, args)


def announce_devices(truth: dict) -> None:
    gpus = truth["gpus"]
    if not gpus:
        say("ggml_cuda_init: failed to initialize CUDA: no CUDA-capable device is detected")
    elif llama_memory.version(truth["cuda_version"]) < llama_memory.MIN_CUDA:
        say(
            "ggml_cuda_init: failed to initialize CUDA: "
            "CUDA driver version is insufficient for CUDA runtime version"
        )
    else:
        say(f"ggml_cuda_init: found {len(gpus)} CUDA devices:")
        for index, gpu in enumerate(gpus):
            say(f"  Device {index}: {gpu['name']}, compute capability {gpu['compute_capability']}, VMM: yes")
    say(f"build: {BUILD[1:]} (clorefleet sandbox)")


def api_keys(args: dict) -> list[str]:
    """From the argument and the file. Ends the program when the file cannot be read."""
    keys = args["api_key"].split(",") if "api_key" in args else []
    if "api_key_file" in args:
        try:
            keys += Path(args["api_key_file"]).read_text("utf-8").split()
        except OSError:
            say(f"error: failed to open file '{args['api_key_file']}'")
            sys.exit(1)
    return keys


def _magic(model: Path) -> str:
    with model.open("rb") as file:
        return file.read(4).decode("ascii", "replace")


def fail_to_load(model: Path) -> int:
    say("llama_model_load_from_file_impl: failed to load model")
    say(f"common_init_from_params: failed to load model '{model}'")
    say(f"srv    load_model: failed to load model, '{model}'")
    say("srv    operator(): operator(): cleaning up before exit...")
    say("main: exiting due to model loading error")
    return 1


# -- a real model


def serve_real(model: Path, args: dict) -> int:
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = str(model)
    # The sandbox never leaves loopback, whatever address the command line names.
    host = args.get("host", "127.0.0.1")
    params.hostnames = ["127.0.0.1" if host in ("0.0.0.0", "::", "localhost") else host]
    params.port = args.get("port", 8080)
    params.n_parallel = args.get("parallel", 1)
    params.n_ctx = min(args.get("ctx_size", 0) or REAL_CONTEXT_MAX, REAL_CONTEXT_MAX * params.n_parallel)
    params.cpuparams.n_threads = text_writer.threads(args.get("threads", 2), os.cpu_count() or 1)
    params.warmup = False
    params.use_jinja = "no_jinja" not in args
    params.endpoint_metrics = "metrics" in args
    params.endpoint_slots = "no_slots" not in args
    params.endpoint_props = "props" in args
    if "alias" in args:
        params.model_alias = {args["alias"]}
    params.api_keys = api_keys(args)
    try:
        server = xllamacpp.Server(params)
    except Exception as error:
        say(str(error)[:500])
        return fail_to_load(model)
    truth = node_truth.load()
    if truth["gpus"] and args.get("gpu_layers") not in (None, "0"):
        size_mib = model.stat().st_size // node_truth.MIB + llama_memory.CUDA_CONTEXT_BYTES // node_truth.MIB
        node_truth.claim([size_mib] + [0] * (len(truth["gpus"]) - 1), "/app/llama-server")
    say(f"main: server is listening on {server.listening_address} - starting the main loop")
    say("srv  update_slots: all slots are idle")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    threading.Event().wait()
    return 0


# -- a simulated one


def serve_simulated(model: Path, args: dict) -> int:
    truth = node_truth.load()
    try:
        weights = scaled_weights.load(scaled_weights.parts_of(model))
    except scaled_weights.BadWeights as error:
        say(f"llama_model_load: error loading model: {error}")
        return fail_to_load(model)
    facts = json.loads(Path(__file__).with_name("models.json").read_text("utf-8"))[weights.model]
    say(
        f"main: SIMULATED: {weights.model} {weights.checkpoint}, {weights.true_bytes / GIB:.1f} GiB, "
        "on simulated hardware"
    )
    try:
        placement = llama_memory.fit(facts, weights.true_bytes, args, truth)
    except llama_memory.OutOfVram as shortage:
        return fail_out_of_vram(shortage, model)
    ram_usable = truth["ram_bytes"] * llama_memory.RAM_USABLE_SHARE
    if placement.ram_bytes > ram_usable and args.get("load_mode") in _RESIDENT:
        os.kill(os.getpid(), signal.SIGKILL)  # what the kernel's out-of-memory killer does
    engine = LlamaEngine(facts, weights, args, truth, placement)
    try:
        server = openai_front.bind(engine, args.get("host", "127.0.0.1"), args.get("port", 8080))
    except OSError:
        say(
            f"start: couldn't bind HTTP server socket, hostname: {args.get('host')}, "
            f"port: {args.get('port', 8080)}"
        )
        return 1
    node_truth.claim([size // node_truth.MIB for size in placement.gpu_bytes], "/app/llama-server")
    openai_front.run_until_stopped(server)
    say(
        f"load_tensors: offloaded {facts['layers']} layers, "
        f"CPU model buffer size = {placement.ram_bytes / (1 << 20):.2f} MiB"
    )
    for index, size in enumerate(placement.gpu_bytes):
        say(f"load_tensors: CUDA{index} model buffer size = {size / (1 << 20):.2f} MiB")
    load_s = weights.true_bytes / (truth["disk_mb_s"] * 1e6) + WARM_UP_S
    engine.writer = text_writer.Writer()
    time.sleep(load_s * truth["load_scale"])
    engine.is_ready.set()
    say(
        f"main: server is listening on http://{args.get('host', '127.0.0.1')}:{args.get('port', 8080)} "
        "- starting the main loop"
    )
    say("srv  update_slots: all slots are idle")
    threading.Event().wait()
    return 0


def fail_out_of_vram(shortage: llama_memory.OutOfVram, model: Path) -> int:
    device, mib = shortage.device, shortage.size / (1 << 20)
    say(
        f"ggml_backend_cuda_buffer_type_alloc_buffer: allocating {mib:.2f} MiB on device {device}: "
        "cudaMalloc failed: out of memory"
    )
    if shortage.what == "weights":
        say(f"alloc_tensor_range: failed to allocate CUDA{device} buffer of size {shortage.size}")
        say(f"llama_model_load: error loading model: unable to allocate CUDA{device} buffer")
        return fail_to_load(model)
    name = "kv cache" if shortage.what == "kv" else "compute buffers"
    say(
        f"llama_init_from_model: failed to initialize the context: failed to allocate {name}: "
        f"unable to allocate CUDA{device} buffer"
    )
    say(f"common_init_from_params: failed to create context with model '{model}'")
    say("main: exiting due to model loading error")
    return 1


class LlamaEngine(openai_front.Engine):
    title = "llama.cpp"

    def __init__(
        self,
        facts: dict,
        weights: scaled_weights.Weights,
        args: dict,
        truth: dict,
        placement: llama_memory.Placement,
    ) -> None:
        self.args = args
        parallel = args.get("parallel", 1)
        context = args.get("ctx_size") or facts["max_context"]
        ram_bandwidth = truth["ram_bandwidth_gb_s"] * 1e9
        if placement.ram_bytes > truth["ram_bytes"] * llama_memory.RAM_USABLE_SHARE:
            ram_bandwidth = (
                truth["disk_mb_s"] * 1e6
            )  # mapped weights that do not fit are read again and again
        gpus = truth["gpus"] if placement.gpus_used else []
        super().__init__(
            names=[args.get("alias", Path(args["model"]).name)],
            context_tokens=context // parallel if "kv_unified" not in args else context,
            kv_tokens=context,
            slots=parallel,
            speed=serving_speed.Speed(
                weight_bytes=weights.true_bytes / max(1, facts["total_weights"]),
                active_weights=facts["active_weights"],
                layers=facts["layers"],
                moe_layers=facts["layers"] - facts["first_k_dense"] if facts["experts"] else 0,
                experts=facts["experts"],
                experts_per_token=facts["experts_per_token"],
                one_expert=llama_memory.expert_weights(facts) if facts["experts"] else 0,
                share_in_ram=placement.expert_share_in_ram,
                gpus_in_parallel=1,  # layers are split over GPUs, and work one after the other
                gpu_bandwidth=min((gpu["memory_bandwidth_gb_s"] * 1e9 for gpu in gpus), default=0.0),
                ram_bandwidth=ram_bandwidth,
                layer_s=serving_speed.LAYER_S_ONE_GPU if gpus else serving_speed.LAYER_S_CPU,
                draft_tokens=args.get("spec_draft_n_max", 2) if args.get("spec_type") == "draft-mtp" else 0,
            ),
            api_keys=api_keys(args),
            thinks=facts["model_type"].startswith(("glm", "qwen3_5", "gpt_oss", "deepseek_v32")),
            splits_thinking=args.get("reasoning_format") != "none",
            parses_tools="no_jinja" not in args,
        )
        self.facts = facts

    def get(self, path: str) -> tuple[int, str, str] | None:
        if not self.is_ready.is_set():
            return 503, "application/json; charset=utf-8", _LOADING
        if path in ("/health", "/v1/health"):
            return 200, "application/json; charset=utf-8", '{"status":"ok"}'
        if path == "/metrics":
            if "metrics" not in self.args:
                return _unsupported(
                    "This server does not support metrics endpoint. Start it with `--metrics`"
                )
            return 200, "text/plain; version=0.0.4", self.metrics()
        if path == "/slots":
            if "no_slots" in self.args:
                return _unsupported("This server does not support slots endpoint. Start it with `--slots`")
            busy = self.counters.running
            slots = [
                {"id": number, "n_ctx": self.context_tokens, "is_processing": number < busy}
                for number in range(self.slot_count)
            ]
            return 200, "application/json; charset=utf-8", json.dumps(slots)
        if path == "/props":
            props = {
                "default_generation_settings": {"n_ctx": self.context_tokens},
                "total_slots": self.slot_count,
                "model_path": self.args["model"],
                "build_info": f"{BUILD}-sandbox",
                "simulated": True,
            }
            return 200, "application/json; charset=utf-8", json.dumps(props)
        return None

    def check(self, request: dict, prompt_tokens: int) -> None:
        if prompt_tokens > self.context_tokens:
            message = (
                f"request ({prompt_tokens} tokens) exceeds the available context size "
                f"({self.context_tokens} tokens), try increasing it"
            )
            error = {"code": 400, "message": message, "type": "exceed_context_size_error"}
            raise openai_front.Refused(400, {"error": error})

    def metrics(self) -> str:
        c = self.counters
        with c.lock:
            counters = {
                "prompt_tokens_total": c.prompt_tokens,
                "prompt_seconds_total": round(c.prompt_s, 3),
                "tokens_predicted_total": c.generated_tokens,
                "tokens_predicted_seconds_total": round(c.generation_s, 3),
                "n_decode_total": c.generated_tokens,
            }
            gauges = {
                "prompt_tokens_seconds": round(c.prompt_tokens / c.prompt_s, 3) if c.prompt_s else 0,
                "predicted_tokens_seconds": round(c.generated_tokens / c.generation_s, 3)
                if c.generation_s
                else 0,
                "requests_processing": c.running,
                "requests_deferred": c.waiting,
                "n_busy_slots_per_decode": max(1, c.running),
            }
        lines = []
        for kind, figures in (("counter", counters), ("gauge", gauges)):
            for name, value in figures.items():
                lines += [f"# TYPE llamacpp:{name} {kind}", f"llamacpp:{name} {value}"]
        return "\n".join(lines) + "\n"


def _unsupported(message: str) -> tuple[int, str, str]:
    error = {"error": {"code": 501, "message": message, "type": "not_supported_error"}}
    return 501, "application/json; charset=utf-8", json.dumps(error)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
