"""`nvidia-smi` of a simulated server: tells the server's truth in the real program's forms.

Known: the table, `-L`, `-q`, `topo -m`, and `--query-gpu=` or `--query-compute-apps=` with `--format=csv`.
"""

from __future__ import annotations

import sys
import time
import uuid

import node_truth

NO_DEVICES = "No devices were found"
NO_DRIVER = (
    "NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver. Make sure that the latest "
    "NVIDIA driver is installed and running.\n"
)
NVML = "Failed to initialize NVML: Unknown Error"
MISMATCH = "Failed to initialize NVML: Driver/library version mismatch"
EXIT_NO_DRIVER = 9
EXIT_MISMATCH = 18
EXIT_NVML = 255
EXIT_GPU_LOST = 15
EXIT_NO_DEVICES = 6
EXIT_BAD_ARGUMENT = 2
_RESERVED_SHARE = 0.006
"""The driver keeps a little of each GPU: `memory.free` is never `total - used`."""


class Gpu:
    def __init__(self, index: int, facts: dict, truth: dict, used_mib: int) -> None:
        total = facts["vram_mib"]
        reserved = int(total * _RESERVED_SHARE)
        used = used_mib + 4
        identity = uuid.uuid5(uuid.NAMESPACE_OID, f"{truth['server_id']}/{index}")
        busy = used_mib > 0
        self.fields = {
            "index": (index, ""),
            "count": (len(truth["gpus"]), ""),
            "name": (facts["name"], ""),
            "uuid": (f"GPU-{identity}", ""),
            "gpu_uuid": (f"GPU-{identity}", ""),
            "serial": ("[N/A]", ""),
            "pci.bus_id": (f"00000000:{index + 1:02X}:00.0", ""),
            "driver_version": (truth["driver_version"], ""),
            "compute_cap": (facts["compute_capability"], ""),
            "memory.total": (total, "MiB"),
            "memory.used": (used, "MiB"),
            "memory.free": (max(0, total - used - reserved), "MiB"),
            "memory.reserved": (reserved, "MiB"),
            "pcie.link.gen.current": (facts["pcie_generation"] if busy else 1, ""),
            "pcie.link.gen.max": (facts["pcie_generation"], ""),
            "pcie.link.gen.gpumax": (facts["pcie_generation"], ""),
            "pcie.link.width.current": (facts["pcie_width"], ""),
            "pcie.link.width.max": (facts["pcie_width"], ""),
            "power.limit": (f"{facts['power_limit_w']:.2f}", "W"),
            "power.max_limit": (f"{facts['power_limit_w']:.2f}", "W"),
            "power.draw": (f"{facts['power_limit_w'] * (0.3 if busy else 0.08):.2f}", "W"),
            "utilization.gpu": (0, "%"),
            "utilization.memory": (0, "%"),
            "temperature.gpu": (48 if busy else 34, ""),
            "pstate": ("P0" if busy else "P8", ""),
            "persistence_mode": ("Enabled", ""),
            "compute_mode": ("Default", ""),
            "mig.mode.current": ("[N/A]", ""),
            "ecc.mode.current": ("[N/A]", ""),
            "clocks_throttle_reasons.active": ("0x0000000000000000", ""),
            "clocks_event_reasons.active": ("0x0000000000000000", ""),
            "timestamp": (time.strftime("%Y/%m/%d %H:%M:%S.000"), ""),
        }
        self.nvlink = facts["nvlink"]

    def text(self, name: str, *, with_unit: bool) -> str:
        value, unit = self.fields[name]
        return f"{value} {unit}" if unit and with_unit else str(value)


def query(names: list[str], rows: list[list[tuple[str, str]]], options: list[str]) -> None:
    """`rows` hold (value, unit) pairs in the order of `names`."""
    with_unit = "nounits" not in options
    if "noheader" not in options:
        units = [f" [{unit}]" if unit else "" for _, unit in rows[0]] if rows else [""] * len(names)
        print(", ".join(name + (unit if with_unit else "") for name, unit in zip(names, units, strict=True)))
    for row in rows:
        print(", ".join(f"{value} {unit}" if unit and with_unit else str(value) for value, unit in row))


