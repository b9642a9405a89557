"""Asking an engine behind a tunnel, inside a size and a time: its answers come from a stranger's machine."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import httpx

from clorefleet.domain.text import clean_line

ANSWER_MAX_BYTES = 2_000_000
ANSWER_TIMEOUT_S = 120.0
SHORT_TIMEOUT_S = 5.0


class BadAnswer(Exception):
    """A refusal, or more bytes or more time than an honest answer needs. The message is cleaned."""


def engine_client(socket: Path) -> httpx.Client:
    """Over the tunnel's socket alone: no proxy, no redirect, nothing of the user's environment.

    Each request has its own connection: an engine may close one right after an answer, and the news
    reaches this side of the tunnel too late for the next request.
    """
    return httpx.Client(
        transport=httpx.HTTPTransport(uds=str(socket), limits=httpx.Limits(max_keepalive_connections=0)),
        base_url="http://node",
        timeout=SHORT_TIMEOUT_S,
        follow_redirects=False,
        trust_env=False,
    )


def ask(
    client: httpx.Client, method: str, path: str, timeout_s: float, body: Mapping[str, Any] | None = None
) -> tuple[int, bytes]:
    """Status and body, inside `timeout_s` as a whole and `ANSWER_MAX_BYTES` (A19, S15).

    Raises:
        BadAnswer: too long or too slow. httpx.HTTPError: no answer.
    """
    deadline_s = time.monotonic() + timeout_s
    with client.stream(method, path, json=body, timeout=timeout_s) as answer:
        taken = bytearray()
        for chunk in answer.iter_raw():
            taken += chunk
            if len(taken) > ANSWER_MAX_BYTES or time.monotonic() > deadline_s:
                raise BadAnswer("its answer is too long or too slow")
        return answer.status_code, bytes(taken)


def complete(client: httpx.Client, body: Mapping[str, Any]) -> bytes:
    """The body of a chat completion.

    Raises:
        BadAnswer: refused, too long or too slow. httpx.HTTPError: no answer.
    """
    status, answer = ask(client, "POST", "/v1/chat/completions", ANSWER_TIMEOUT_S, body)
    if status != 200:
        text = clean_line(answer.decode("utf-8", "replace"), max_chars=160)
        raise BadAnswer(f"it answers {status}: {text}")
    return answer


def document_of(client: httpx.Client, path: str) -> Any:
    """The JSON of a GET route, or None where the engine has no such route."""
    status, answer = ask(client, "GET", path, SHORT_TIMEOUT_S)
    return json.loads(answer) if status == 200 else None
