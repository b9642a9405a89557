"""What an SSH channel received, waited for by file descriptor while another thread feeds and ends it."""

from __future__ import annotations

import os
import select
import sys
import threading
from collections.abc import Iterator

import paramiko
import pytest

from clorefleet.node.readable import Readable


@pytest.fixture
def hasty_threads() -> Iterator[None]:
    before_s = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before_s)


def is_ready(readable: Readable) -> bool:
    return bool(select.select([readable], [], [], 0)[0])


def test_either_stream_wakes_until_it_was_reset():
    channel = paramiko.Channel(1)
    with Readable(channel) as readable:
        assert not is_ready(readable)
        channel.in_buffer.feed(b"out")
        channel.in_stderr_buffer.feed(b"err")
        assert is_ready(readable)
        readable.reset()
        assert not is_ready(readable)
        assert channel.recv(10) == b"out"
        channel.in_buffer.feed(b"more")
        assert is_ready(readable) and channel.recv_stderr(10) == b"err"
        # One of the two is empty now, the other is not.
        assert is_ready(readable)


def test_what_came_before_and_the_end_of_the_stream_wake_too():
    channel = paramiko.Channel(1)
    channel.in_buffer.feed(b"early")
    with Readable(channel) as readable:
        assert is_ready(readable)
        readable.reset()
        channel.in_buffer.close()
        assert is_ready(readable)


@pytest.mark.parametrize("attempt", range(5))
def test_what_arrives_while_it_is_closed_breaks_nothing(hasty_threads: None, attempt: int):
    """The thread that feeds is the connection's own: an error there ended all channels of a server."""
    errors: list[OSError] = []
    channels = [paramiko.Channel(number) for number in range(150)]
    readables = [Readable(channel) for channel in channels]
    together = threading.Barrier(2)

    def feed() -> None:
        for channel in channels:
            together.wait()
            try:
                channel.in_buffer.feed(b"x")
            except OSError as error:
                errors.append(error)

    thread = threading.Thread(target=feed)
    thread.start()
    for readable in readables:
        together.wait()
        readable.close()
    thread.join()
    assert not errors


def test_a_closed_one_never_touches_the_file_that_took_its_number_over():
    channel = paramiko.Channel(1)
    readable = Readable(channel)
    numbers = {readable.fileno(), readable.fileno() + 1}
    readable.close()
    reader, writer = os.pipe()
    try:
        assert {reader, writer} == numbers, "the kernel gives out the lowest free numbers"
        channel.in_buffer.feed(b"late")
        readable.close()
        assert not select.select([reader], [], [], 0)[0]
        os.write(writer, b"still open")
    finally:
        os.close(reader)
        os.close(writer)
