"""How much slower `clorefleet --help` is than a bare interpreter, in the same run. Goal: at most 8x.

python benchmarks/help_startup.py [--runs 15]
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time

BARE = [sys.executable, "-c", "pass"]
HELP = [sys.executable, "-c", "from clorefleet.cli.main import main; raise SystemExit(main())", "--help"]


def seconds(command: list[str]) -> float:
    began = time.perf_counter()
    subprocess.run(command, stdout=subprocess.DEVNULL, check=True)
    return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=15)
    runs = parser.parse_args().runs
    seconds(HELP)  # byte code and disk cache
    pairs = [(seconds(BARE), seconds(HELP)) for _ in range(runs)]
    bare, helped = (statistics.median(column) for column in zip(*pairs, strict=True))
    ratio = statistics.median(helped / bare for bare, helped in pairs)
    print(f"python -c pass      {bare * 1000:6.1f} ms (median of {runs})")
    print(f"clorefleet --help   {helped * 1000:6.1f} ms")
    print(f"ratio               {ratio:6.1f}x  (goal: at most 8)")


if __name__ == "__main__":
    main()
