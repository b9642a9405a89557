"""SSH against real servers: who is trusted, what is bounded, what a job survives."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import paramiko
import pytest

from clorefleet.domain.errors import (
    CommandFailed,
    HostKeyChanged,
    NodeError,
    NodeUnreachable,
    OutputTooLarge,
    WrongNonce,
)
from clorefleet.domain.identity import JobId, LeaseId
from clorefleet.domain.node import JobState
from clorefleet.domain.order import SshAddress
from clorefleet.node import jobs, probe
from clorefleet.node.keys import make_keys
from clorefleet.node.session import _PUT_SCRIPT, NodeSession, shell
from clorefleet.node.tunnel import Tunnel, socket_path
from tests.node.world import TRUTH, Server, prove_nonce, sandbox_node


def pinned(server: Server, before: NodeSession) -> NodeSession:
    return NodeSession.connect(
        server.address, server.keys.private_key_file, pinned_host_key=before.host_key, allow_loopback=True
    )


def wait_for(session: NodeSession, job_id: str, *states: JobState, seconds: float = 15):
    deadline = time.monotonic() + seconds
    while True:
        report = jobs.read(session, JobId(job_id))
        if report.state in states or time.monotonic() > deadline:
            return report
        time.sleep(0.05)


def test_the_nonce_proves_that_it_is_our_order(session: NodeSession, server: Server):
    session.check_nonce(server.keys.nonce)
    with pytest.raises(WrongNonce):
        session.check_nonce("f" * 32)


def test_a_pinned_key_is_accepted_and_another_ends_the_trust(server: Server, session: NodeSession, tmp_path):
    """F5, S11."""
    assert session.host_key.startswith("ssh-ed25519 ")
    pinned(server, session).close()
    other = "ssh-ed25519 " + make_keys(tmp_path, LeaseId("x")).public_key.split()[1]
    with pytest.raises(HostKeyChanged):
        NodeSession.connect(
            server.address, server.keys.private_key_file, pinned_host_key=other, allow_loopback=True
        )


def test_a_key_of_another_order_is_refused(server: Server, tmp_path: Path):
    stranger = make_keys(tmp_path, LeaseId("stranger"))
    with pytest.raises(NodeUnreachable, match="refuses the login"):
        NodeSession.connect(server.address, stranger.private_key_file, allow_loopback=True)


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "localhost", "10.0.0.1", "169.254.169.254", "192.168.1.1", "0.0.0.0", "::1"]
)
def test_an_address_inside_our_own_network_is_never_dialled(server: Server, host: str):
    """G6."""
    with pytest.raises(NodeError, match="private network"):
        NodeSession.connect(SshAddress((host,), 22), server.keys.private_key_file)


def test_words_are_quoted_and_streams_kept_apart(session: NodeSession):
    result = session.run(["sh", "-c", 'printf "%s|" "$@"; echo oops >&2; exit 3', "sh", "a b", "$(id)", "'"])
    assert (result.exit_status, result.stdout, result.stderr) == (3, "a b|$(id)|'|", "oops\n")
    with pytest.raises(CommandFailed) as caught:
        session.run_ok(["sh", "-c", "echo why >&2; exit 4"])
    assert caught.value.exit_status == 4 and "why" in caught.value.output_tail


def test_output_without_end_is_cut_off(session: NodeSession):
    """F6."""
    with pytest.raises(OutputTooLarge):
        session.run(["sh", "-c", "yes"], max_output_bytes=50_000)
    assert session.run_ok(["echo", "alive"]) == "alive\n"


def test_a_command_that_hangs_is_left(session: NodeSession):
    """F4."""
    began = time.monotonic()
    with pytest.raises(NodeUnreachable, match="time limit"):
        session.run(["sleep", "60"], timeout_s=0.5)
    assert time.monotonic() - began < 5
    assert session.run_ok(["echo", "alive"]) == "alive\n"


def test_a_machine_without_free_file_descriptors_says_so_as_an_error_of_the_node(
    session: NodeSession, monkeypatch: pytest.MonkeyPatch
):
    def none_left(_: object) -> None:
        raise OSError(errno.EMFILE, "Too many open files")

    with monkeypatch.context() as exhausted:
        exhausted.setattr("clorefleet.node.session.Readable", none_left)
        with pytest.raises(NodeUnreachable, match="Too many open files"):
            session.run(["echo", "hello"])
    assert session.run_ok(["echo", "alive"]) == "alive\n"


def test_a_port_that_says_nothing_is_no_ssh_server(server: Server):
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        port = silent.getsockname()[1]
        threading.Thread(target=lambda: silent.accept()[0].close(), daemon=True).start()
        with pytest.raises(NodeUnreachable):
            NodeSession.connect(
                SshAddress(("127.0.0.1",), port), server.keys.private_key_file, allow_loopback=True
            )


def test_a_file_is_put_in_one_step_and_private(session: NodeSession, server: Server):
    path = f"{server.home}/new folder/it's.txt"
    session.write_file(path, b"\x00binary\n" * 1000)
    assert session.run_ok(["sh", "-c", 'wc -c < "$1"; stat -c %a "$1"', "sh", path]).split() == [
        "8000",
        "600",
    ]


def test_a_file_that_was_cut_off_on_its_way_is_not_put(session: NodeSession, server: Server):
    path = f"{server.home}/cut.txt"
    session.write_file(path, b"old")
    assert not session.run(shell(_PUT_SCRIPT, path, "600", "1000"), stdin=b"half").is_ok
    assert session.read_file(path) == b"old"
    assert session.run_ok(["ls", server.home]).count("cut.txt") == 1


def test_a_file_is_read_whole_or_not_at_all(session: NodeSession, server: Server):
    path = f"{server.home}/some.bin"
    session.write_file(path, bytes(range(256)) * 4)
    assert session.read_file(path, max_bytes=1024) == bytes(range(256)) * 4
    with pytest.raises(OutputTooLarge):
        session.read_file(path, max_bytes=1023)
    with pytest.raises(CommandFailed):
        session.read_file(f"{server.home}/nothing")
    assert session.home() == server.home


def test_the_probe_reads_the_server_as_it_is(session: NodeSession, server: Server):
    facts = probe.probe(session, server.home)
    assert facts.cores and facts.disk_free_bytes and facts.python_version
    if server.kind == "sandbox":
        assert [gpu.vram_mib for gpu in facts.gpus] == [24564, 24564]
        assert (facts.cuda_version, facts.cores) == ((13, 0), TRUTH.threads)
        assert facts.ram_bytes == pytest.approx(TRUTH.ram_bytes, rel=0.02)
    else:
        assert facts.gpus == ()  # no nvidia-smi here: none, not an error


# -- jobs


def test_a_job_outlives_the_session_that_started_it(session: NodeSession, server: Server):
    waits = f"while [ ! -e {server.home}/go ]; do sleep 0.05; done; echo done; exit 7"
    spec = jobs.JobSpec(JobId("outlives"), ("sh", "-c", waits))
    assert jobs.start(session, spec) is True
    session.close()
    with pinned(server, session) as later:
        assert jobs.read(later, spec.job_id).state is JobState.RUNNING
        later.run_ok(["touch", f"{server.home}/go"])
        report = wait_for(later, "outlives", JobState.FAILED)
    assert (report.exit_code, report.log_tail) == (7, ("done",))


def test_a_job_started_twice_runs_once(session: NodeSession, server: Server):
    spec = jobs.JobSpec(JobId("once"), ("sh", "-c", f"echo x >> {server.home}/count; sleep 0.2"))
    assert [jobs.start(session, spec) for _ in range(3)] == [True, False, False]
    wait_for(session, "once", JobState.SUCCEEDED)
    assert session.run_ok(["cat", f"{server.home}/count"]) == "x\n"


def test_a_killed_job_is_lost_not_running_and_not_done(session: NodeSession, server: Server):
    """F12."""
    spec = jobs.JobSpec(JobId("killed"), ("sleep", "60"))
    jobs.start(session, spec)
    assert wait_for(session, "killed", JobState.RUNNING).state is JobState.RUNNING
    started = f"{server.home}/.clorefleet/jobs/killed/started"
    deadline = time.monotonic() + 5
    while not session.run(["cat", started]).stdout and time.monotonic() < deadline:
        time.sleep(0.05)
    session.run_ok(["sh", "-c", f"kill -s KILL -- -$(cut -d' ' -f2 {started})"])
    assert wait_for(session, "killed", JobState.LOST).state is JobState.LOST


def test_a_job_is_stopped_with_all_it_started(session: NodeSession, server: Server):
    spec = jobs.JobSpec(JobId("stopped"), ("sh", "-c", "sleep 61 & sleep 61"))
    jobs.start(session, spec)
    wait_for(session, "stopped", JobState.RUNNING)
    time.sleep(0.3)
    jobs.stop(session, spec.job_id)
    assert wait_for(session, "stopped", JobState.LOST, JobState.FAILED).state is not JobState.RUNNING
    assert "sleep 61" not in session.run(["sh", "-c", "cat /proc/[0-9]*/cmdline | tr '\\0' ' '"]).stdout


def test_work_that_is_stopped_politely_still_tells_its_exit_code(session: NodeSession):
    script = "trap 'echo bye; exit 5' TERM; sleep 61 & wait"
    jobs.start(session, jobs.JobSpec(JobId("polite"), ("sh", "-c", script)))
    time.sleep(0.3)
    jobs.stop(session, JobId("polite"))
    report = wait_for(session, "polite", JobState.FAILED, JobState.LOST)
    assert (report.state, report.exit_code, report.log_tail[-1:]) == (JobState.FAILED, 5, ("bye",))


def test_a_job_of_another_boot_is_lost_though_its_process_number_lives(session: NodeSession, server: Server):
    """F17: process numbers come again after a restart."""
    jobs.start(session, jobs.JobSpec(JobId("boot"), ("sleep", "30")))
    started = f"{server.home}/.clorefleet/jobs/boot/started"
    time.sleep(0.3)
    boot, pid, begun = session.run_ok(["cat", started]).split()
    for line in (f"another-boot {pid} {begun}", f"{boot} {pid} {int(begun) - 1}", f"{boot} 1 {begun}"):
        session.write_file(started, line.encode() + b"\n")
        assert jobs.read(session, JobId("boot")).state is JobState.LOST
        jobs.stop(session, JobId("boot"))  # and nothing of that number is hit
    session.write_file(started, f"{boot} {pid} {begun}\n".encode())
    assert jobs.read(session, JobId("boot")).state is JobState.RUNNING
    jobs.stop(session, JobId("boot"))


def test_a_job_whose_script_was_cut_off_never_runs(session: NodeSession, server: Server):
    words = shell(jobs._START, "cut", "1000")
    assert not session.run(words, stdin=b"#!/bin/sh\ntouch ran").is_ok
    assert jobs.read(session, JobId("cut")).state is JobState.ABSENT
    assert jobs.start(session, jobs.JobSpec(JobId("cut"), ("true",)))


def test_a_job_without_the_file_it_needs_fails_and_says_so(session: NodeSession, server: Server):
    spec = jobs.JobSpec(JobId("needs"), ("echo", "ran"), needs_file=f"{server.home}/it's missing")
    jobs.start(session, spec)
    report = wait_for(session, "needs", JobState.FAILED)
    assert report.exit_code == jobs.NEEDED_FILE_MISSING and "missing" in report.log_tail[0]


def test_a_log_is_followed_line_by_line_from_where_it_was_left(session: NodeSession):
    script = "printf 'one\\ntwo\\n\\033[2Jthree'"
    jobs.start(session, jobs.JobSpec(JobId("log"), ("sh", "-c", script)))
    wait_for(session, "log", JobState.SUCCEEDED)
    assert jobs.read_log(session, JobId("log"), offset=0) == (("one", "two"), 8)
    assert jobs.read_log(session, JobId("log"), offset=0, max_bytes=5) == (("one",), 4)
    assert jobs.read_log(session, JobId("log"), offset=8) == ((), 8)
    assert jobs.read_log_tail(session, JobId("log"), lines=1) == ("\ufffd[2Jthree",)


def test_an_unknown_job_is_absent(session: NodeSession):
    assert jobs.read(session, JobId("nobody")).state is JobState.ABSENT


# -- tunnels


CHATTY = """
import socketserver, time
class Talk(socketserver.BaseRequestHandler):
    def handle(self):
        while True:
            self.request.sendall(b"word " * 2000)
            time.sleep(0.001)
