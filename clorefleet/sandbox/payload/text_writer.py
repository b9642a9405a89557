"""The small real model that writes the text of simulated engines, run by llama.cpp in this process."""

from __future__ import annotations

import json
import os
import queue
import re
import threading
from collections.abc import Iterator

import node_truth

CONTEXT_TOKENS = 4096
SLOTS = 4
PROMPT_CHARS_MAX = 6000
"""The small model's context is short: of a longer prompt it sees the end."""
TOKENS_MAX = 1500
_PASSED_ON = ("temperature", "top_p", "top_k", "min_p", "seed", "stop", "response_format", "presence_penalty")
_CHARS_PER_TOKEN = 4
THREADS_MAX = 4


def threads(asked: int, processors: int) -> int:
    """How many an engine gets of those that were asked for: at most half of the machine's processors.

    llama.cpp's threads wait for each other in a busy loop. On a machine of two processors that others kept
    busy as well, two threads took ten times the processor time of one, and ten times as long.
    """
    return max(1, min(asked, THREADS_MAX, processors // 2))


class Writer:
    """Raises RuntimeError (from llama.cpp) if the model file cannot be loaded."""

    def __init__(self) -> None:
        import xllamacpp

        # llama.cpp insists on a listening server; a socket file keeps it off the shared loopback interface.
        folder = node_truth.ROOT / "run/gpu"
        folder.mkdir(parents=True, exist_ok=True)
        params = xllamacpp.CommonParams()
        params.model.path = str(node_truth.HOME / "writer.gguf")
        params.hostnames = [str(folder / f"writer-{os.getpid()}.sock")]
        params.n_ctx, params.n_parallel = CONTEXT_TOKENS * SLOTS, SLOTS
        params.cpuparams.n_threads = threads(2, os.cpu_count() or 1)
        params.warmup, params.use_jinja, params.verbosity = False, True, -1
        self._server = xllamacpp.Server(params)

    def write(self, request: dict, *, tokens_max: int) -> Iterator[str | dict]:
        """Pieces of text, about one token each, and at the end the usage with `finish_reason`."""
        asked = {name: request[name] for name in _PASSED_ON if request.get(name) is not None}
        asked |= {
            "messages": short_messages(request["messages"]),
            "max_tokens": max(1, min(tokens_max, TOKENS_MAX)),
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        pieces: queue.Queue[dict | str | None] = queue.Queue()
        closed = threading.Event()

        def heard(answer: dict | str) -> bool:
            pieces.put(answer)
            return closed.is_set()

        def work() -> None:
            try:
                self._server.handle_chat_completions(asked, heard)
            except Exception as error:
                pieces.put({"error": {"message": str(error)}})
            pieces.put(None)

        threading.Thread(target=work, daemon=True).start()
        try:
            yield from self._told(pieces)
        finally:
            closed.set()

    def _told(self, pieces: queue.Queue) -> Iterator[str | dict]:
        reason, usage = "stop", {}
        while (answer := pieces.get()) is not None:
            if isinstance(answer, str):
                answer = json.loads(answer)
            if "error" in answer:
                raise ValueError(str(answer["error"].get("message", "refused"))[:300])
            usage = answer.get("usage") or usage
            for choice in answer.get("choices", []):
                text = choice.get("delta", {}).get("content")
                if text:
                    yield text
                reason = choice.get("finish_reason") or reason
        yield {
            "finish_reason": reason,
            "prompt_tokens": int(usage.get("prompt_tokens", 0)),
            "completion_tokens": int(usage.get("completion_tokens", 0)),
        }


def text_of(content: object) -> str:
    """The text of a message's content, which may be a list of parts."""
    if isinstance(content, list):
        return "\n".join(str(part.get("text", "")) for part in content if isinstance(part, dict))
    return "" if content is None else str(content)


def short_messages(messages: list) -> list[dict]:
    """Roles and texts only, the end of them if they are too long. Tool traffic is told as text."""
    short, room = [], PROMPT_CHARS_MAX
    for message in reversed(messages):
        text = text_of(message.get("content"))
        role = message.get("role", "user")
        if role not in ("system", "user", "assistant"):
            role, text = "user", f"[{role}] {text}"
        short.append({"role": role, "content": text[-room:] if room else ""})
        room -= len(short[-1]["content"])
        if room <= 0:
            break
    return short[::-1] or [{"role": "user", "content": ""}]


def token_estimate(messages: list) -> int:
    """For prompts that the small model sees only the end of."""
    return sum(len(text_of(message.get("content"))) // _CHARS_PER_TOKEN + 4 for message in messages)


# -- tool calls


def tool_call(request: dict) -> tuple[str, dict] | None:
    """The call that a simulated model makes, or None for an answer in words.

    The small model cannot use tools, so a rule stands in: a tool is called when the request demands it, or
    when the last message comes from the user and shares a word of four letters or more with the tool's name
    or description. Arguments are filled from the schema.
    """
    tools = [tool["function"] for tool in request.get("tools") or [] if tool.get("type") == "function"]
    choice = request.get("tool_choice", "auto")
    if not tools or choice == "none":
        return None
    last = request["messages"][-1] if request["messages"] else {}
    said = text_of(last.get("content"))
    if isinstance(choice, dict):
        wanted = choice.get("function", {}).get("name")
        function = next((tool for tool in tools if tool.get("name") == wanted), None)
    elif choice == "required":
        function = tools[0]
    else:
        words = set(re.findall(r"[a-z]{4,}", said.lower())) if last.get("role") == "user" else set()
        function = next((tool for tool in tools if words & _words_of(tool)), None)
    if function is None:
        return None
    schema = function.get("parameters") or {}
    properties = schema.get("properties") or {}
    names = schema.get("required") or list(properties)
    return str(function.get("name")), {name: _value(properties.get(name) or {}, said) for name in names}


def _words_of(tool: dict) -> set[str]:
    return set(re.findall(r"[a-z]{4,}", f"{tool.get('name')} {tool.get('description')}".lower()))


def _value(schema: dict, said: str) -> object:
    if schema.get("enum"):
        return schema["enum"][0]
    kind = schema.get("type", "string")
    if kind in ("integer", "number"):
        numbers = re.findall(r"-?\d+", said)
        return int(numbers[0]) if numbers else 0
    if kind == "boolean":
        return True
    if kind == "array":
        return []
    if kind == "object":
        return {}
    names = re.findall(r"(?<=[a-z,] )[A-Z]\w+", said)
    return names[-1] if names else said[:80]
