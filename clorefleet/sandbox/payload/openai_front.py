"""The OpenAI-compatible HTTP server in front of a simulated engine.

What all engines share is here: chat and completions, plain and streamed, paced to the speed of the simulated
hardware; the queue; counters. What differs (health, metrics, model card, refusals) is an `Engine`.
"""

from __future__ import annotations

import json
import signal
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import node_truth
import serving_speed
import text_writer

BODY_BYTES_MAX = 32 << 20
THINKING_TOKENS = 12
"""A simulated reasoning model thinks for this many tokens of the small model's text."""
DEFAULT_TOKENS_MAX = 512
FAULTS = frozenset({"dead_gpu", "wrong_answers", "drops_tool_calls", "empty_thinking"})
"""Of the host's `lies`: how an engine that calls itself healthy may fail all the same (F16)."""
NONSENSE = " zq"
_HISTOGRAM_S = (0.01, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)


class Refused(Exception):
    """A request that the engine answers with an error; `body` is in the engine's own form."""

    def __init__(self, status: int, body: dict) -> None:
        super().__init__(status)
        self.status, self.body = status, body


class Histogram:
    def __init__(self) -> None:
        self.counts = [0] * (len(_HISTOGRAM_S) + 1)
        self.sum = 0.0

    def add(self, value: float) -> None:
        self.sum += value
        self.counts[next((i for i, edge in enumerate(_HISTOGRAM_S) if value <= edge), -1)] += 1

    def lines(self, name: str, labels: str) -> Iterator[str]:
        total = 0
        inner = labels + "," if labels else ""
        for edge, count in zip((*_HISTOGRAM_S, "+Inf"), self.counts, strict=True):
            total += count
            yield f'{name}_bucket{{{inner}le="{edge}"}} {total}'
        outer = f"{{{labels}}}" if labels else ""
        yield f"{name}_sum{outer} {self.sum:.6f}"
        yield f"{name}_count{outer} {total}"


