"""What a server may do to us over SSH, and what we do then (F4, F5, F6, G)."""

from __future__ import annotations

import contextlib
import random
import socket
import time
from collections.abc import Callable
from pathlib import Path

import paramiko
import pytest

from clorefleet.domain.errors import HostKeyChanged, NodeUnreachable, OutputTooLarge, WrongNonce
from clorefleet.domain.identity import LeaseId
from clorefleet.domain.order import SshAddress
from clorefleet.node import probe
from clorefleet.node.keys import make_keys
from clorefleet.node.reach import ForbiddenAddress
from clorefleet.node.session import NodeSession
from tests.node.peers import Answer, listening, peer, send

NONCE = "0123456789abcdef" * 2
RSA, OTHER_RSA, ECDSA = (
    paramiko.RSAKey.generate(2048),
    paramiko.RSAKey.generate(2048),
    paramiko.ECDSAKey.generate(),
)


@pytest.fixture(scope="module")
def key_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_keys(tmp_path_factory.mktemp("state"), LeaseId("l1")).private_key_file


def named(key: paramiko.PKey) -> str:
    return f"{key.get_name()} {key.get_base64()}"


def connect(address: SshAddress, key_file: Path, pinned: str = "") -> NodeSession:
    return NodeSession.connect(address, key_file, pinned_host_key=pinned, allow_loopback=True)


def say(text: str) -> Answer:
    return lambda channel: send(channel, text.encode())


# -- who it is


@pytest.mark.parametrize("key", [RSA, ECDSA], ids=["rsa", "ecdsa"])
def test_a_host_key_of_any_kind_can_be_pinned(key: paramiko.PKey, key_file: Path):
    with peer(key, say("hello\n")) as address:
        with connect(address, key_file) as first:
            assert first.host_key == named(key)
        with connect(address, key_file, pinned=named(key)) as again:
            assert again.run(["anything"]).stdout == "hello\n"


@pytest.mark.parametrize(
    "pinned, shown", [(RSA, OTHER_RSA), (RSA, ECDSA), (ECDSA, RSA)], ids=["same kind", "ecdsa now", "rsa now"]
)
def test_a_changed_host_key_ends_the_trust_before_we_log_in(
    pinned: paramiko.PKey, shown: paramiko.PKey, key_file: Path
):
    with peer(shown, say("welcome")) as address, pytest.raises(HostKeyChanged):
        connect(address, key_file, pinned=named(pinned))


def test_a_server_that_shows_the_key_it_was_given_is_trusted_from_the_first_byte(key_file: Path):
    with (
        peer(RSA, say("hello\n")) as address,
        NodeSession.connect(address, key_file, expected_host_key=named(RSA), allow_loopback=True) as session,
    ):
        assert session.is_trusted and session.run(["anything"]).stdout == "hello\n"


def test_a_server_with_another_key_than_it_was_given_must_know_the_nonce(key_file: Path):
    """The image kept its own key, or somebody stands between: nothing runs before that is known."""
    expected = named(OTHER_RSA)
    for shown, error in ((NONCE, None), ("f" * 32, WrongNonce), ("", NodeUnreachable)):
        with (
            peer(RSA, say(f"{shown}\n")) as address,
            NodeSession.connect(
                address, key_file, expected_host_key=expected, allow_loopback=True
            ) as session,
        ):
            with pytest.raises(RuntimeError, match="nonce"):
                session.run(["true"])
            with contextlib.nullcontext() if error is None else pytest.raises(error):
                session.check_nonce(NONCE)
            assert session.is_trusted == (error is None)


def test_a_key_that_was_pinned_counts_more_than_the_one_it_was_given(key_file: Path):
    with peer(OTHER_RSA, say("x")) as address, pytest.raises(HostKeyChanged):
        NodeSession.connect(
            address,
            key_file,
            pinned_host_key=named(RSA),
            expected_host_key=named(OTHER_RSA),
            allow_loopback=True,
        )


def test_nothing_but_the_nonce_check_runs_before_the_trust(key_file: Path):
    """S11."""
    with peer(RSA, say(f"\n{NONCE}\n")) as address, connect(address, key_file) as session:
        with pytest.raises(RuntimeError, match="nonce"):
            session.run(["true"])
        with pytest.raises(RuntimeError, match="nonce"):
            session.write_file("/tmp/x", b"secret")
        session.check_nonce(NONCE)
        assert session.run(["true"]).is_ok


