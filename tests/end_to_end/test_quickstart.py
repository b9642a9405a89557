"""The quick start as it stands in the documents: its marked blocks, typed one after the other."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.end_to_end, pytest.mark.timeout(400)]
PAGE = Path(__file__).parents[2] / "docs" / "quickstart.md"
RUNNABLE = re.compile(r"^```sh run\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def test_every_block_of_the_quick_start_does_what_it_says(tmp_path: Path):
    blocks = RUNNABLE.findall(PAGE.read_text("utf-8"))
    assert len(blocks) >= 5
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("CLORE", "HF_"))}
    # The program as the tests' interpreter has it, under its own name.
    program = tmp_path / "clorefleet"
    program.write_text(
        f"#!{sys.executable}\nfrom clorefleet.cli.main import main\nraise SystemExit(main())\n", "utf-8"
    )
    program.chmod(0o755)
    env = clean | {"CLOREFLEET_HOME": str(tmp_path / "home"), "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    told = ""
    try:
        for block in blocks:
            done = subprocess.run(
                ["bash", "-euo", "pipefail", "-c", block],
                capture_output=True,
                text=True,
                cwd=tmp_path,
                env=env,
                timeout=390,
            )
            assert done.returncode == 0, f"{block}\n{done.stdout}\n{done.stderr}"
            told += done.stdout + done.stderr
    finally:
        subprocess.run([program, "sandbox", "stop"], env=env, capture_output=True, timeout=60)
    assert "smollm2-135m answers at http://127.0.0.1:" in told
    assert "smollm2-135m is stopped: the market lists no order of it." in told
    assert "0 live order(s)." in told
