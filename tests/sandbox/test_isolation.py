"""Attacks from a node on the machine that it runs on; each must fail or stay inside the node's folder."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import paramiko
import pytest

from clorefleet.sandbox import isolation
from clorefleet.sandbox.node import resolve_below
from tests.sandbox.node_world import RunningRack, run, tiny_assets

needs_namespaces = pytest.mark.skipif(
    isolation.available() != isolation.NAMESPACES, reason="this system gives no user namespaces"
)
ORDER = 11
LENT = (sys.prefix, sys.base_prefix)
"""The interpreter, which may lie in the user's home."""


@pytest.fixture(scope="module")
def secret(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of the user, outside every node's folder."""
    file = tmp_path_factory.mktemp("user") / "secret.txt"
    file.write_text("the user's own")
    return file


@pytest.fixture(scope="module")
def rack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningRack]:
    folder = tmp_path_factory.mktemp("rack")
    running = RunningRack(folder / "nodes", tiny_assets(folder))
    yield running
    running.close()


@pytest.fixture(scope="module")
def node(rack: RunningRack) -> Iterator[paramiko.SSHClient]:
    port = rack.start(ORDER)
    with rack.login(port) as client:
        yield client


def assert_works(node: paramiko.SSHClient) -> None:
    """Attacks must fail because they are prevented, and not because the node runs nothing any more."""
    assert run(node, "echo works").out == "works\n"


@needs_namespaces
@pytest.mark.parametrize(
    "attack",
    [
        "cat {secret}",
        "cat ../../../../../../../../../../{secret}",
        "ln -sf {secret} /root/link && cat /root/link",
        "cat /proc/1/root{secret}",
        "cat /proc/1/cwd{secret}",
        "unshare -Urm cat {secret}",
        "cat {state}/host_key",
        "ls {state}",
    ],
)
def test_the_users_files_cannot_be_read(
    node: paramiko.SSHClient, rack: RunningRack, secret: Path, attack: str
):
    state = rack.root / str(ORDER)
    assert secret.exists() and (state / "host_key").exists()
    result = run(node, attack.format(secret=secret, state=state))
    assert result.status != 0
    assert "the user's own" not in result.out
    assert_works(node)


@needs_namespaces
def test_a_node_has_a_home_of_its_own(node: paramiko.SSHClient):
    lent = {
        Path(path).relative_to(Path.home()).parts[0]
        for path in LENT
        if Path(path).is_relative_to(Path.home())
    }
    of_host = {entry.name for entry in Path.home().iterdir()}
    seen = set(run(node, f"ls -A /root {Path.home()}").out.split())
    assert not seen & (of_host - lent)


@needs_namespaces
@pytest.mark.parametrize(
    "place",
    ["/usr/bin/evil", "/usr/lib/evil", sys.prefix + "/evil", "/opt/sandbox/evil", "/etc/alternatives/evil"],
)
def test_what_the_machine_lends_cannot_be_written(node: paramiko.SSHClient, place: str):
    assert run(node, f"touch {place}").status != 0
    assert not Path(place).exists()
    assert_works(node)


@needs_namespaces
@pytest.mark.parametrize(
    "trick",
    [
        "mount -o remount,bind,rw /usr && touch /usr/evil",
        "umount -l /usr && touch /usr/evil",
        "unshare -Urm sh -c 'mount -o remount,bind,rw /usr && touch /usr/evil'",
        "echo 0 > /proc/sys/kernel/hostname",
        "echo h > /proc/sysrq-trigger && grep -q . /proc/sysrq-trigger",
        "mknod /root/disk b 8 0",
    ],
)
def test_being_root_inside_does_not_help(node: paramiko.SSHClient, trick: str):
    assert run(node, trick).status != 0
    assert not Path("/usr/evil").exists()
    assert_works(node)


@needs_namespaces
def test_an_absolute_write_lands_in_the_nodes_folder(node: paramiko.SSHClient, rack: RunningRack):
    name = f"/var/clorefleet-{os.getpid()}"
    assert run(node, f"echo inside > {name} && cat {name}").out == "inside\n"
    assert not Path(name).exists()
    assert (rack.root / str(ORDER) / "rootfs" / name.lstrip("/")).read_text() == "inside\n"


