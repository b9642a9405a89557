"""Does a replica do what was planned? Asked through its tunnel before anybody is served by it (F16).

    context         it offers the planned context
    streaming       tokens come as events, with an end mark
    known answer    a question whose answer is known: right numbers in health checks prove no right weights
    tool call       where the recipe names a parser: a call comes back as a call, not as text
    thinking        where the recipe names a parser: the trace is apart from the answer
    speed           one stream, then several at once, by our clock and the engine's count of tokens

A question is asked twice in other words before an answer counts as wrong: a small model may miss one.
"""

from __future__ import annotations

import json
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx

from clorefleet.domain.failure import Cause
from clorefleet.domain.recipe import EngineSupport
from clorefleet.domain.setup import Setup
from clorefleet.domain.text import clean_line
from clorefleet.engine import engine_of
from clorefleet.engine.base import chat
from clorefleet.node.engine_client import BadAnswer, ask, complete, document_of, engine_client

SPEED_PROMPT = "Count from one to twenty in words."
SPEED_TOKENS = 24
"""Enough for a first speed, few enough to take seconds on the slowest plan."""
STREAM_TOKENS = 4
STREAMS_MAX = 4
"""At once, of the planned concurrency: a measurement must not cost minutes."""
ANSWER_TOKENS = 96
"""A thinking model thinks before it answers; its trace counts, and may be cut off."""
PROOF_TIMEOUT_S = 30.0
SAMPLE_MAX_CHARS = 200
TOKENS_PER_S_MAX = 1_000_000
"""Of one stream. A model's card may hold a number that no float does."""
STREAM_END = "[DONE]"
KnownAnswers = tuple[tuple[str, tuple[str, ...]], ...]
"""Questions, each with the words of which an answer has one."""
KNOWN_ANSWERS: KnownAnswers = (
    ("What is the capital of France? Answer in one sentence.", ("paris",)),
    ("Complete the sentence with one word: Paris is the capital of", ("france",)),
)
WEATHER_TOOL = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Get the current weather of a city.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}},
            "required": ["city"],
        },
    },
}
TOOL_PROMPT = "What is the weather in Paris? Use the tool."
RAW_CALL_MARKS = ("<tool_call>", "<|tool_call", "<function=", "[TOOL_CALLS]")
RAW_THOUGHT_MARK = "<think>"
_ODD_JSON = (ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError)
"""What reading a stranger's JSON may raise: no JSON, another shape, or a bomb of brackets (G7)."""


@dataclass(frozen=True, slots=True)
class VerifyResult:
    """What an engine did when it was asked something."""

    answered: bool
    """Every check that applies was passed."""
    trouble: str = ""
    """The check that was not, cleaned."""
    cause: Cause | None = None
    """What that says of the replica; None where it may yet come right by itself."""
    text_sample: str = ""
    tokens_per_s: float | None = None
    """Of one request alone: tokens by the engine's count, seconds by our clock, prompt and line included."""
    together_tokens_per_s: float | None = None
    """Of `streams` requests at once, all together."""
    streams: int = 1
    is_simulated: bool = False
    """The engine's own model card says that it only simulates its hardware."""
    simulated_tokens_per_s: float | None = None
    """And what that hardware would do for one stream. Whoever runs the engine can write anything there."""


class _Failed(Exception):
    def __init__(self, cause: Cause | None, text: str) -> None:
        super().__init__(text)
        self.cause = cause