def query_gpus(asked: str, gpus: list[Gpu], options: list[str]) -> int:
    names = [name.strip() for name in asked.split(",")]
    for name in names:
        if name not in gpus[0].fields:
            print(f'Field "{name}" is not a valid field to query.\n')
            return EXIT_BAD_ARGUMENT
    query(names, [[gpu.fields[name] for name in names] for gpu in gpus], options)
    return 0


def query_apps(asked: str, gpus: list[Gpu], options: list[str]) -> int:
    names = [name.strip() for name in asked.split(",")]
    rows = []
    for pid, held in node_truth.claims().items():
        for gpu, mib in zip(gpus, held["mib"], strict=False):
            known = {
                "pid": (pid, ""),
                "process_name": (held["name"], ""),
                "name": (held["name"], ""),
                "used_memory": (mib, "MiB"),
                "used_gpu_memory": (mib, "MiB"),
                "gpu_uuid": gpu.fields["uuid"],
            }
            if mib and all(name in known for name in names):
                rows.append([known[name] for name in names])
    query(names, rows, options)
    return 0


def table(gpus: list[Gpu], truth: dict) -> None:
    rule = "+-----------------------------------------+------------------------+----------------------+"
    wide = "+-----------------------------------------------------------------------------------------+"
    version = truth["driver_version"]
    print(time.strftime("%a %b %d %H:%M:%S %Y"))
    print(wide)
    print(
        f"| NVIDIA-SMI {version:<22} Driver Version: {version:<14} CUDA Version: {truth['cuda_version']:<8} |"
    )
    print(rule)
    print("| GPU  Name                 Persistence-M | Bus-Id          Disp.A | Volatile Uncorr. ECC |")
    print("| Fan  Temp   Perf          Pwr:Usage/Cap |           Memory-Usage | GPU-Util  Compute M. |")
    print("|=========================================+========================+======================|")
    for gpu in gpus:
        value = {name: field[0] for name, field in gpu.fields.items()}
        power = f"{float(value['power.draw']):.0f}W / {float(value['power.limit']):4.0f}W"
        memory = f"{value['memory.used']}MiB / {value['memory.total']}MiB"
        print(
            f"| {value['index']:>3}  {value['name'][:26]:<26}      On | {value['pci.bus_id']} Off |"
            "                  Off |"
        )
        print(
            f"| 30%   {value['temperature.gpu']:>3}C    {value['pstate']}    {power:>21} | {memory:>22} |"
            f"      {value['utilization.gpu']:>2}%      Default |"
        )
        print(rule)
    print("\n" + wide)
    print("| Processes:                                                                              |")
    print("|  GPU   GI   CI              PID   Type   Process name                        GPU Memory |")
    print("|=========================================================================================|")
    claims = node_truth.claims()
    for index in range(len(gpus)):
        for pid, held in claims.items():
            mib = held["mib"][index] if index < len(held["mib"]) else 0
            if mib:
                print(f"| {index:>4}   N/A  N/A {pid:>16}      C   {held['name'][:34]:<34} {mib:>8}MiB |")
    if not claims:
        print("|  No running processes found                                                             |")
    print(wide)


def listing(gpus: list[Gpu]) -> None:
    for gpu in gpus:
        print(f"GPU {gpu.fields['index'][0]}: {gpu.fields['name'][0]} (UUID: {gpu.fields['uuid'][0]})")


