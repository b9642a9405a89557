"""Fills a node's folder with what its container image, its order and its hardware put there.

The folder has two parts (see `isolation.NodeFolder`): the root file system, which belongs to the node, and
a hidden part that the node sees read-only at `/opt/sandbox`: the truth about the hardware, the environment
of the container, the commands that tell that truth (`nvidia-smi`, `df`, ...), and the stand-ins of the
engines that the image would contain. Everything in the hidden part is written anew at each start; the root
file system is kept, as a container's disk is kept when its host restarts.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import json
import os
import re
import shlex
import shutil
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path

from clorefleet.sandbox.isolation import Bind, NodeFolder
from clorefleet.sandbox.truth import ServerTruth

HIDDEN_PLACE = "/opt/sandbox"
WRITER_NAME = "writer.gguf"
"""The small model that writes the text of simulated engines."""
_PAYLOAD = Path(__file__).parent / "payload"
_ENV_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_KIB = 1024
_FOLDERS = {
    "root": 0o700,
    "tmp": 0o1777,
    "var/log": 0o755,
    "var/tmp": 0o1777,
    "run": 0o755,
    "opt": 0o755,
    "home": 0o755,
    "etc/ssh": 0o755,
    "mnt": 0o755,
    "srv": 0o755,
    "workspace": 0o755,
}
_ETC = {
    "passwd": "root:x:0:0:root:/root:/bin/bash\nnobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin\n",
    "group": "root:x:0:\nnogroup:x:65534:\n",
    "hosts": "127.0.0.1\tlocalhost\n::1\tlocalhost\n",
    "nsswitch.conf": "passwd: files\ngroup: files\nhosts: files\n",
    "os-release": 'NAME="Ubuntu"\nID=ubuntu\nVERSION_ID="22.04"\nPRETTY_NAME="Ubuntu 22.04 (simulated)"\n',
    "shells": "/bin/sh\n/bin/bash\n",
}


class Software(StrEnum):
    """What an image has besides a shell and Python."""

    BASE = "base"
    LLAMACPP = "llama.cpp"
    SGLANG = "sglang"
    KTRANSFORMERS = "ktransformers"
    VLLM = "vllm"


_IMAGES: tuple[tuple[str, Software], ...] = (
    ("ghcr.io/ggml-org/llama.cpp:", Software.LLAMACPP),
    ("lmsysorg/sglang", Software.SGLANG),
    ("vllm/vllm-openai", Software.VLLM),
    ("approachingai/", Software.KTRANSFORMERS),
)
_OWN_SSHD = ("cloreai/",)
_PROGRAM_FOLDERS = ("/usr/local/bin", "/usr/bin", "/bin", "/usr/sbin", "/sbin")
_HUB_CLIENT_IN = (Software.SGLANG, Software.KTRANSFORMERS, Software.VLLM)


def software_of(image: str) -> Software:
    """What is installed in `image`; a registry's name before it is ignored."""
    name = image.removeprefix("docker.io/")
    return next((software for start, software in _IMAGES if name.startswith(start)), Software.BASE)


def has_own_sshd(image: str) -> bool:
    """Clore's own images start an SSH server; any other has one only with `autossh_entrypoint`."""
    return image.removeprefix("docker.io/").startswith(_OWN_SSHD)


@dataclass(frozen=True, slots=True)
class Furnishing:
    """What a node is made of."""

    order_id: int
    truth: ServerTruth
    image: str
    env: Mapping[str, str]
    """The order's own variables."""
    hub_url: str
    writer_gguf: Path | None
    load_scale: float
    """Real seconds of a simulated engine's loading per second that the real one would take."""


def node_environment(furnishing: Furnishing, *, prefix: str) -> dict[str, str]:
    """What every process of the node starts with. The hub and the package index are ours whatever the order
    says: the sandbox never leaves loopback."""
    hidden = f"{prefix}{HIDDEN_PLACE}"
    inner = {
        name: text for name, text in furnishing.env.items() if _ENV_NAME.fullmatch(name) and "\0" not in text
    }
    return {
        "LANG": "C.UTF-8",
        "NVIDIA_VISIBLE_DEVICES": "all",
        "PATH": ":".join([f"{hidden}/bin", *(f"{prefix}{folder}" for folder in _PROGRAM_FOLDERS)]),
        **inner,
        "HOME": f"{prefix}/root",
        "USER": "root",
        "LOGNAME": "root",
        "SHELL": "/bin/bash" if Path("/bin/bash").exists() else "/bin/sh",
        "HOSTNAME": f"order-{furnishing.order_id}",
        "HF_ENDPOINT": furnishing.hub_url,
        "PIP_INDEX_URL": f"{furnishing.hub_url}/simple",
    }


