"""A simulated node as an SSH client finds it, by a client that shares no code with its server."""

from __future__ import annotations

import io
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import paramiko
import pytest

from clorefleet.sandbox import isolation
from clorefleet.sandbox.node import credentials_of
from tests.sandbox.node_world import TWO_4090, RunningRack, new_key, run, tiny_assets

ORDER = 21
QUICK_S = 5.0
needs_namespaces = pytest.mark.skipif(
    isolation.available() != isolation.NAMESPACES, reason="this system gives no user namespaces"
)


@pytest.fixture(scope="module")
def rack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningRack]:
    folder = tmp_path_factory.mktemp("rack")
    running = RunningRack(folder / "nodes", tiny_assets(folder))
    yield running
    running.close()


@pytest.fixture(scope="module")
def port(rack: RunningRack) -> int:
    return rack.start(ORDER)


@pytest.fixture(scope="module")
def node(rack: RunningRack, port: int) -> Iterator[paramiko.SSHClient]:
    with rack.login(port) as client:
        yield client


# -- who gets in


def test_the_orders_key_and_its_password_both_open(rack: RunningRack, port: int):
    with rack.login(port, pkey=rack.key) as client:
        assert run(client, "id -u").out == "0\n"
    with rack.login(port, password=rack.password) as client:
        assert run(client, "id -u").out == "0\n"


@pytest.mark.parametrize(
    "credentials",
    [
        {"pkey": new_key()},
        {"password": "wrong"},
        {"password": ""},
        {"username": "ubuntu", "password": "correct horse"},
    ],
    ids=["another key", "wrong password", "empty password", "another user"],
)
def test_nothing_else_opens(rack: RunningRack, port: int, credentials: dict[str, object]):
    with pytest.raises(paramiko.AuthenticationException), rack.login(port, **credentials):
        pass


def test_an_order_without_key_and_password_lets_nobody_in(rack: RunningRack):
    port = rack.start(ORDER + 1, ssh_key=None, ssh_password=None)
    for credentials in ({"pkey": rack.key}, {"password": ""}):
        with pytest.raises(paramiko.SSHException), rack.login(port, **credentials):
            pass
    rack.stop(ORDER + 1)


def test_a_garbled_key_lets_nobody_in():
    assert credentials_of("ssh-ed25519 AAAAgarbage", None).public_key is None


def test_each_order_has_its_own_host_key_and_keeps_it_over_a_restart(rack: RunningRack, port: int):
    def host_key(at: int) -> bytes:
        transport = paramiko.Transport(("127.0.0.1", at))
        transport.start_client(timeout=10)
        try:
            return transport.get_remote_server_key().asbytes()
        finally:
            transport.close()

    other = rack.start(ORDER + 2)
    first = host_key(other)
    assert first != host_key(port)
    assert host_key(rack.start(ORDER + 2)) == first
    rack.stop(ORDER + 2)
    assert host_key(rack.start(ORDER + 2)) != first
    rack.stop(ORDER + 2)


@pytest.mark.parametrize(
    ("image", "autossh", "is_open"),
    [("cloreai/torch:2.0.1", False, True), ("ubuntu:22.04", True, True), ("ubuntu:22.04", False, False)],
)
def test_only_images_with_an_ssh_server_answer(rack: RunningRack, image: str, autossh: bool, is_open: bool):
    port = rack.start(ORDER + 3, image=image, autossh=autossh)
    with socket.socket() as client:
        client.settimeout(5)
        assert (client.connect_ex(("127.0.0.1", port)) == 0) == is_open
    rack.stop(ORDER + 3)


# -- what runs


def test_output_error_status_and_input_are_kept_apart(node: paramiko.SSHClient):
    result = run(node, "cat; echo oops >&2; exit 3", stdin=b"to stdin")
    assert (result.status, result.out, result.err) == (3, "to stdin", "oops\n")


def test_a_megabyte_goes_in_and_comes_back(node: paramiko.SSHClient):
    sent = b"0123456789abcde\n" * 65536
    assert run(node, "cat", stdin=sent).out.encode() == sent


