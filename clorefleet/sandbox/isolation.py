"""What separates a simulated node from the user's machine.

Two ways, tried in this order:

`namespaces` (Linux): the node is a tree of processes with its own user, mount, pid, host name and IPC
    namespaces. Its root is its own folder; the system's folders and the Python that runs us are bound into
    it read-only at their usual paths. Works for root and, where the kernel allows it, for ordinary users.
    Commands enter by `nsenter`. Killing the first process kills the node.
`path-only` (elsewhere): commands run with a working directory, HOME and PATH in the node's folder, and PATH
    holds an allow-list. This keeps accidents in; it does not keep a program in that names absolute paths.

There is no network namespace in either: the loopback interface is shared with the machine, so that a
node's ports can collide with others' ports. `Rack` lets tunnels reach only ports that the node opened.

Only this module knows how a process gets into a node.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

NAMESPACES = "namespaces"
PATH_ONLY = "path-only"
PATH_ONLY_WARNING = (
    "Nodes are not isolated: this system gives no user namespaces. Commands that nodes run stay in the "
    "node's folder only as long as they use relative paths and programs of the allow-list."
)
SYSTEM_FOLDERS = ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32")
SYSTEM_FILES = (
    "/etc/alternatives",
    "/etc/ld.so.cache",
    "/etc/ld.so.conf",
    "/etc/ld.so.conf.d",
    "/etc/localtime",
    "/etc/ssl/certs",
    "/etc/ssl/openssl.cnf",
)
_ALLOWED = (
    "[ awk base64 basename bash cat chmod cksum cmp comm cp curl cut date dd diff dirname du echo env "
    "expr false find flock free getconf grep gunzip gzip head hostname id kill ln ls md5sum mkdir mkfifo "
    "mktemp mv nice nohup od pgrep pkill printf ps pwd readlink realpath rm rmdir sed seq setsid sh "
    "sha256sum sleep sort split stat stdbuf stty sync tac tail tar tee test timeout touch tr true "
    "truncate tty uname uniq wc wget which xargs xz zcat"
)
ALLOWED_PROGRAMS = tuple(_ALLOWED.split())
"""What a `path-only` node finds on its PATH, besides its own programs."""
START_S_MAX = 15.0
_LISTEN_STATE = "0A"
_PAYLOAD = Path(__file__).parent / "payload"


class NodeDidNotStart(Exception):
    """The namespaces of a node could not be made; the message holds what the kernel said."""


@dataclass(frozen=True, slots=True)
class NodeFolder:
    """Where one node lives on the user's disk."""

    path: Path

    @property
    def rootfs(self) -> Path:
        """The node's `/`."""
        return self.path / "rootfs"

    @property
    def hidden(self) -> Path:
        """What the sandbox tells the node's programs; the node sees it read-only at `/opt/sandbox`."""
        return self.path / "hidden"


@dataclass(frozen=True, slots=True)
class Launch:
    """How to start a process on the node: arguments and environment of the *host's* exec."""

    argv: list[str]
    env: dict[str, str]
    cwd: Path | None


class NodeSystem(Protocol):
    """The processes of one node."""

    prefix: str
    """What stands before a path of the node for a program that runs on it: "" where it has its own root."""

    @property
    def root(self) -> Path:
        """The node's `/` as the host can open it, with what is mounted there."""
        ...

    async def start(
        self, *, env: Mapping[str, str], shm_bytes: int, proc: Mapping[str, str], binds: Sequence[Bind] = ()
    ) -> None: ...

    def launch(self, argv: Sequence[str]) -> Launch: ...

    def pids(self) -> set[int]:
        """Process ids as the host counts them."""
        ...

    async def stop(self) -> None:
        """Kill everything that runs on the node."""
        ...


@dataclass(frozen=True, slots=True)
class Bind:
    source: Path
    place: str
    """Absolute, in the node."""


def python_binds() -> list[Bind]:
    """The interpreter that runs us and its packages, at their own paths.

    A virtual environment is a chain of links to a base installation; each link's folder is needed.
    """
    prefixes = [Path(sys.prefix), Path(sys.base_prefix), Path(sys.base_prefix).resolve()]
    hop = Path(sys.executable)
    for _ in range(16):
        prefixes.append(hop.parent.parent)
        if not hop.is_symlink():
            break
        hop = hop.parent / hop.readlink()
    for package in ("xllamacpp", "numpy"):
        found = importlib.util.find_spec(package)
        if found is not None and found.origin is not None:
            prefixes.append(Path(found.origin).parent.parent)
    library = sysconfig.get_config_var("LIBDIR")
    if sysconfig.get_config_var("Py_ENABLE_SHARED") and isinstance(library, str):
        prefixes.append(Path(library))
    return [Bind(path, str(path)) for path in _outermost(prefixes)]