def verify(
    socket: Path,
    setup: Setup,
    support: EngineSupport,
    *,
    known_answers: KnownAnswers = KNOWN_ANSWERS,
) -> VerifyResult:
    """All checks in turn; the first that fails ends it. Bounded by the time that each answer may take."""
    found = VerifyResult(False)
    try:
        with engine_client(socket) as client:
            is_simulated, speed = _simulated(client)
            found = replace(found, is_simulated=is_simulated, simulated_tokens_per_s=speed)
            _check_context(client, setup)
            for warm_up in engine_of(setup.engine).warm_up(setup):
                complete(client, warm_up)
            _check_streaming(client, setup)
            _check_proof(client, setup)
            _check_answers(client, setup, support, known_answers)
            if support.tool_call_parser:
                _check_tool_call(client, setup)
            return _measured(client, setup, found)
    except _Failed as failed:
        return replace(found, trouble=clean_line(failed), cause=failed.cause)
    except BadAnswer as error:
        return replace(found, trouble=str(error), cause=_cause_of(str(error)))
    except httpx.HTTPError as error:
        return replace(found, trouble=clean_line(error) or type(error).__name__)
    except _ODD_JSON:
        return replace(found, trouble="its answer is not a completion", cause=Cause.WRONG_ANSWERS)


def _cause_of(refusal: str) -> Cause | None:
    """A server error of an engine that calls itself healthy is a dead GPU until shown otherwise."""
    if "tool choice requires" in refusal:
        return Cause.TOOL_CALLS_DROPPED
    return Cause.GPU_DEAD if refusal.startswith("it answers 5") else None


# -- the checks


def _simulated(client: httpx.Client) -> tuple[bool, float | None]:
    """Whether the engine calls itself simulated, and the speed it names for its hardware."""
    cards = [card for card in _cards(client) if card.get("simulated") is True]
    speeds = [card.get("simulated_tokens_per_s") for card in cards]
    told = next((each for each in speeds if isinstance(each, (int, float))), 0)
    return bool(cards), float(told) if 0 < told < TOKENS_PER_S_MAX else None


def _cards(client: httpx.Client) -> list[dict[str, Any]]:
    document = document_of(client, "/v1/models")
    cards = document.get("data", []) if isinstance(document, dict) else []
    return [card for card in cards if isinstance(card, dict)]


def _check_context(client: httpx.Client, setup: Setup) -> None:
    """SGLang and vLLM tell in the model's card, llama.cpp in its properties; an engine may not tell."""
    told = next((card.get("max_model_len") for card in _cards(client)), None)
    if not isinstance(told, int):
        props = document_of(client, "/props")
        settings = props.get("default_generation_settings") if isinstance(props, dict) else None
        told = settings.get("n_ctx") if isinstance(settings, dict) else None
    if isinstance(told, int) and told < setup.context_tokens:
        text = f"it offers {told:,} tokens of context, and {setup.context_tokens:,} were planned"
        raise _Failed(Cause.CONTEXT_TOO_LONG, text)


def _check_streaming(client: httpx.Client, setup: Setup) -> None:
    body = complete(client, chat(setup, SPEED_PROMPT, max_tokens=STREAM_TOKENS, stream=True))
    lines = body.decode("utf-8", "replace").splitlines()
    events = [line[5:].strip() for line in lines if line[:5] == "data:"]
    if not (events and events[-1] == STREAM_END and any(_has_delta(event) for event in events[:-1])):
        raise _Failed(Cause.WRONG_ANSWERS, "it does not stream")


def _has_delta(event: str) -> bool:
    try:
        delta = json.loads(event)["choices"][0]["delta"]
        return bool(delta.get("content") or delta.get("reasoning_content"))
    except _ODD_JSON:
        return False


def _check_proof(client: httpx.Client, setup: Setup) -> None:
    """The engine's own route that makes a token, where it has one: health alone may outlive a GPU."""
    path = engine_of(setup.engine).proof_path
    if path and ask(client, "GET", path, PROOF_TIMEOUT_S)[0] not in (200, 404):
        raise _Failed(Cause.GPU_DEAD, "it calls itself healthy and generates nothing")