def test_a_killed_command_does_not_count_as_success(node: paramiko.SSHClient):
    assert run(node, "kill -9 $$").status not in (0, 1)
    assert run(node, "sh -c 'kill -9 $$'; echo $?").out == "137\n"


def test_commands_see_the_containers_environment(node: paramiko.SSHClient):
    assert run(node, "echo $GREETING; echo $HOME; pwd; echo $HF_ENDPOINT").out.splitlines() == [
        "it's here",
        "/root",
        "/root",
        f"http://127.0.0.1:9/n/{ORDER}",
    ]


def test_nothing_of_the_users_environment_leaks_in(rack: RunningRack, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "the user's")
    with rack.login(rack.start(ORDER + 4)) as client:
        assert "AWS_SECRET" not in run(client, "env; cat /proc/*/environ").out
    rack.stop(ORDER + 4)


@needs_namespaces
def test_the_nonce_can_be_read_where_a_container_has_it(node: paramiko.SSHClient):
    found = run(node, "tr '\\0' '\\n' </proc/1/environ | sed -n 's/^CLOREFLEET_NONCE=//p'")
    assert found.out == "n0nce\n"


def test_a_detached_job_returns_at_once_and_lives_on(rack: RunningRack, port: int):
    with rack.login(port) as client:
        began = time.monotonic()
        run(client, "setsid nohup sh -c 'sleep 0.3; echo done > /root/job' >/dev/null 2>&1 </dev/null &")
        assert time.monotonic() - began < 0.3
    with rack.login(port) as again:
        for _ in range(100):
            if (found := run(again, "cat /root/job")).status == 0:
                break
            time.sleep(0.02)
        assert found.out == "done\n"


def test_the_start_up_script_runs_at_boot(rack: RunningRack):
    port = rack.start(ORDER + 5, command="echo $GREETING > /root/started; sleep 100")
    with rack.login(port) as client:
        for _ in range(100):
            if (found := run(client, "cat /root/started")).out:
                break
            time.sleep(0.02)
        assert found.out == "it's here\n"
    rack.stop(ORDER + 5)


def test_a_terminal_is_given_to_who_asks(node: paramiko.SSHClient):
    channel = node.get_transport().open_session()
    channel.get_pty("xterm", 100, 40)
    channel.settimeout(10)
    channel.exec_command("test -t 0 && stty size")
    assert channel.makefile("rb").read().split() == [b"40", b"100"]
    assert channel.recv_exit_status() == 0


def test_a_restarted_host_keeps_its_disk_and_loses_its_processes(rack: RunningRack):
    with rack.login(rack.start(ORDER + 6)) as client:
        run(client, "echo kept > /root/file; setsid sleep 77 >/dev/null 2>&1 </dev/null &")
    with rack.login(rack.start(ORDER + 6)) as client:
        assert run(client, "cat /root/file").out == "kept\n"
        assert "77" not in run(client, "cat /proc/[0-9]*/cmdline | tr '\\0' ' '").out or (
            rack.rack.isolation == isolation.PATH_ONLY
        )
    rack.stop(ORDER + 6)


def test_commands_on_a_kept_connection_do_not_wait_for_delayed_acknowledgements(rack: RunningRack, port: int):
    connection = socket.create_connection(("127.0.0.1", port))
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    transport = paramiko.Transport(connection)
    transport.start_client(timeout=10)
    transport.auth_publickey("root", rack.key)
    took_s = []
    for _ in range(9):
        began = time.monotonic()
        channel = transport.open_session()
        channel.exec_command("true")
        assert channel.recv_exit_status() == 0
        took_s.append(time.monotonic() - began)
    transport.close()
    assert sorted(took_s)[0] < 0.035  # with the delay even the fastest takes 40 ms


# -- files and ports


def test_files_come_back_as_they_were_put(node: paramiko.SSHClient):
    sent = bytes(range(256)) * 4096
    with node.open_sftp() as sftp:
        sftp.putfo(io.BytesIO(sent), "/tmp/blob")
        got = io.BytesIO()
        sftp.getfo("/tmp/blob", got)
    assert got.getvalue() == sent
    assert run(node, "wc -c < /tmp/blob").out.strip() == str(len(sent))