def _outermost(paths: Iterable[Path]) -> list[Path]:
    """Without duplicates, without what lies in another one, and without what is bound anyway."""
    system = [Path(folder) for folder in SYSTEM_FOLDERS]
    kept: list[Path] = []
    for path in sorted({Path(os.path.normpath(path)) for path in paths}, key=lambda path: len(path.parts)):
        is_lent_already = any(path.is_relative_to(folder) for folder in [*kept, *system])
        # A compiled-in prefix may lie where this user may not look; then nothing of it is in use either.
        if len(path.parts) > 1 and not is_lent_already and os.path.isdir(path):  # noqa: PTH112
            kept.append(path)
    return kept


class NamespaceSystem:
    """A node in namespaces of its own."""

    prefix = ""

    def __init__(self, folder: NodeFolder, hostname: str) -> None:
        self._folder = folder
        self._hostname = hostname
        self._holder: asyncio.subprocess.Process | None = None
        self._init_pid = 0
        self._pid_namespace = ""

    @property
    def root(self) -> Path:
        return Path(f"/proc/{self._init_pid}/root")

    async def start(
        self, *, env: Mapping[str, str], shm_bytes: int, proc: Mapping[str, str], binds: Sequence[Bind] = ()
    ) -> None:
        """Returns when process 1 runs in its own root.

        Raises:
            NodeDidNotStart: with the first lines of what failed.
        """
        spec = self._folder.path / "root.json"
        described = {
            "root": str(self._folder.rootfs),
            "hostname": self._hostname,
            "env": {**env},
            "shm_bytes": shm_bytes,
            "proc": {**proc},
            **_layout(binds),
        }
        spec.touch(mode=0o600)
        spec.write_text(json.dumps(described), "utf-8")
        self._holder = await asyncio.create_subprocess_exec(
            *_unshare_argv(str(_PAYLOAD / "make_root.py"), str(spec)),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={},
            start_new_session=True,
        )
        try:
            await asyncio.wait_for(self._wait_until_ready(), START_S_MAX)
        except BaseException:
            await self.stop()
            raise

    async def _wait_until_ready(self) -> None:
        holder = self._holder
        if holder is None or holder.stdout is None or holder.stderr is None:
            raise NodeDidNotStart("the process was not started")
        if await holder.stdout.readline() != b"ready\n":
            said = (await holder.stderr.read(4000)).decode("utf-8", "replace").strip()
            raise NodeDidNotStart(said.splitlines()[-1] if said else "the first process ended")
        self._init_pid = _child_of(holder.pid)
        self._pid_namespace = str(Path(f"/proc/{self._init_pid}/ns/pid").readlink())

    def launch(self, argv: Sequence[str]) -> Launch:
        if self._holder is None:
            raise NodeDidNotStart("the node is not running")
        return Launch([*_entering(self._holder.pid, self._init_pid), *argv], env={}, cwd=None)

    def pids(self) -> set[int]:
        if not self._pid_namespace:
            return set()
        found = set()
        for pid in _all_pids():
            with contextlib.suppress(OSError):
                if str(Path(f"/proc/{pid}/ns/pid").readlink()) == self._pid_namespace:
                    found.add(pid)
        return found

    async def stop(self) -> None:
        holder, self._holder = self._holder, None
        if holder is None:
            return
        # Process 1 takes every process of the node with it. While its parent lives, its id is not reused.
        if self._init_pid and holder.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._init_pid, signal.SIGKILL)
        elif holder.returncode is None:
            holder.kill()
        self._init_pid, self._pid_namespace = 0, ""
        await holder.wait()


class PathOnlySystem:
    """A node that is only a folder and an environment; processes are told apart by a variable."""

    def __init__(self, folder: NodeFolder, hostname: str) -> None:
        self._folder = folder
        self._mark = f"CLOREFLEET_SANDBOX_NODE={folder.path}"
        self.prefix = str(folder.rootfs)

    @property
    def root(self) -> Path:
        return self._folder.rootfs

    async def start(
        self, *, env: Mapping[str, str], shm_bytes: int, proc: Mapping[str, str], binds: Sequence[Bind] = ()
    ) -> None:
        programs = self._folder.rootfs / "usr/bin"
        programs.mkdir(parents=True, exist_ok=True)
        for name in ALLOWED_PROGRAMS:
            found = shutil.which(name)
            if found is not None and not (programs / name).is_symlink():
                (programs / name).symlink_to(found)

    def launch(self, argv: Sequence[str]) -> Launch:
        name, _, value = self._mark.partition("=")
        return Launch(list(argv), env={name: value}, cwd=self._folder.rootfs / "root")

    def pids(self) -> set[int]:
        found = set()
        for pid in _all_pids():
            with contextlib.suppress(OSError):
                if self._mark.encode() in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"):
                    found.add(pid)
        return found

    async def stop(self) -> None:
        for pid in self.pids():
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGKILL)