def long_form(gpus: list[Gpu], truth: dict) -> None:
    print("\n==============NVSMI LOG==============\n")
    print(f"Driver Version                            : {truth['driver_version']}")
    print(f"CUDA Version                              : {truth['cuda_version']}")
    print(f"\nAttached GPUs                             : {len(gpus)}")
    for gpu in gpus:
        print(f"GPU {gpu.fields['pci.bus_id'][0]}")
        print(f"    Product Name                          : {gpu.fields['name'][0]}")
        print(f"    GPU UUID                              : {gpu.fields['uuid'][0]}")
        print("    FB Memory Usage")
        for label, name in (
            ("Total", "memory.total"),
            ("Reserved", "memory.reserved"),
            ("Used", "memory.used"),
        ):
            print(f"        {label:<34}: {gpu.text(name, with_unit=True)}")


def topology(gpus: list[Gpu]) -> None:
    names = [f"GPU{gpu.fields['index'][0]}" for gpu in gpus]
    print("\t" + "\t".join([*names, "CPU Affinity", "NUMA Affinity"]))
    for row, gpu in enumerate(gpus):
        links = [" X " if row == column else ("NV18" if gpu.nvlink else "PHB") for column in range(len(gpus))]
        print("\t".join([names[row], *links, "0", "0"]))
    print("\nLegend:\n\n  X    = Self\n  PHB  = Connection traversing PCIe as well as a PCIe Host Bridge")
    print("  NV#  = Connection traversing a bonded set of # NVLinks")


def chosen(gpus: list[Gpu], ids: str) -> list[Gpu]:
    wanted = ids.split(",")
    return [gpu for gpu in gpus if {str(gpu.fields["index"][0]), gpu.fields["uuid"][0]} & set(wanted)]


def failing(lies: list[str]) -> int | None:
    """A driver that is broken as a whole."""
    for lie, text, status in (
        ("driver_mismatch", MISMATCH, EXIT_MISMATCH),
        ("nvml", NVML, EXIT_NVML),
        ("no_devices", NO_DEVICES, EXIT_NO_DEVICES),
    ):
        if lie in lies:
            print(text)
            return status
    return None


def main(words: list[str]) -> int:
    truth = node_truth.load()
    if not truth["gpus"]:
        sys.stdout.write(NO_DRIVER)
        return EXIT_NO_DRIVER
    failure = failing(truth["lies"])
    if failure is not None:
        return failure
    used = node_truth.used_mib(len(truth["gpus"]))
    gpus = [Gpu(index, facts, truth, used[index]) for index, facts in enumerate(truth["gpus"])]
    if words[:1] == ["topo"]:
        topology(gpus)
        return 0
    settings, flags = {}, []
    rest = iter(words)
    for word in rest:
        name, equals, value = word.partition("=")
        if word in ("-i", "--id"):
            settings["--id"] = next(rest, "")
        elif equals:
            settings[name] = value
        else:
            flags.append(word)
    if "--id" in settings:
        gpus = chosen(gpus, settings["--id"])
        if not gpus:
            print(NO_DEVICES)
            return EXIT_NO_DEVICES
    options = [option.strip() for option in settings.get("--format", "").split(",")]
    for name, run in (("--query-gpu", query_gpus), ("--query-compute-apps", query_apps)):
        if name in settings:
            if options[0] != "csv":
                print('"--format=" switch is missing. It is required when a "--query-*" switch is used.')
                return EXIT_BAD_ARGUMENT
            if "gpu_lost" not in truth["lies"]:
                return run(settings[name], gpus, options)
            run(settings[name], gpus[:-1], options)
            lost = gpus[-1].fields["pci.bus_id"][0]
            print(f"Unable to determine the device handle for GPU{lost}: GPU is lost.  Reboot the system.")
            return EXIT_GPU_LOST
    match flags:
        case []:
            table(gpus, truth)
        case ["-L"] | ["--list-gpus"]:
            listing(gpus)
        case ["-q", *_] | ["--query", *_]:
            long_form(gpus, truth)
        case _:
            print(f"Invalid combination of input arguments. Please run 'nvidia-smi -h' for help.\n{flags}")
            return EXIT_BAD_ARGUMENT
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