def furnish(folder: NodeFolder, furnishing: Furnishing, *, prefix: str) -> None:
    """Write both parts of the folder; a root file system that exists keeps its content."""
    for name, mode in _FOLDERS.items():
        path = folder.rootfs / name
        path.mkdir(parents=True, exist_ok=True)
        path.chmod(mode)
    shutil.rmtree(folder.rootfs / "run/gpu", ignore_errors=True)  # claims of processes of an earlier start
    for name, text in _ETC.items():
        _write_new(folder.rootfs / "etc" / name, text)
    _write_new(folder.rootfs / "etc/hostname", f"order-{furnishing.order_id}\n")
    if folder.hidden.exists():
        shutil.rmtree(folder.hidden)
    (folder.hidden / "bin").mkdir(parents=True)
    (folder.hidden / "payload").mkdir()
    truth = {
        **asdict(furnishing.truth),
        "lies": sorted(furnishing.truth.lies),
        "order_id": furnishing.order_id,
        "image": furnishing.image,
        "software": software_of(furnishing.image).value,
        "load_scale": furnishing.load_scale,
    }
    _write(folder.hidden / "truth.json", json.dumps(truth, indent=1))
    _write(folder.hidden / "meminfo", _meminfo(furnishing.truth))
    _write(folder.hidden / "cpuinfo", _cpuinfo(furnishing.truth))
    _write(folder.hidden / "environment", _exports(node_environment(furnishing, prefix=prefix)), mode=0o600)
    _write(folder.hidden / "login", _LOGIN, mode=0o755)
    if prefix:
        _link_hidden(folder, furnishing.writer_gguf)
    hidden = f"{prefix}{HIDDEN_PLACE}"
    for name, text in _programs(software_of(furnishing.image), hidden=hidden, has_root=not prefix).items():
        _write(folder.hidden / "bin" / name, text, mode=0o755)
    if software_of(furnishing.image) is Software.LLAMACPP:
        (folder.rootfs / "app").mkdir(exist_ok=True)
        _write(
            folder.rootfs / "app/llama-server",
            f'#!/bin/sh\nexec {hidden}/bin/llama-server "$@"\n',
            mode=0o755,
        )


def hidden_binds(folder: NodeFolder, furnishing: Furnishing) -> list[Bind]:
    """What a node with its own root needs to see of the hidden part."""
    (folder.hidden / WRITER_NAME).touch()
    binds = [Bind(folder.hidden, HIDDEN_PLACE), Bind(_PAYLOAD, f"{HIDDEN_PLACE}/payload")]
    if furnishing.writer_gguf is not None:
        binds.append(Bind(furnishing.writer_gguf, f"{HIDDEN_PLACE}/{WRITER_NAME}"))
    return binds


def told_files() -> dict[str, str]:
    """Files of /proc that describe the simulated machine, and where they come from."""
    return {name: f"{HIDDEN_PLACE}/{name}" for name in ("meminfo", "cpuinfo")}


def _link_hidden(folder: NodeFolder, writer_gguf: Path | None) -> None:
    place = folder.rootfs / HIDDEN_PLACE.lstrip("/")
    place.parent.mkdir(parents=True, exist_ok=True)
    if not place.is_symlink():
        place.symlink_to(folder.hidden)
    (folder.hidden / "payload").rmdir()
    (folder.hidden / "payload").symlink_to(_PAYLOAD)
    if writer_gguf is not None:
        (folder.hidden / WRITER_NAME).symlink_to(writer_gguf)


# `cd` before `exec`, since a namespace is entered at its root folder.
_LOGIN = """#!/bin/sh
. "${0%/*}/environment"
cd "$HOME" || exit 1
case $# in
0) exec "$SHELL" -i ;;
*) exec "$SHELL" -c "$1" ;;
esac
"""


def _exports(env: Mapping[str, str]) -> str:
    return "".join(f"export {name}={shlex.quote(value)}\n" for name, value in env.items())


