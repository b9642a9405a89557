"""The body of a request: how much of it is held, and the few things that are read from it.

It is parsed for its model, whether it streams, and how it begins; everything else is the engine's business
and goes on byte for byte. What parsing may cost is bounded first, since one event loop serves all streams.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from starlette.requests import Request

from clorefleet.gateway.problem import Problem

CONTAINERS_MAX = 500_000
"""Objects and lists in one body. 16 MiB of `[],` would become some 400 MB of them."""
DEPTH_MAX = 100
"""Tool schemas nest deepest, and stay below 30. Engines parse recursively."""
MODEL_MAX_CHARS = 200
BEGINNING_MAX_CHARS = 2_000
"""Of a prompt, for telling which replica may have it in its cache: a system prompt and a first question."""


@dataclass(frozen=True, slots=True)
class Prompt:
    model: str
    is_streamed: bool
    body: bytes
    beginning: str = ""
    """Equal for prompts that are likely to share a cached prefix; "" where nothing tells."""


class BodyBudget:
    """Bytes of bodies that all requests together hold in memory. For one event loop: no lock."""

    def __init__(self, *, each_max_bytes: int, all_max_bytes: int) -> None:
        self._each_max_bytes = each_max_bytes
        self._all_max_bytes = all_max_bytes
        self._held_bytes = 0

    async def read(self, request: Request) -> bytes | Problem:
        """The body, whose bytes are counted until `free`.

        Raises:
            ClientDisconnect: the client left before it was complete. Nothing stays counted.
        """
        too_large = Problem(
            413, "body_too_large", f"A request may have at most {self._each_max_bytes:,} bytes."
        )
        declared = request.headers.get("content-length", "")
        if declared.isdigit() and int(declared) > self._each_max_bytes:
            return too_large
        body = bytearray()
        is_kept = False
        try:
            async for chunk in request.stream():
                if len(body) + len(chunk) > self._each_max_bytes:
                    return too_large
                if self._held_bytes + len(chunk) > self._all_max_bytes:
                    return Problem(503, "overloaded", "Too much is under way already.", retry_after_s=1)
                self._held_bytes += len(chunk)
                body += chunk
            is_kept = True
            return bytes(body)
        finally:
            if not is_kept:
                self.free(body)

    def free(self, body: bytes | bytearray) -> None:
        self._held_bytes -= len(body)


def read_prompt(body: bytes) -> Prompt | Problem:
    """What the gateway must know of a body, or why it is none."""
    if body.count(b"{") + body.count(b"[") > CONTAINERS_MAX:
        return Problem(400, "invalid_body", f"A body may have at most {CONTAINERS_MAX:,} objects and lists.")
    try:
        document = json.loads(body.decode("utf-8"))
    except (ValueError, RecursionError):
        return Problem(400, "invalid_body", "The body is not JSON.")
    if not isinstance(document, dict):
        return Problem(400, "invalid_body", "The body must be a JSON object.")
    if _is_deeper(document, DEPTH_MAX):
        return Problem(400, "invalid_body", f"The body nests deeper than {DEPTH_MAX} levels.")
    model = document.get("model")
    if not isinstance(model, str) or not 0 < len(model) <= MODEL_MAX_CHARS or not model.isprintable():
        return Problem(400, "invalid_body", "The body must name a “model”.")
    return Prompt(model, document.get("stream") is True, body, _beginning(document))


def _beginning(document: dict[str, Any]) -> str:
    """The client's own cache key, or all up to the end of the first question."""
    key = document.get("prompt_cache_key")
    if isinstance(key, str) and key:
        return key[:BEGINNING_MAX_CHARS]
    prompt, messages = document.get("prompt"), document.get("messages")
    if isinstance(prompt, str):
        return prompt[:BEGINNING_MAX_CHARS]
    if not isinstance(messages, list):
        return ""
    parts: list[str] = []
    for message in messages:
        if not isinstance(message, dict):
            return ""
        parts.extend([str(message.get("role"))[:20], *_texts(message.get("content"))])
        if message.get("role") == "user" or sum(map(len, parts)) >= BEGINNING_MAX_CHARS:
            break
    return "\n".join(parts)[:BEGINNING_MAX_CHARS]


def _texts(content: object) -> list[str]:
    """A message's words, bounded; images and the like say nothing here."""
    parts = [content] if isinstance(content, str) else content if isinstance(content, list) else []
    texts = [part.get("text") if isinstance(part, dict) else part for part in parts]
    return [text[:BEGINNING_MAX_CHARS] for text in texts if isinstance(text, str)]


def _is_deeper(document: dict[str, Any], levels: int) -> bool:
    containers: list[Any] = [document]
    for _ in range(levels):
        containers = [
            child
            for parent in containers
            for child in (parent.values() if isinstance(parent, dict) else parent)
            if isinstance(child, dict | list)
        ]
        if not containers:
            return False
    return True