class Service(socketserver.ThreadingTCPServer):
    daemon_threads = True
    def handle_error(self, *_): pass
service = Service(("127.0.0.1", 0), Talk)
print(service.server_address[1], flush=True)
service.serve_forever()
"""
ECHO = """
import http.server, sys
class Echo(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        body = self.rfile.read(int(self.headers["content-length"]))
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    def log_message(self, *_):
        pass
server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Echo)
server.request_queue_size = 64
print(server.server_port, flush=True)
server.serve_forever()
"""
"""Runs on the node: a sandbox node's tunnels reach nothing else."""


@contextlib.contextmanager
def service_on_node(session: NodeSession, program: str) -> Iterator[int]:
    """Its port, which it prints first."""
    spec = jobs.JobSpec(JobId(f"service-{os.urandom(4).hex()}"), ("python3", "-c", program))
    jobs.start(session, spec)
    deadline = time.monotonic() + 15
    while not (lines := jobs.read_log_tail(session, spec.job_id, lines=1)):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    yield int(lines[0])
    jobs.stop(session, spec.job_id)


@pytest.fixture
def echo_port(session: NodeSession) -> Iterator[int]:
    with service_on_node(session, ECHO) as port:
        yield port


@pytest.fixture
def chatty_port(session: NodeSession) -> Iterator[int]:
    with service_on_node(session, CHATTY) as port:
        yield port


