"""Makes the calling process the first process of a simulated node, in a root of its own.

Run by the sandbox as `unshare ... python -I -S make_root.py SPEC`, where SPEC is the JSON that
`clorefleet.sandbox.isolation` writes. It is process 1 of fresh user, mount and pid namespaces. It binds
what the spec names, mounts proc and a minimal dev, changes the root, and lets go of the old one.

Two things are not obvious:

- At the end it enters a second user namespace. Mounts made in the first are *locked* for the second, so
  that nothing on the node can make a read-only bind writable again or look below it.
- When the user is root, so are the node's processes in the eyes of the kernel. Files of /proc that
  control the machine are therefore covered or made read-only, as container engines do.

Then it becomes `cat` on a pipe that the sandbox holds: when the sandbox is gone, so is the node. SIGCHLD
is ignored, so that the dead children that it inherits vanish instead of staying as zombies.

Only the standard library: this file also runs where nothing of the project is visible.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import socket
import sys
from pathlib import Path

MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC = 1, 2, 4, 8
MS_REMOUNT, MS_BIND, MS_REC = 32, 4096, 16384
MNT_DETACH = 2
CLONE_NEWNS, CLONE_NEWUSER = 0x20000, 0x10000000
_KEPT_FLAGS = {  # statvfs flag -> mount flag that a remount inside a user namespace must repeat
    os.ST_NOSUID: MS_NOSUID,
    os.ST_NODEV: MS_NODEV,
    os.ST_NOEXEC: MS_NOEXEC,
    os.ST_NOATIME: 1024,
    os.ST_NODIRATIME: 2048,
    os.ST_RELATIME: 1 << 21,
}
DEVICES = ("null", "zero", "full", "random", "urandom", "tty")
PROC_READ_ONLY = ("sys", "bus", "fs", "irq")
PROC_COVERED = ("sysrq-trigger", "kcore", "keys", "timer_list", "kmsg", "latency_stats", "sched_debug")

_libc = ctypes.CDLL(None, use_errno=True)


def _check(result: int, what: str) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


def mount(source: str, target: Path, kind: str = "", flags: int = 0, options: str = "") -> None:
    _check(
        _libc.mount(source.encode(), str(target).encode(), kind.encode() or None, flags, options.encode()),
        f"mount {source} on {target}",
    )


def bind(source: Path, target: Path, *, read_only: bool) -> None:
    if source.is_dir():
        target.mkdir(parents=True, exist_ok=True)
    elif not target.exists():  # inside a bind that is read-only already, the place has been prepared
        target.parent.mkdir(parents=True, exist_ok=True)
        target.touch()
    mount(str(source), target, flags=MS_BIND | MS_REC)
    if read_only:
        for place in _mounts_below(target):
            make_read_only(place)


def make_read_only(place: Path) -> None:
    had = os.statvfs(place).f_flag
    kept = sum(flag for seen, flag in _KEPT_FLAGS.items() if had & seen)
    mount("none", place, flags=MS_REMOUNT | MS_BIND | MS_RDONLY | kept)


def _mounts_below(target: Path) -> list[Path]:
    """The bind itself and every mount that came along with it."""
    base = str(target.resolve())
    places = []
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        place = line.split(" ")[4].encode().decode("unicode_escape")
        if place == base or place.startswith(base + "/"):
            places.append(Path(place))
    return places


def make_devices(root: Path, shm_bytes: int) -> None:
    dev = root / "dev"
    dev.mkdir(exist_ok=True)
    mount("tmpfs", dev, "tmpfs", MS_NOSUID | MS_NOEXEC, "mode=755,size=64k")
    for name in DEVICES:
        bind(Path("/dev") / name, dev / name, read_only=False)
    for name, target in {"fd": "/proc/self/fd", "stdin": "fd/0", "stdout": "fd/1", "stderr": "fd/2"}.items():
        (dev / name).symlink_to(target)
    (dev / "shm").mkdir()
    mount("tmpfs", dev / "shm", "tmpfs", MS_NOSUID | MS_NODEV, f"mode=1777,size={shm_bytes}")
    (dev / "pts").mkdir()
    try:
        mount("devpts", dev / "pts", "devpts", MS_NOSUID | MS_NOEXEC, "newinstance,ptmxmode=0666,mode=620")
        (dev / "ptmx").symlink_to("pts/ptmx")
    except OSError:
        pass  # some kernels refuse it in a user namespace; only programs that open terminals miss it


def make_proc(root: Path, told: dict[str, str]) -> None:
    proc = root / "proc"
    proc.mkdir(exist_ok=True)
    mount("proc", proc, "proc", MS_NOSUID | MS_NODEV | MS_NOEXEC)
    for name in PROC_READ_ONLY:
        if (proc / name).is_dir():
            mount(str(proc / name), proc / name, flags=MS_BIND | MS_REC)
            make_read_only(proc / name)
    for name in PROC_COVERED:
        if (proc / name).exists():
            mount("/dev/null", proc / name, flags=MS_BIND)
    for name, source in told.items():
        mount(source, proc / name, flags=MS_BIND)
        make_read_only(proc / name)


def change_root(root: Path) -> None:
    os.chdir(root)
    _check(_libc.pivot_root(b".", b"."), "pivot_root")
    _check(_libc.umount2(b".", MNT_DETACH), "umount of the old root")
    os.chdir("/")


def lock_mounts() -> None:
    """Enter a second user and mount namespace with the same single user."""
    _check(_libc.unshare(CLONE_NEWUSER | CLONE_NEWNS), "unshare")
    Path("/proc/self/setgroups").write_text("deny")
    Path("/proc/self/uid_map").write_text("0 0 1")
    Path("/proc/self/gid_map").write_text("0 0 1")


def main() -> None:
    spec = json.loads(Path(sys.argv[1]).read_text("utf-8"))
    root = Path(spec["root"])
    mount(str(root), root, flags=MS_BIND | MS_REC)
    for target, place in spec["links"]:
        link = root / place.lstrip("/")
        if not link.is_symlink():
            link.symlink_to(target)
    for source, place in spec["binds"]:
        bind(Path(source), root / place.lstrip("/"), read_only=True)
    make_devices(root, spec["shm_bytes"])
    make_proc(root, spec["proc"])
    change_root(root)
    socket.sethostname(spec["hostname"])
    lock_mounts()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    null = os.open("/dev/null", os.O_WRONLY)
    os.dup2(null, 1)
    os.dup2(null, 2)
    os.execve("/bin/cat", ["cat"], spec["env"])


if __name__ == "__main__":
    main()