class Counters:
    """Guarded by `lock`."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.running = self.waiting = 0
        self.requests = self.prompt_tokens = self.generated_tokens = 0
        self.prompt_s = self.generation_s = 0.0
        self.context_tokens = 0
        """Held by running requests."""
        self.first_token = Histogram()
        self.between_tokens = Histogram()
        self.last_speed = 0.0


class Engine:
    """What a simulated engine says about itself. Subclasses fill in what differs."""

    title = ""
    """`SGLang`, `vLLM`, `llama.cpp`."""

    def __init__(
        self,
        *,
        names: list[str],
        context_tokens: int,
        kv_tokens: int,
        slots: int,
        speed: serving_speed.Speed,
        api_keys: list[str],
        thinks: bool,
        splits_thinking: bool,
        parses_tools: bool,
    ) -> None:
        self.names, self.context_tokens, self.kv_tokens = names, context_tokens, kv_tokens
        self.speed, self.api_keys = speed, api_keys
        self.thinks, self.splits_thinking, self.parses_tools = thinks, splits_thinking, parses_tools
        self.slots = threading.BoundedSemaphore(slots)
        self.slot_count = slots
        self.counters = Counters()
        self.is_ready = threading.Event()
        self.writer: text_writer.Writer | None = None
        self.started_s = int(time.time())
        self.faults = frozenset(node_truth.load().get("lies", ())) & FAULTS
        if "drops_tool_calls" in self.faults:
            self.parses_tools = False

    def get(self, path: str) -> tuple[int, str, str] | None:
        """Status, content type and body of a GET route; None = unknown."""
        raise NotImplementedError

    def check(self, request: dict, prompt_tokens: int) -> None:
        """Raise `Refused` as the engine would."""

    def log_request(self, line: str) -> None:
        print(line, flush=True)

    def card(self) -> dict:
        return {
            "object": "list",
            "data": [
                {
                    "id": name,
                    "object": "model",
                    "created": self.started_s,
                    "owned_by": "clorefleet-sandbox (simulated)",
                    "simulated": True,
                    "simulated_tokens_per_s": round(self.speed.hardware_tokens_per_s(1), 2),
                    "engine": self.title,
                    "max_model_len": self.context_tokens,
                }
                for name in self.names
            ],
        }

    # -- answering

    @contextmanager
    def turn(self, prompt_tokens: int) -> Iterator[None]:
        """Wait for a slot and hold it."""
        counters = self.counters
        with counters.lock:
            counters.waiting += 1
        self.slots.acquire()
        with counters.lock:
            counters.waiting -= 1
            counters.running += 1
            counters.requests += 1
            counters.context_tokens += prompt_tokens
        try:
            yield
        finally:
            with counters.lock:
                counters.running -= 1
                counters.context_tokens -= prompt_tokens
            self.slots.release()

    def paced(self, request: dict, prompt_tokens: int) -> Iterator[str | dict]:
        """The writer's pieces, not faster than the simulated hardware would bring them."""
        if self.writer is None:
            raise Refused(503, {"error": "not loaded"})
        if "dead_gpu" in self.faults:
            message = "CUDA error: unspecified launch failure"
            print(f"RuntimeError: {message}", file=sys.stderr, flush=True)
            raise Refused(500, {"error": {"message": message, "type": "InternalServerError", "code": 500}})
        wanted = request.get("max_completion_tokens") or request.get("max_tokens") or DEFAULT_TOKENS_MAX
        counters = self.counters
        began_s = time.monotonic()
        due_s = began_s + self.speed.prefill_s(prompt_tokens) + 1 / self.speed.tokens_per_s(1)
        last_s = 0.0
        for piece in self.writer.write(request, tokens_max=int(wanted)):
            if isinstance(piece, dict):
                with counters.lock:
                    counters.prompt_tokens += max(prompt_tokens, piece["prompt_tokens"])
                yield {**piece, "prompt_tokens": max(prompt_tokens, piece["prompt_tokens"])}
                return
            time.sleep(max(0.0, due_s - time.monotonic()))
            now_s = time.monotonic()
            speed = self.speed.tokens_per_s(counters.running)
            with counters.lock:
                counters.generated_tokens += 1
                if last_s:
                    counters.between_tokens.add(now_s - last_s)
                    counters.generation_s += now_s - last_s
                    counters.last_speed = 1 / max(1e-6, now_s - last_s) * counters.running
                else:
                    counters.first_token.add(now_s - began_s)
                    counters.prompt_s += now_s - began_s
            last_s = now_s
            due_s = max(due_s, now_s - 1 / speed) + 1 / speed
            yield NONSENSE if "wrong_answers" in self.faults else piece


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_version = "clorefleet-sandbox"
    engine: Engine

    def setup(self) -> None:
        super().setup()
        self.connection.setsockopt(6, 1, 1)  # TCP_NODELAY: each token is a small write

    def log_message(self, *words: object) -> None:
        return

    # -- routes

    def do_GET(self) -> None:
        path = self.path.split("?")[0]
        if path.startswith("/v1/") and not self._may_enter():
            return
        if path == "/v1/models" and self.engine.is_ready.is_set():
            self._send_json(200, self.engine.card())
            return
        answer = self.engine.get(path)
        if answer is None:
            self._send_json(404, {"detail": "Not Found"})
            return
        self._send(*answer)

    def do_POST(self) -> None:
        path = self.path.split("?")[0]
        body = self._body()
        if body is None or not self._may_enter():
            return
        if not self.engine.is_ready.is_set():
            answer = self.engine.get("/health")
            self._send(*(answer or (503, "application/json", "{}")))
            return
        try:
            request = json.loads(body)
            if not isinstance(request, dict):
                raise ValueError
        except ValueError:
            self._send_json(
                400, {"error": {"message": "invalid JSON", "type": "invalid_request_error", "code": 400}}
            )
            return
        routes = {
            "/v1/chat/completions": self._chat,
            "/chat/completions": self._chat,
            "/v1/completions": self._complete,
        }
        route = routes.get(path)
        if route is None:
            self._send_json(404, {"detail": "Not Found"})
            return
        try:
            route(request)
        except Refused as refused:
            self._send_json(refused.status, refused.body)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            message = {"message": f"{error}"[:300], "type": "invalid_request_error", "code": 400}
            self._send_json(400, {"error": message, "object": "error", **message})
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True

    def _may_enter(self) -> bool:
        keys = self.engine.api_keys
        if not keys or self.headers.get("Authorization") in [f"Bearer {key}" for key in keys]:
            return True
        self._send_json(
            401, {"error": {"message": "Invalid API Key", "type": "authentication_error", "code": 401}}
        )
        return False

    def _body(self) -> bytes | None:
        size = int(self.headers.get("Content-Length") or 0)
        if size > BODY_BYTES_MAX:
            self._send_json(413, {"error": "too large"})
            return None
        return self.rfile.read(size)

    # -- chat

    def _chat(self, request: dict) -> None:
        engine = self.engine
        messages = request["messages"]
        if not isinstance(messages, list) or not messages:
            raise ValueError("messages must be a list of at least one message")
        prompt_tokens = text_writer.token_estimate(messages)
        engine.check(request, prompt_tokens)
        identity = f"chatcmpl-{uuid.uuid4().hex}"
        with engine.turn(prompt_tokens):
            deltas = self._deltas(request, prompt_tokens)
            if request.get("stream"):
                self._stream_chat(request, identity, deltas)
            else:
                self._send_json(200, self._whole_chat(request, identity, deltas))

    def _deltas(self, request: dict, prompt_tokens: int) -> Iterator[dict]:
        """Pieces of the assistant's message, and at the end one dict with `usage`."""
        engine = self.engine
        called = text_writer.tool_call(request)
        if called is not None and engine.parses_tools:
            yield from self._tool_deltas(called, prompt_tokens)
            return
        template = request.get("chat_template_kwargs") or {}
        thinks = engine.thinks and template.get("enable_thinking", True) and template.get("thinking", True)
        if thinks and not engine.splits_thinking:
            yield {"content": "<think>"}
        raw_call = "" if called is None else _raw_call(*called)
        if raw_call:
            yield {"content": raw_call}
        seen = 0
        for piece in engine.paced(request, prompt_tokens):
            if isinstance(piece, dict):
                yield {"usage": piece}
                return
            seen += 1
            if thinks and seen == THINKING_TOKENS + 1 and not engine.splits_thinking:
                yield {"content": "</think>"}
            is_thought = thinks and engine.splits_thinking and seen <= THINKING_TOKENS
            is_thought = is_thought and "empty_thinking" not in engine.faults
            yield {"reasoning_content" if is_thought else "content": piece}

    def _tool_deltas(self, called: tuple[str, dict], prompt_tokens: int) -> Iterator[dict]:
        name, arguments = called
        text = json.dumps(arguments)
        tokens = max(1, len(text) // 4) + 10
        time.sleep(self.engine.speed.prefill_s(prompt_tokens) + tokens / self.engine.speed.tokens_per_s(1))
        call = {"id": f"call_{uuid.uuid4().hex[:24]}", "type": "function", "index": 0}
        yield {"tool_calls": [{**call, "function": {"name": name, "arguments": text}}]}
        with self.engine.counters.lock:
            self.engine.counters.generated_tokens += tokens
            self.engine.counters.prompt_tokens += prompt_tokens
        usage = {"finish_reason": "tool_calls", "prompt_tokens": prompt_tokens, "completion_tokens": tokens}
        yield {"usage": usage}

    def _head(self, request: dict, identity: str, kind: str) -> dict:
        model = request.get("model") or self.engine.names[0]
        return {"id": identity, "object": kind, "created": int(time.time()), "model": model}

    def _whole_chat(self, request: dict, identity: str, deltas: Iterator[dict]) -> dict:
        message: dict = {"role": "assistant", "content": ""}
        usage: dict = {}
        for delta in deltas:
            usage = delta.get("usage") or usage
            for name in ("content", "reasoning_content"):
                if name in delta:
                    message[name] = message.get(name, "") + delta[name]
            if "tool_calls" in delta:
                message |= {"tool_calls": delta["tool_calls"], "content": None}
        choice = {
            "index": 0,
            "message": message,
            "logprobs": None,
            "finish_reason": usage.get("finish_reason", "stop"),
        }
        head = self._head(request, identity, "chat.completion")
        return {**head, "choices": [choice], "usage": _usage(usage)}

    def _stream_chat(self, request: dict, identity: str, deltas: Iterator[dict]) -> None:
        self._begin_stream()
        head = self._head(request, identity, "chat.completion.chunk")

        def event(delta: dict, reason: str | None = None) -> None:
            choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": reason}
            self._send_event({**head, "choices": [choice]})

        event({"role": "assistant", "content": ""})
        usage: dict = {}
        for delta in deltas:
            if "usage" in delta:
                usage = delta["usage"]
            else:
                event(delta)
        event({}, usage.get("finish_reason", "stop"))
        if (request.get("stream_options") or {}).get("include_usage"):
            self._send_event({**head, "choices": [], "usage": _usage(usage)})
        self._end_stream()

    def _complete(self, request: dict) -> None:
        engine = self.engine
        prompt = request["prompt"]
        prompt = prompt if isinstance(prompt, str) else "\n".join(map(str, prompt))
        chat = {**request, "messages": [{"role": "user", "content": prompt}]}
        prompt_tokens = text_writer.token_estimate(chat["messages"])
        engine.check(request, prompt_tokens)
        head = self._head(request, f"cmpl-{uuid.uuid4().hex}", "text_completion")
        with engine.turn(prompt_tokens):
            usage: dict = {}
            texts: list[str] = []
            if request.get("stream"):
                self._begin_stream()
            for piece in engine.paced(chat, prompt_tokens):
                if isinstance(piece, dict):
                    usage = piece
                elif request.get("stream"):
                    self._send_event(
                        {**head, "choices": [{"index": 0, "text": piece, "finish_reason": None}]}
                    )
                else:
                    texts.append(piece)
            reason = usage.get("finish_reason", "stop")
            choices = [{"index": 0, "text": "".join(texts), "finish_reason": reason}]
            if request.get("stream"):
                self._send_event({**head, "choices": choices})
                self._end_stream()
            else:
                self._send_json(200, {**head, "choices": choices, "usage": _usage(usage)})

    # -- sending

    def _send_json(self, status: int, body: dict) -> None:
        self._send(status, "application/json", json.dumps(body))

    def _send(self, status: int, kind: str, text: str) -> None:
        data = text.encode()
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def _begin_stream(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream; charset=utf-8")
        self.send_header("Cache-Control", "no-cache")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()

    def _send_event(self, body: dict) -> None:
        self._send_chunk(f"data: {json.dumps(body)}\n\n")

    def _end_stream(self) -> None:
        self._send_chunk("data: [DONE]\n\n")
        self.wfile.write(b"0\r\n\r\n")

    def _send_chunk(self, text: str) -> None:
        data = text.encode()
        self.wfile.write(b"%X\r\n%s\r\n" % (len(data), data))


def _raw_call(name: str, arguments: dict) -> str:
    """What a GLM model writes when nobody parses its tool calls."""
    pairs = "".join(
        f"<arg_key>{key}</arg_key>\n<arg_value>{value}</arg_value>\n" for key, value in arguments.items()
    )
    return f"<tool_call>{name}\n{pairs}</tool_call>"


def _usage(told: dict) -> dict:
    prompt, completion = told.get("prompt_tokens", 0), told.get("completion_tokens", 0)
    return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}


class Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128


def bind(engine: Engine, host: str, port: int) -> Server:
    """Raises OSError when the port is taken."""
    # The sandbox never leaves loopback, whatever address the command line names.
    handler = type("BoundHandler", (Handler,), {"engine": engine})
    return Server(("127.0.0.1" if host in ("0.0.0.0", "::", "localhost") else host, port), handler)


def run_until_stopped(server: Server) -> None:
    """Serve in threads; SIGTERM and SIGINT end the process with status 0."""
    threading.Thread(target=server.serve_forever, daemon=True).start()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: sys.exit(0))