def make_system(kind: str, folder: NodeFolder, *, hostname: str) -> NodeSystem:
    return NamespaceSystem(folder, hostname) if kind == NAMESPACES else PathOnlySystem(folder, hostname)


@functools.cache
def available() -> str:
    """`namespaces` if a node really starts and can be entered that way on this machine, else `path-only`."""
    if not sys.platform.startswith("linux") or not (shutil.which("unshare") and shutil.which("nsenter")):
        return PATH_ONLY
    with tempfile.TemporaryDirectory(prefix="clorefleet-probe-") as name:
        folder = NodeFolder(Path(name))
        for part in (folder.rootfs, folder.hidden):
            part.mkdir()
        spec = {"root": str(folder.rootfs), "hostname": "probe", "env": {}, "shm_bytes": 65536, "proc": {}}
        file = folder.path / "root.json"
        file.write_text(json.dumps({**spec, **_layout([])}), "utf-8")
        try:
            return (
                NAMESPACES
                if _can_enter(_unshare_argv(str(_PAYLOAD / "make_root.py"), str(file)))
                else PATH_ONLY
            )
        except (OSError, IndexError, ValueError, subprocess.TimeoutExpired):
            return PATH_ONLY


def _can_enter(unshare_argv: Sequence[str]) -> bool:
    """Start a node's first process, run one command beside it, and end both."""
    pipe = subprocess.PIPE
    with subprocess.Popen(unshare_argv, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL) as holder:
        try:
            if holder.stdout is None or holder.stdout.readline() != b"ready\n":
                return False
            words = [*_entering(holder.pid, _child_of(holder.pid)), "/bin/true"]
            return (
                subprocess.run(words, capture_output=True, timeout=START_S_MAX, check=False).returncode == 0
            )
        finally:
            holder.kill()  # `--kill-child` takes the first process along


def owns_listener(pids: Iterable[int], port: int) -> bool:
    """Whether one of these processes listens on the TCP port. Always true where there is no /proc to ask."""
    if not Path("/proc/net/tcp").exists():
        return True
    sockets = {f"socket:[{inode}]" for inode in _listening_inodes(port)}
    return bool(sockets) and any(link in sockets for pid in pids for link in _open_files(pid))


def _listening_inodes(port: int) -> Iterator[str]:
    suffix = f":{port:04X}"
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        with contextlib.suppress(OSError):
            for line in Path(table).read_text().splitlines()[1:]:
                fields = line.split()
                if fields[3] == _LISTEN_STATE and fields[1].endswith(suffix):
                    yield fields[9]


def _open_files(pid: int) -> Iterator[str]:
    with contextlib.suppress(OSError):
        for entry in os.scandir(f"/proc/{pid}/fd"):
            with contextlib.suppress(OSError):
                yield str(Path(entry.path).readlink())


def _all_pids() -> list[int]:
    with contextlib.suppress(OSError):
        return [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]
    return []


def _layout(binds: Sequence[Bind]) -> dict[str, list[tuple[str, str]]]:
    """Links and read-only binds of a node's root. Distributions that merged /bin into /usr have links."""
    links, bound = [], []
    for folder in map(Path, SYSTEM_FOLDERS):
        if folder.is_symlink():
            links.append((str(folder.readlink()), str(folder)))
        elif folder.is_dir():
            bound.append((str(folder), str(folder)))
    bound += [(file, file) for file in SYSTEM_FILES if Path(file).exists()]
    bound += [(str(bind.source), bind.place) for bind in [*python_binds(), *binds]]
    return {"links": links, "binds": bound}


def _child_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/task/{pid}/children").read_text().split()[0])


def _entering(holder_pid: int, init_pid: int) -> list[str]:
    """What stands before a command that runs on the node.

    Two steps, since process 1 is in a second user namespace (see `make_root.py`): the first owns the pid,
    host name and IPC namespaces, and an ordinary user may join those only from there.
    """
    outer, inner = f"/proc/{holder_pid}/ns", f"/proc/{init_pid}/ns"
    return [
        *(_program("nsenter"), f"--user={outer}/user", f"--pid={inner}/pid", f"--uts={inner}/uts"),
        *(f"--ipc={inner}/ipc", "--preserve-credentials", "--"),
        *(_program("nsenter"), f"--user={inner}/user", f"--mount={inner}/mnt"),
        *("--preserve-credentials", "--"),
    ]


def _unshare_argv(*script: str) -> list[str]:
    # fmt: off
    return [
        _program("unshare"), "--user", "--map-root-user", "--mount", "--pid", "--uts", "--ipc", "--fork",
        "--kill-child", "--", sys.executable, "-I", "-S", *script,
    ]
    # fmt: on


@functools.cache
def _program(name: str) -> str:
    found = shutil.which(name)
    if found is None:
        raise NodeDidNotStart(f"`{name}` is not installed")
    return found
