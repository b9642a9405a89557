"""`nproc`, `lscpu`, `df` and `free` of a simulated server."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import node_truth
import scaled_weights

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30
_OWN_FOLDERS = ("root", "tmp", "var", "opt", "home", "srv", "workspace", "mnt", "app", "run")
_DISK_TOTAL_EXTRA = 60 * GIB
"""The image and the system, which are there before anything is downloaded."""


def nproc(words: list[str]) -> int:
    threads = node_truth.load()["threads"]
    ignore = next((int(word.partition("=")[2]) for word in words if word.startswith("--ignore=")), 0)
    print(max(1, threads - ignore))
    return 0


def lscpu(_words: list[str]) -> int:
    truth = node_truth.load()
    threads, cores = truth["threads"], max(1, truth["cores"])
    flags = next(
        (
            line.split(":", 1)[1].strip()
            for line in (node_truth.HOME / "cpuinfo").open()
            if line.startswith("flags")
        ),
        "",
    )
    rows = {
        "Architecture": "x86_64",
        "CPU op-mode(s)": "32-bit, 64-bit",
        "Byte Order": "Little Endian",
        "CPU(s)": threads,
        "On-line CPU(s) list": f"0-{threads - 1}",
        "Vendor ID": "AuthenticAMD" if "AMD" in truth["cpu_model"] else "GenuineIntel",
        "Model name": truth["cpu_model"],
        "Thread(s) per core": max(1, threads // cores),
        "Core(s) per socket": cores,
        "Socket(s)": 1,
        "Flags": flags,
        "NUMA node(s)": 1,
        "NUMA node0 CPU(s)": f"0-{threads - 1}",
    }
    for name, value in rows.items():
        print(f"{name + ':':<33}{value}")
    return 0


def disk_used_bytes() -> int:
    """What the node's own folders hold; scaled weights count at their true size."""
    total = 0
    for folder in _OWN_FOLDERS:
        for place, names, files in os.walk(node_truth.ROOT / folder):
            names[:] = [name for name in names if not _is_mounted(Path(place, name))]
            for name in files:
                path = Path(place, name)
                if path.is_symlink() or not path.is_file():
                    continue
                total += scaled_weights.true_size(path)
    return total


def _is_mounted(path: Path) -> bool:
    """What is bound in from the host (Python, the payload) is read-only and not the node's."""
    try:
        return bool(os.statvfs(path).f_flag & os.ST_RDONLY) or path == node_truth.HOME
    except OSError:
        return True


def df(words: list[str]) -> int:
    truth = node_truth.load()
    options = [word for word in words if word.startswith("-")]
    places = [word for word in words if not word.startswith("-")]
    used = disk_used_bytes() + _DISK_TOTAL_EXTRA
    total = truth["disk_free_bytes"] + _DISK_TOTAL_EXTRA
    free = max(0, total - used)
    shm = truth["shm_bytes"]
    systems = [("overlay", total, min(used, total), free, "/"), ("shm", shm, 0, shm, "/dev/shm")]
    for place in places:
        if not os.path.exists(place):
            print(f"df: {place}: No such file or directory", file=sys.stderr)
            return 1
    if places:
        in_shm = [os.path.abspath(place).startswith("/dev/shm") for place in places]
        systems = [systems[1] if is_shm else systems[0] for is_shm in in_shm]
    fields = next(
        (word.partition("=")[2].split(",") for word in options if word.startswith("--output=")), None
    )
    unit, label = _unit(options)
    if fields is not None:
        _output(fields, systems, unit)
        return 0
    print(
        f"{'Filesystem':<14} {label:>14} {'Used':>14} {'Available' if unit else 'Avail':>14} Use% Mounted on"
    )
    for name, size, taken, left, place in systems:
        percent = f"{-(-taken * 100 // size) if size else 0}%"
        print(
            f"{name:<14} {_show(size, unit):>14} {_show(taken, unit):>14} {_show(left, unit):>14} "
            f"{percent:>4} {place}"
        )
    return 0


def _output(fields: list[str], systems: list[tuple[str, int, int, int, str]], unit: int) -> None:
    titles = {"source": "Filesystem", "size": "1K-blocks", "used": "Used", "avail": "Avail", "pcent": "Use%"}
    titles["target"] = "Mounted on"
    print(" ".join(f"{titles.get(field, field):>14}" for field in fields))
    for name, size, taken, left, place in systems:
        known = {
            "source": name,
            "size": _show(size, unit),
            "used": _show(taken, unit),
            "avail": _show(left, unit),
        }
        known |= {"pcent": f"{taken * 100 // size if size else 0}%", "target": place}
        print(" ".join(f"{known.get(field, '-'):>14}" for field in fields))


def _unit(options: list[str]) -> tuple[int, str]:
    """Bytes per printed unit (0 = for people) and the column's title."""
    unit, label = KIB, "1K-blocks"
    for option in options:
        if option.startswith("-") and not option.startswith("--"):
            for letter in option[1:]:
                if letter in "hH":
                    unit, label = 0, "Size"
                elif letter == "m":
                    unit, label = MIB, "1M-blocks"
                elif letter == "k":
                    unit, label = KIB, "1K-blocks"
                elif letter == "P" and unit == KIB:
                    label = "1024-blocks"
            if option.startswith("-B"):
                unit, label = _named_unit(option[2:])
        elif option.startswith("--block-size="):
            unit, label = _named_unit(option.partition("=")[2])
        elif option == "--human-readable":
            unit, label = 0, "Size"
    return unit, label


def _named_unit(name: str) -> tuple[int, str]:
    size = {"1": 1, "K": KIB, "1K": KIB, "M": MIB, "1M": MIB, "G": GIB, "1G": GIB}.get(name, KIB)
    return size, f"{name}-blocks"


def _show(value: int, unit: int) -> str:
    if unit:
        return str(-(-value // unit))
    for suffix, size in (("T", 1 << 40), ("G", GIB), ("M", MIB), ("K", KIB)):
        if value >= size:
            figure = value / size
            return f"{figure:.1f}{suffix}" if figure < 10 else f"{figure:.0f}{suffix}"
    return str(value)


def free(words: list[str]) -> int:
    unit = next(
        (size for word in words for flag, size in (("-b", 1), ("-m", MIB), ("-g", GIB)) if word == flag), KIB
    )
    total = node_truth.load()["ram_bytes"]
    left = total * 96 // 100
    print(f"{'':<14}{'total':>14}{'used':>14}{'free':>14}{'available':>14}")
    print(f"{'Mem:':<14}{total // unit:>14}{(total - left) // unit:>14}{left // unit:>14}{left // unit:>14}")
    print(f"{'Swap:':<14}{0:>14}{0:>14}{0:>14}")
    return 0


if __name__ == "__main__":
    programs = {"nproc": nproc, "lscpu": lscpu, "df": df, "free": free}
    sys.exit(programs[sys.argv[1]](sys.argv[2:]))