def test_a_relative_sftp_path_starts_at_home(node: paramiko.SSHClient):
    with node.open_sftp() as sftp:
        with sftp.open("relative", "w") as file:
            file.write("x")
        assert sftp.normalize("relative") == "/root/relative"


ECHO = (
    "import socket; s = socket.create_server(('127.0.0.1', 0)); print(s.getsockname()[1], flush=True); "
    "c, _ = s.accept(); c.sendall(c.recv(100).upper())"
)


def test_a_tunnel_reaches_what_the_node_listens_on(node: paramiko.SSHClient):
    channel = node.get_transport().open_session()
    channel.exec_command(f'python3 -c "{ECHO}"')
    inner_port = int(channel.makefile("rb").readline())
    tunnel = node.get_transport().open_channel("direct-tcpip", ("127.0.0.1", inner_port), ("127.0.0.1", 0))
    tunnel.sendall(b"hello")
    assert tunnel.recv(100) == b"HELLO"
    channel.close()


@pytest.fixture()
def host_port() -> Iterator[int]:
    """Something of the user's, or of the sandbox itself, that listens on loopback."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        listening.settimeout(0.2)
        thread = threading.Thread(target=_accept_once, args=(listening,), daemon=True)
        thread.start()
        yield listening.getsockname()[1]
        thread.join(2)


def _accept_once(listening: socket.socket) -> None:
    try:
        listening.accept()[0].close()
    except OSError:
        return


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "0.0.0.0", "10.0.0.1", "example.org"])
def test_a_tunnel_reaches_nothing_of_the_machines_own(node: paramiko.SSHClient, host_port: int, host: str):
    with pytest.raises(paramiko.ChannelException):
        node.get_transport().open_channel("direct-tcpip", (host, host_port), ("127.0.0.1", 0), timeout=5)


def test_a_node_opens_no_ports_on_the_machine(node: paramiko.SSHClient):
    with pytest.raises(paramiko.SSHException):
        node.get_transport().request_port_forward("127.0.0.1", 0)


# -- the rack


def test_start_takes_the_port_it_is_given_and_stop_frees_it(rack: RunningRack):
    with socket.create_server(("127.0.0.1", 0)) as held:
        wanted = held.getsockname()[1]
    assert rack.start(ORDER + 7, ssh_port=wanted) == wanted
    rack.stop(ORDER + 7)
    with socket.socket() as client:
        assert client.connect_ex(("127.0.0.1", wanted)) != 0


def test_a_taken_port_leaves_nothing_running(rack: RunningRack):
    with socket.create_server(("127.0.0.1", 0)) as held, pytest.raises(OSError):
        rack.start(ORDER + 8, ssh_port=held.getsockname()[1])
    began = time.monotonic()
    rack.stop(ORDER + 8)
    assert time.monotonic() - began < QUICK_S


def test_stopping_what_does_not_run_is_no_error(rack: RunningRack):
    rack.stop(987_654)


def test_a_node_tells_its_own_truth_whatever_the_offer_said(rack: RunningRack):
    liar = replace(TWO_4090, gpus=TWO_4090.gpus[:1], ram_bytes=16 << 30, threads=6, cores=3)
    with rack.login(rack.start(ORDER + 9, truth=liar)) as client:
        assert len(run(client, "nvidia-smi -L").out.splitlines()) == 1
        assert run(client, "nproc").out == "6\n"
        total = int(run(client, "free -b | sed -n 's/^Mem: *\\([0-9]*\\).*/\\1/p'").out)
        assert abs(total - (16 << 30)) < 1 << 20
    rack.stop(ORDER + 9)


def test_a_password_does_not_lie_about_in_readable_files(rack: RunningRack):
    for file in (rack.root / str(ORDER)).rglob("*"):
        if file.is_file() and not file.is_symlink() and file.stat().st_mode & 0o044 and _is_small(file):
            assert rack.password.encode() not in file.read_bytes(), file


def _is_small(file: Path) -> bool:
    return file.stat().st_size < 1 << 20
