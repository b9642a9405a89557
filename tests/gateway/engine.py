"""A small engine on a real UNIX socket, told by each prompt how to behave, and a peer that never answers.

`{"do": ...}` in a prompt: `answer` (default, streams when asked), `hold` (waits for `release` after its
first piece, or before its answer), `silent` (no byte until `release`), `cut` (breaks off after its first
piece), `cut once` (the same, for the first such prompt of a test only), `refuse` (an error with the
prompt's `status` and `body`).
"""

from __future__ import annotations

import asyncio
import json
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import uvicorn
from starlette.types import Receive, Scope, Send

USAGE = {"prompt_tokens": 3, "completion_tokens": 5}
PATIENCE_S = 10.0


def until(is_true: Callable[[], bool]) -> None:
    """Wait for what another thread brings about."""
    deadline_s = time.monotonic() + PATIENCE_S
    while not is_true():
        assert time.monotonic() < deadline_s, "it never came true"
        time.sleep(0.005)


def event(document: object) -> bytes:
    return f"data: {json.dumps(document)}\n\n".encode()


class Engine:
    """Serves until stopped; remembers what it was asked."""

    cut_before = threading.Event()
    """Some engine of this test has cut an answer."""

    def __init__(self, path: Path, *, pieces: int = 3, card: bytes | None = None) -> None:
        self.path = path
        self.bodies: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.card_requests = 0
        self.left = threading.Event()
        """A client went away before its answer was complete."""
        self._pieces = pieces
        self._card = card or json.dumps({"data": [{"id": "/w/tiny.gguf", "simulated": True}]}).encode()
        self._released = asyncio.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        config = uvicorn.Config(
            self._app,
            uds=str(path),
            interface="asgi3",
            log_config=None,
            lifespan="off",
            timeout_keep_alive=60,
        )
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run, daemon=True)
        self._thread.start()
        until(lambda: self._server.started)

    @property
    def connections(self) -> int:
        return len(self._server.server_state.connections)

    def release(self) -> None:
        """Those that hold go on."""
        assert self._loop is not None
        self._loop.call_soon_threadsafe(self._released.set)

    def stop(self) -> None:
        self._server.should_exit = self._server.force_exit = True
        self._thread.join(5)
        self.path.unlink(missing_ok=True)

    async def _app(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._loop = asyncio.get_running_loop()
        if scope["method"] == "GET":
            self.card_requests += 1
            await _respond(send, 200, self._card)
            return
        body = b""
        while True:
            message = await receive()
            body += message.get("body", b"")
            if not message.get("more_body"):
                break
        prompt = json.loads(body)
        self.bodies.append(prompt)
        self.headers.append({name.decode(): value.decode() for name, value in scope["headers"]})
        work = asyncio.ensure_future(self._obey(prompt, send))
        leaving = asyncio.ensure_future(receive())
        await asyncio.wait({work, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not work.done():
            self.left.set()
        for task in (work, leaving):
            task.cancel()

    async def _obey(self, prompt: dict[str, Any], send: Send) -> None:
        do = prompt.get("do", "answer")
        if do == "cut once":
            do = "answer" if self.cut_before.is_set() else "cut"
            self.cut_before.set()
        if do == "silent":
            await self._released.wait()
        if do == "refuse":
            await _respond(send, prompt["status"], prompt["body"].encode())
            return
        if not prompt.get("stream"):
            if do == "hold":
                await self._released.wait()
            answer = json.dumps({"choices": [{"message": {"content": "hello"}}], "usage": USAGE}).encode()
            await _start(send, 200, "application/json")
            await _piece(send, answer[:10] if do == "cut" else answer)
        else:
            await _start(send, 200, "text/event-stream; charset=utf-8")
            for number in range(self._pieces):
                await _piece(send, event({"n": number, "usage": None}))
                if do == "hold":
                    await self._released.wait()
                if do == "cut":
                    return
                await asyncio.sleep(0)
            await _piece(send, event({"choices": [], "usage": USAGE}) + b"data: [DONE]\n\n")
        if do != "cut":
            await send({"type": "http.response.body", "body": b""})


async def _start(send: Send, status: int, kind: str) -> None:
    headers = [
        (b"content-type", kind.encode()),
        (b"server", b"engine/1.2"),
        (b"x-engine-host", b"secret-host"),
        (b"set-cookie", b"who=you"),
    ]
    await send({"type": "http.response.start", "status": status, "headers": headers})


async def _piece(send: Send, body: bytes) -> None:
    await send({"type": "http.response.body", "body": body, "more_body": True})


async def _respond(send: Send, status: int, body: bytes) -> None:
    await _start(send, status, "application/json")
    await send({"type": "http.response.body", "body": body})


class Closer:
    """Accepts and closes: at once with the request unread, as a tunnel without a session does, or after
    having read all of it, as a crashing engine does."""

    def __init__(self, path: Path, *, reads_first: bool) -> None:
        self.path = path
        self.accepted = 0
        self._reads_first = reads_first
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(str(path))
        self._listener.listen()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            self.accepted += 1
            with connection:
                # Something has come: whether it is taken off the socket is the difference.
                received = connection.recv(1, socket.MSG_PEEK)
                while self._reads_first and received and not received.rstrip().endswith(b"}"):
                    received = connection.recv(65536)

    def stop(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join(5)