@pytest.mark.parametrize("text", ["", "\n\n", NONCE[:20] + "\n", "cat: no such file\n"])
def test_a_nonce_that_is_not_there_yet_is_no_wrong_nonce(text: str, key_file: Path):
    with (
        peer(RSA, say(text)) as address,
        connect(address, key_file) as session,
        pytest.raises(NodeUnreachable),
    ):
        session.check_nonce(NONCE)


def test_a_wrong_nonce_ends_the_trust(key_file: Path):
    with (
        peer(RSA, say("f" * 32)) as address,
        connect(address, key_file) as session,
        pytest.raises(WrongNonce),
    ):
        session.check_nonce(NONCE)


def test_the_nonce_counts_wherever_it_is_found(key_file: Path):
    """A file of an earlier order, and the container's own environment."""
    with peer(RSA, say("f" * 32 + "\n" + NONCE)) as address, connect(address, key_file) as session:
        session.check_nonce(NONCE)


@pytest.mark.parametrize("host", ["127.0.0.1", "169.254.169.254", "10.1.2.3", "::ffff:127.0.0.1", "fe80::1"])
def test_no_private_address_is_dialled_outside_the_sandbox(host: str, key_file: Path):
    """G6."""
    with pytest.raises(ForbiddenAddress):
        NodeSession.connect(SshAddress((host,), 22), key_file)


# -- what it says


def _garbage(connection: socket.socket) -> None:
    connection.sendall(b"SSH-2.0-x\r\n" + random.Random(1).randbytes(5_000))
    connection.close()


def _bad_first_packet(connection: socket.socket) -> None:
    connection.sendall(b"SSH-2.0-x\r\n\x00\x00\x00\x1c\x0a" + b"\x14" + b"\xff" * 26)
    connection.close()


def _many_banners(connection: socket.socket) -> None:
    connection.sendall(b"\x1b]0;gotcha\x07\r\n" * 1_000)
    connection.close()


@pytest.mark.parametrize("greet", [_garbage, _bad_first_packet, _many_banners, socket.socket.close])
def test_whatever_bytes_it_sends_the_trouble_is_typed_and_clean(
    greet: Callable[[socket.socket], None], key_file: Path
):
    with listening(greet) as address, pytest.raises(NodeUnreachable) as caught:
        connect(address, key_file)
    assert caught.value.what.isprintable()


# -- how it ends


def test_a_command_that_is_never_accepted_is_left(key_file: Path):
    """F4."""
    with peer(RSA, None) as address, connect(address, key_file, pinned=named(RSA)) as session:
        began_s = time.monotonic()
        with pytest.raises(NodeUnreachable):
            session.run(["true"], timeout_s=0.3)
        assert time.monotonic() - began_s < 3


def test_half_an_answer_is_no_answer(key_file: Path):
    """A cut while the GPUs are listed must not read as a server without GPUs."""

    def cut(channel: paramiko.Channel) -> None:
        channel.sendall(b"\n==gpus==\n")
        channel.get_transport().close()

    for answer in (cut, say("\n==gpus==\n")):
        with (
            peer(RSA, answer) as address,
            connect(address, key_file, pinned=named(RSA)) as session,
            pytest.raises(NodeUnreachable),
        ):
            probe.probe(session)


def test_output_that_comes_after_the_exit_status_is_kept(key_file: Path):
    """As OpenSSH does it when a command ends before its output was read."""

    def late(channel: paramiko.Channel) -> None:
        channel.send_exit_status(0)
        time.sleep(0.1)
        channel.sendall(b"late but whole\n")
        channel.close()

    with peer(RSA, late) as address, connect(address, key_file, pinned=named(RSA)) as session:
        assert session.run(["true"]).stdout == "late but whole\n"


def test_a_child_that_holds_the_output_open_does_not_hold_us(key_file: Path):
    def held(channel: paramiko.Channel) -> None:
        channel.sendall(b"ready\n")
        channel.send_exit_status(0)

    with peer(RSA, held) as address, connect(address, key_file, pinned=named(RSA)) as session:
        began_s = time.monotonic()
        assert session.run(["true"]).stdout == "ready\n"
        assert time.monotonic() - began_s < 5


def test_errors_without_end_are_cut_off_too(key_file: Path):
    """F6."""

    def flood(channel: paramiko.Channel) -> None:
        while not channel.closed:
            try:
                channel.sendall_stderr(b"\x1b[2J" * 10_000)
            except OSError:
                return

    with (
        peer(RSA, flood) as address,
        connect(address, key_file, pinned=named(RSA)) as session,
        pytest.raises(OutputTooLarge),
    ):
        session.run(["true"], max_output_bytes=100_000)
