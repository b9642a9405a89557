"""`clorefleet diagnose`, as a user with a log of their own runs it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

RUN = (sys.executable, "-c", "from clorefleet.cli.main import main; raise SystemExit(main())", "diagnose")


def run(*words: str, stdin: bytes = b"", cwd: Path) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run([*RUN, *words], input=stdin, capture_output=True, cwd=cwd, check=False)


OOM = b"INFO vllm\ntorch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2 GiB\nEngineCore died\n"


def test_a_users_own_log_gets_cause_line_and_remedy(tmp_path: Path):
    (tmp_path / "e.log").write_bytes(OOM)
    found = run("e.log", cwd=tmp_path)
    assert found.returncode == 0
    for part in (b"out_of_vram", b"log of vllm", b"Tried to allocate", b"Remedy:", b"lower memory fraction"):
        assert part in found.stdout


def test_standard_input_and_json(tmp_path: Path):
    found = run("-", "--json", stdin=OOM, cwd=tmp_path)
    document = json.loads(found.stdout)
    assert (document["cause"], document["engine"]) == ("out_of_vram", "vllm")
    assert document["corrections"] == ["lower_memory_fraction", "shorter_context"]


def test_a_log_that_tells_nothing_ends_with_one(tmp_path: Path):
    assert run("-", stdin=b"hello\n", cwd=tmp_path).returncode == 1
    assert run("-", "--exit-code", "137", stdin=b"hello\n", cwd=tmp_path).returncode == 0


@pytest.mark.parametrize("words", [("none.log",), (".",), ("-",), ("-", "--engine", "tgi")])
def test_what_cannot_be_read_is_a_mistake_with_a_next_step(words: tuple[str, ...], tmp_path: Path):
    found = run(*words, stdin=b"" if "--engine" not in words else OOM, cwd=tmp_path)
    assert found.returncode == 2 and b"Traceback" not in found.stderr and found.stderr.strip()


def test_a_hostile_log_stays_inert_and_its_end_is_read(tmp_path: Path):
    """G1, G4."""
    hostile = b"\x1b]52;c;aGk=\x07\x00\xff" * 200_000 + b"\n\x1b[2J[Errno 28] No space left on device\r\n"
    (tmp_path / "e.log").write_bytes(hostile)
    found = run("e.log", cwd=tmp_path)
    assert found.returncode == 0 and b"disk_full" in found.stdout
    assert b"\x1b" not in found.stdout + found.stderr