@needs_namespaces
def test_the_machines_processes_are_neither_seen_nor_killed(node: paramiko.SSHClient):
    sleeper = subprocess.Popen(["sleep", "60"])
    try:
        seen = run(node, "cat /proc/[0-9]*/cmdline | tr '\\0' '\\n'").out
        assert "pytest" not in seen
        run(node, f"kill -9 {sleeper.pid}; kill -9 -1")
        assert sleeper.poll() is None
    finally:
        sleeper.kill()
        sleeper.wait()


@needs_namespaces
def test_other_nodes_are_out_of_sight(rack: RunningRack, node: paramiko.SSHClient):
    port = rack.start(ORDER + 1)
    with rack.login(port) as other:
        run(other, "echo mine > /root/private; setsid sleep 41 >/dev/null 2>&1 </dev/null &")
        assert run(node, "cat /root/private").status != 0
        assert "41" not in run(node, "cat /proc/[0-9]*/cmdline | tr '\\0' ' '").out
    rack.stop(ORDER + 1)


@needs_namespaces
def test_only_harmless_devices_exist(node: paramiko.SSHClient):
    names = set(run(node, "ls /dev").out.split())
    assert {"null", "zero", "urandom", "full", "random", "shm"} <= names
    assert not names & {"sda", "vda", "mem", "kmem", "kmsg", "port", "fuse", "kvm"}


def test_stopping_a_node_ends_every_process_of_it(rack: RunningRack):
    port = rack.start(ORDER + 2)
    mark = f"314.{os.getpid()}"
    with rack.login(port) as client:
        run(client, f"setsid nohup sleep {mark} >/dev/null 2>&1 </dev/null &")
        assert any(_is_running(mark) or time.sleep(0.02) for _ in range(100))
    rack.stop(ORDER + 2)
    assert not _is_running(mark)
    assert not (rack.root / str(ORDER + 2)).exists()


def _is_running(mark: str) -> bool:
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                words = (entry / "cmdline").read_bytes().split(b"\0")
            except OSError:
                continue
            if words[:2] == [b"sleep", mark.encode()]:
                return True
    return False


# -- SFTP, which the sandbox's own process serves from outside of the namespaces


@pytest.fixture()
def sftp(node: paramiko.SSHClient) -> Iterator[paramiko.SFTPClient]:
    client = node.open_sftp()
    yield client
    client.close()


@pytest.mark.parametrize(
    "path", ["{secret}", "../../../../../../..{secret}", "link-to-secret", "link-to-root{secret}"]
)
def test_sftp_cannot_read_outside(sftp: paramiko.SFTPClient, secret: Path, path: str):
    for name, target in (("link-to-secret", str(secret)), ("link-to-root", "/../../..")):
        if name not in sftp.listdir("/root"):
            sftp.symlink(target, f"/root/{name}")
    with pytest.raises(OSError):
        sftp.open(path.format(secret=secret)).read()


def test_sftp_cannot_write_outside(sftp: paramiko.SFTPClient, secret: Path):
    outside = secret.parent / "planted"
    sftp.symlink(str(secret.parent), "/root/way-out")
    for path in (str(outside), "/root/way-out/planted"):
        with pytest.raises(OSError):
            sftp.open(path, "w").write("x")
    assert not outside.exists()
    assert secret.read_text() == "the user's own"


def test_sftp_removes_a_link_and_not_what_it_names(sftp: paramiko.SFTPClient):
    with sftp.open("/root/kept", "w") as file:
        file.write("kept")
    sftp.symlink("/root/kept", "/root/short-lived")
    sftp.remove("/root/short-lived")
    assert sftp.open("/root/kept").read() == b"kept"


