"""Waiting for what an SSH channel receives, together with sockets.

The library's own way (`Channel.fileno`) writes to a pipe on its thread while `close` closes it on another:
seen under load, that write failed and took the whole connection to the server along, with all its channels;
had the number been given out again by then, the byte would have gone into some other open file.
"""

from __future__ import annotations

import os
import select
import threading
from types import TracebackType
from typing import cast

import paramiko


class Readable:
    """A file descriptor that is ready when `channel` may have something to read, or has ended.

    Whoever waits calls `reset`, and then reads all that is there, or calls `set` to be woken again.
    """

    def __init__(self, channel: paramiko.Channel) -> None:
        self._lock = threading.Lock()
        self._is_set = self._is_closed = False
        self._reader, self._writer = os.pipe()
        for buffer in (channel.in_buffer, channel.in_stderr_buffer):
            buffer.set_event(cast(threading.Event, self))  # of which it calls `set` and `clear` alone

    def fileno(self) -> int:
        return self._reader

    def set(self) -> None:
        with self._lock:
            if not self._is_set and not self._is_closed:
                self._is_set = True
                os.write(self._writer, b"*")

    def clear(self) -> None:
        """Nothing: one of two buffers is empty, which says nothing about the other."""

    def reset(self) -> None:
        with self._lock:
            if self._is_set:
                self._is_set = False
                os.read(self._reader, 1)

    def wait(self, timeout_s: float) -> None:
        waiting = select.poll()
        waiting.register(self, select.POLLIN)
        waiting.poll(1000 * timeout_s)

    def close(self) -> None:
        with self._lock:
            if not self._is_closed:
                self._is_closed = True
                os.close(self._reader)
                os.close(self._writer)

    def __enter__(self) -> Readable:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