def _check_answers(
    client: httpx.Client,
    setup: Setup,
    support: EngineSupport,
    known_answers: KnownAnswers,
) -> None:
    wrong = ""
    # Without a known answer the form of one is looked at all the same.
    for question, wanted in known_answers or ((KNOWN_ANSWERS[0][0], ("",)),):
        message = _message(complete(client, chat(setup, question, max_tokens=ANSWER_TOKENS)))
        content, thought = _text(message, "content"), _text(message, "reasoning_content")
        if support.reasoning_parser:
            _check_thinking(content, thought)
        # The end of the answer may be cut off in thought: the trace counts as well.
        if any(word in f"{thought} {content}".lower() for word in wanted):
            return
        wrong = content or thought
    said = clean_line(wrong, max_chars=80)
    raise _Failed(Cause.WRONG_ANSWERS, f"it answers known questions wrongly, for instance “{said}”")


def _check_thinking(content: str, thought: str) -> None:
    if RAW_THOUGHT_MARK in content:
        raise _Failed(Cause.NO_THINKING, "its reasoning trace is in the answer's text: nobody parses it")
    if not thought.strip():
        raise _Failed(Cause.NO_THINKING, "its reasoning trace is empty")


def _check_tool_call(client: httpx.Client, setup: Setup) -> None:
    wish = {"tools": [WEATHER_TOOL], "max_tokens": ANSWER_TOKENS}
    for choice in ("auto", "required"):
        message = _message(complete(client, chat(setup, TOOL_PROMPT, tool_choice=choice, **wish)))
        if _calls_weather(message):
            return
        if any(mark in _text(message, "content") for mark in RAW_CALL_MARKS):
            raise _Failed(Cause.TOOL_CALLS_DROPPED, "a tool call shows as text: nobody parses it")
    raise _Failed(Cause.TOOL_CALLS_DROPPED, "it was asked to call a tool, and called none")


def _calls_weather(message: dict[str, Any]) -> bool:
    calls = message.get("tool_calls") or []
    if not calls:
        return False
    function = calls[0]["function"]
    arguments = function["arguments"]
    parsed = json.loads(arguments) if isinstance(arguments, str) else arguments
    return bool(function["name"] == "get_weather" and isinstance(parsed, dict) and parsed.get("city"))


def _message(body: bytes) -> dict[str, Any]:
    message = json.loads(body)["choices"][0]["message"]
    if not isinstance(message, dict):
        raise TypeError("a message is an object")
    return message


def _text(message: dict[str, Any], name: str) -> str:
    text = message.get(name) or ""
    if not isinstance(text, str):
        raise TypeError(f"{name} is text")
    return text


# -- the speed


def _measured(client: httpx.Client, setup: Setup, found: VerifyResult) -> VerifyResult:
    began_s = time.monotonic()
    text, tokens = _counted(client, setup)
    alone = tokens / max(time.monotonic() - began_s, 1e-3)
    if not text.strip() or tokens < 1:
        raise _Failed(Cause.WRONG_ANSWERS, "its answer is empty")
    streams = max(1, min(STREAMS_MAX, setup.concurrency))
    together = alone
    if streams > 1:
        began_s = time.monotonic()
        with ThreadPoolExecutor(streams, thread_name_prefix="verify") as pool:
            counts = list(pool.map(lambda _: _counted(client, setup)[1], range(streams)))
        together = sum(counts) / max(time.monotonic() - began_s, 1e-3)
    return replace(
        found,
        answered=True,
        text_sample=clean_line(text, max_chars=SAMPLE_MAX_CHARS),
        tokens_per_s=alone,
        together_tokens_per_s=together,
        streams=streams,
    )


def _counted(client: httpx.Client, setup: Setup) -> tuple[str, int]:
    """Text and token count of a completion; whatever is odd raises one of the errors of bad JSON."""
    document = json.loads(complete(client, chat(setup, SPEED_PROMPT, max_tokens=SPEED_TOKENS)))
    message = document["choices"][0]["message"]
    tokens = document["usage"]["completion_tokens"]
    text = _text(message, "content") or _text(message, "reasoning_content")
    if not isinstance(tokens, int) or not 0 <= tokens <= SPEED_TOKENS:
        raise ValueError("not the completion that was asked for")
    return text, tokens