def _programs(software: Software, *, hidden: str, has_root: bool) -> dict[str, str]:
    """The node's own commands: short shell scripts in front of the payload."""
    python = shlex.quote(_payload_python())

    def light(module: str, *words: str) -> str:
        return _script(
            hidden, f'exec {python} -E -s -S {hidden}/payload/{module}.py {shlex.join(words)} "$@"'
        )

    def heavy(module: str) -> str:
        return _script(hidden, f'exec {python} -E -s {hidden}/payload/{module}.py "$@"')

    site = f"{hidden}/payload/{'vllm' if software is Software.VLLM else 'sglang'}_site"
    if software is Software.KTRANSFORMERS:
        site += f":{hidden}/payload/kt_site"
    node_python = shlex.quote(os.path.realpath(sys.executable))
    # This machine's own speed says nothing about the simulated one: its truth answers instead, and says so.
    measuring = (
        f'case "$1" in */.clorefleet/bin/measure.py) '
        f"exec {python} -E -s -S {hidden}/payload/measured_facts.py ;; esac\n"
    )
    if software in _HUB_CLIENT_IN:
        ordinary = _script(
            hidden,
            f'{measuring}export PYTHONPATH={site}${{PYTHONPATH:+:$PYTHONPATH}}\nexec {node_python} "$@"',
        )
    else:
        ordinary = _script(hidden, f'{measuring}exec {node_python} "$@"')
    programs = {
        "python3": ordinary,
        "python": ordinary,
        "nvidia-smi": light("nvidia_smi"),
        "nproc": light("host_facts", "nproc"),
        "lscpu": light("host_facts", "lscpu"),
        "df": light("host_facts", "df"),
    }
    if not has_root:
        programs["free"] = light("host_facts", "free")
    if software is Software.LLAMACPP:
        programs["llama-server"] = heavy("llama_server")
    if software in (Software.SGLANG, Software.KTRANSFORMERS):
        programs["sglang"] = _script(
            hidden, f'exec {python} -E -s {hidden}/payload/sglang_server.py --entry "$@"'
        )
    if software is Software.VLLM:
        programs["vllm"] = heavy("vllm_server")
    if software is Software.BASE:
        # What the index's stand-in wheels hand over to; of no use before one is installed.
        programs["sandbox-sglang"] = heavy("sglang_server")
        programs["sandbox-vllm"] = heavy("vllm_server")
    if software in _HUB_CLIENT_IN and importlib.util.find_spec("huggingface_hub") is not None:
        programs["hf"] = _script(
            hidden,
            f"exec {python} -c 'from huggingface_hub.cli.hf import main; main()' \"$@\"",
        )
    return programs


def _script(hidden: str, line: str) -> str:
    return (
        f"#!/bin/sh\nexport SANDBOX_HOME={hidden} SANDBOX_PYTHON={shlex.quote(_payload_python())}\n{line}\n"
    )


@functools.cache
def _payload_python() -> str:
    """The interpreter that has the sandbox's packages. The node's own `python3` is the bare one below it,
    so that nothing on a node can lean on a package that only we installed."""
    return sys.executable


def _meminfo(truth: ServerTruth) -> str:
    total = truth.ram_bytes // _KIB
    free = total * 96 // 100
    figures = {"MemTotal": total, "MemFree": free, "MemAvailable": free, "Buffers": 0, "Cached": total // 50}
    figures |= {"SwapCached": 0, "SwapTotal": 0, "SwapFree": 0, "Shmem": 0, "SReclaimable": 0}
    return "".join(f"{name + ':':<15} {kib:>12} kB\n" for name, kib in figures.items())


def _cpuinfo(truth: ServerTruth) -> str:
    flags = "fpu sse sse2 ssse3 sse4_1 sse4_2 fma avx avx2 f16c bmi1 bmi2"
    if re.search(r"EPYC 9|Xeon.*(Gold|Platinum|Silver)|Ryzen \d+ [79]\d{3}", truth.cpu_model):
        flags += " avx512f avx512bw avx512vl"
    vendor = "AuthenticAMD" if "AMD" in truth.cpu_model else "GenuineIntel"
    return "".join(
        f"processor\t: {thread}\nvendor_id\t: {vendor}\nmodel name\t: {truth.cpu_model}\nphysical id\t: 0\n"
        f"siblings\t: {truth.threads}\ncore id\t\t: {thread % max(1, truth.cores)}\n"
        f"cpu cores\t: {truth.cores}\nflags\t\t: {flags}\n\n"
        for thread in range(truth.threads)
    )


def _write(path: Path, text: str, *, mode: int = 0o644) -> None:
    path.write_text(text, "utf-8")
    path.chmod(mode)


def _write_new(path: Path, text: str) -> None:
    with contextlib.suppress(FileExistsError), path.open("x", encoding="utf-8") as file:
        file.write(text)
