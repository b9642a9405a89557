"""What timing the simulated machine would give, in the words of the program that times real ones."""

from __future__ import annotations

import json

import node_truth

MEMORY_SHARE = 0.6
"""Of the peak, reached by copies from Python with every channel filled [assumed]."""
LINE_SHARE = 0.93


def main() -> None:
    truth = node_truth.load()
    print(
        json.dumps(
            {
                "memory_gb_s": round(truth["ram_bandwidth_gb_s"] * MEMORY_SHARE, 1),
                "disk_write_mb_s": truth["disk_mb_s"],
                "disk_read_mb_s": truth["disk_mb_s"],
                "download_mbit_s": round(truth["down_mbit_s"] * LINE_SHARE, 1),
                "skipped": ["gpu: simulated"],
                "simulated": True,
            }
        )
    )


if __name__ == "__main__":
    main()