def test_sftp_sees_the_roots_files_where_commands_see_them(
    sftp: paramiko.SFTPClient, node: paramiko.SSHClient
):
    with sftp.open("/root/from-sftp", "w") as file:
        file.write("same\n")
    assert run(node, "cat /root/from-sftp").out == "same\n"
    assert stat.S_ISDIR(sftp.stat("/root").st_mode or 0)


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        (b"/a/../../../b", b"/b"),
        (b"/up/x", b"/x"),
        (b"/away/x", b"/etc/x"),
        (b"/hop/x", b"/etc/x"),
        (b"//./a//", b"/a"),
    ],
)
def test_links_are_followed_as_if_the_folder_were_the_root(tmp_path: Path, path: bytes, expected: bytes):
    (tmp_path / "up").symlink_to("../../../..")
    (tmp_path / "away").symlink_to("/etc")
    (tmp_path / "hop").symlink_to("away")
    root = os.fsencode(tmp_path)
    assert resolve_below(root, path) == root + expected


def test_a_circle_of_links_is_an_error(tmp_path: Path):
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    with pytest.raises(OSError):
        resolve_below(os.fsencode(tmp_path), b"/a")


# -- without namespaces


def test_the_fallback_says_that_it_isolates_nothing_and_still_works(tmp_path: Path):
    rack = RunningRack(tmp_path / "nodes", tiny_assets(tmp_path), kind=isolation.PATH_ONLY)
    try:
        assert "not isolated" in rack.rack.isolation_warning
        port = rack.start(1)
        with rack.login(port) as client:
            assert run(client, "pwd; echo $GREETING").out.splitlines() == [
                str(rack.root / "1" / "rootfs" / "root"),
                "it's here",
            ]
            assert run(client, "command -v docker").status != 0
    finally:
        rack.close()


ENTER = """
import asyncio, subprocess, sys
from pathlib import Path
from clorefleet.sandbox import isolation

async def main(folder):
    folder.rootfs.mkdir()
    system = isolation.NamespaceSystem(folder, "n1")
    await system.start(env={}, shm_bytes=65536, proc={})
    launch = system.launch(["/bin/sh", "-c", "id -u; hostname"])
    done = subprocess.run(launch.argv, env=launch.env, capture_output=True, text=True)
    print(done.stdout, done.stderr)
    await system.stop()

asyncio.run(main(isolation.NodeFolder(Path(sys.argv[1]))))
"""
NOBODY = 65534


@needs_namespaces
@pytest.mark.skipif(
    os.geteuid() != 0 or shutil.which("setpriv") is None, reason="needs root to become somebody else"
)
def test_an_ordinary_user_enters_a_node_as_its_root():
    folder = Path(tempfile.mkdtemp(dir="/var/tmp"))
    os.chown(folder, NOBODY, NOBODY)
    words = [
        "setpriv",
        f"--reuid={NOBODY}",
        f"--regid={NOBODY}",
        "--clear-groups",
        sys.executable,
        "-c",
        ENTER,
    ]
    try:
        done = subprocess.run([*words, str(folder)], capture_output=True, text=True, check=False)
    finally:
        shutil.rmtree(folder)
    if any(word in done.stderr for word in ("Permission denied", "PermissionError", "ModuleNotFoundError")):
        pytest.skip("another user may not read this interpreter or checkout")
    assert done.stdout.split() == ["0", "n1"], done.stderr


LEFT_BEHIND = """
import asyncio, subprocess, sys
from pathlib import Path
from clorefleet.sandbox import isolation

async def main(folder):
    folder.rootfs.mkdir()
    system = isolation.NamespaceSystem(folder, "n1")
    await system.start(env={}, shm_bytes=65536, proc={})
    launch = system.launch(["/bin/sh", "-c", f"setsid sleep {sys.argv[2]} & echo started; wait"])
    subprocess.run(launch.argv, env=launch.env)

asyncio.run(main(isolation.NodeFolder(Path(sys.argv[1]))))
"""


@needs_namespaces
def test_a_sandbox_that_is_killed_leaves_no_process_behind(tmp_path: Path):
    mark = f"271.{os.getpid()}"
    words = [sys.executable, "-c", LEFT_BEHIND, str(tmp_path), mark]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as sandbox:
        assert sandbox.stdout is not None and sandbox.stdout.readline() == "started\n"
        assert any(_is_running(mark) or time.sleep(0.02) for _ in range(100))
        sandbox.kill()
        sandbox.wait()
    assert any(not _is_running(mark) or time.sleep(0.02) for _ in range(100))