def test_a_tunnel_carries_many_requests_at_once_unchanged(
    session: NodeSession, echo_port: int, tmp_path: Path
):
    tunnel = Tunnel(tmp_path / "t.sock", echo_port, lambda: session)
    assert (tmp_path / "t.sock").stat().st_mode & 0o077 == 0
    blob = os.urandom(300_000)
    found: list[bytes] = []

    def ask(number: int) -> None:
        with httpx.Client(transport=httpx.HTTPTransport(uds=str(tunnel.path)), timeout=20) as client:
            found.append(client.post("http://node/", content=bytes([number]) + blob).content)

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(found) == sorted(bytes([number]) + blob for number in range(12))
    tunnel.close()
    assert not tunnel.path.exists()


def test_a_client_that_goes_away_in_the_middle_of_an_answer_cuts_off_nobody_else(
    session: NodeSession, chatty_port: int, tmp_path: Path
):
    """All answers of a replica share one connection to its server."""
    tunnel = Tunnel(tmp_path / "t.sock", chatty_port, lambda: session)

    def connect() -> socket.socket:
        client = socket.socket(socket.AF_UNIX)
        client.settimeout(20)
        client.connect(str(tunnel.path))
        return client

    with connect() as patient:
        for _ in range(100):
            with connect() as hasty:
                assert hasty.recv(1)
            assert patient.recv(1 << 20)
    assert session.run_ok(["echo", "alive"]) == "alive\n"
    tunnel.close()


def test_a_tunnel_to_a_port_nobody_has_closes_the_connection(session: NodeSession, tmp_path: Path):
    tunnel = Tunnel(tmp_path / "t.sock", 1, lambda: session)
    with (
        httpx.Client(transport=httpx.HTTPTransport(uds=str(tunnel.path))) as client,
        pytest.raises(httpx.HTTPError),
    ):
        client.get("http://node/")
    tunnel.close()


def test_a_deep_state_folder_gets_a_short_private_socket_folder(tmp_path: Path):
    deep = tmp_path / ("d" * 60) / ("e" * 60)
    path = socket_path(deep, "abc123")
    assert len(os.fsencode(path)) <= 100 and path.parent.stat().st_mode & 0o077 == 0


def test_a_node_shows_the_host_key_that_its_order_gave_it(tmp_path: Path):
    with sandbox_node(tmp_path) as server:
        key = server.keys.private_key_file
        given = server.keys.host_public_key
        with NodeSession.connect(
            server.address, key, expected_host_key=given, allow_loopback=True
        ) as session:
            assert session.is_trusted and session.host_key == given
            assert session.run_ok(["id", "-u"]).strip() == "0"


def test_a_node_whose_image_keeps_its_own_host_key_is_known_by_its_nonce(tmp_path: Path):
    with sandbox_node(tmp_path, lies=frozenset({"own_host_key"})) as server:
        key, given = server.keys.private_key_file, server.keys.host_public_key
        with NodeSession.connect(
            server.address, key, expected_host_key=given, allow_loopback=True
        ) as session:
            assert not session.is_trusted and session.host_key != given
            prove_nonce(session, server)
            assert session.run_ok(["id", "-u"]).strip() == "0"


def test_our_client_never_sends_the_password_of_an_order(tmp_path: Path):
    """It opens the server for a person, and our own login goes on without it."""
    with sandbox_node(tmp_path) as server:
        host, port = server.address.hosts[0], server.address.port
        with paramiko.SSHClient() as person:
            person.set_missing_host_key_policy(paramiko.AutoAddPolicy())
            person.connect(
                host,
                port,
                username="root",
                password=server.keys.password.reveal(),
                allow_agent=False,
                look_for_keys=False,
            )
        stranger = make_keys(tmp_path / "other", LeaseId("x"))
        with pytest.raises(NodeUnreachable, match="refuses the login"):
            NodeSession.connect(server.address, stranger.private_key_file, allow_loopback=True)


def test_two_orders_have_different_host_keys(tmp_path: Path):
    keys = []
    for name in "ab":
        with (
            sandbox_node(tmp_path / name) as node,
            NodeSession.connect(node.address, node.keys.private_key_file, allow_loopback=True) as session,
        ):
            keys.append(session.host_key)
    assert keys[0] != keys[1]
