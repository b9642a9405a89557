"""The sandbox as a process of its own: found, killed, started again, stopped."""

from __future__ import annotations

import os
import signal
import stat
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from clorefleet.domain.errors import SandboxError
from clorefleet.sandbox import process
from clorefleet.sandbox.process import SandboxInfo
from clorefleet.sandbox.statedir import StateDir

QUICK = ("--market-only", "--servers", "300", "--churn", "0", "--no-rate-limits", "--list-lag", "0")
USD = "USD-Blockchain"
WAIT_S_MAX = 15.0


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """A state directory whose sandbox does not outlive the test."""
    state = tmp_path / "sandbox"
    yield state
    process.stop(state)


def call(info: SandboxInfo, method: str, path: str, body: Any = None) -> Any:
    answer = httpx.request(
        method, f"{info.market_url}/{path}", headers={"auth": info.api_key}, json=body, trust_env=False
    )
    return answer.json()


def rent_one(info: SandboxInfo) -> None:
    server = next(
        server
        for server in call(info, "GET", "marketplace")["servers"]
        if not server["rented"]
        and USD in server["price"]["on_demand"]
        and USD in server["allowed_coins"]
        and server["price"]["on_demand"][USD] < 10
    )
    body = {
        "renting_server": server["id"],
        "type": "on-demand",
        "currency": USD,
        "image": "a/b",
        "ports": {"22": "tcp"},
    }
    assert call(info, "POST", "create_order", body)["code"] == 0


def addressed_order(info: SandboxInfo) -> dict[str, Any]:
    deadline_s = time.monotonic() + WAIT_S_MAX
    while time.monotonic() < deadline_s:
        orders = call(info, "GET", "my_orders")["orders"]
        if orders and orders[0]["mon_container"] == 2:
            return dict(orders[0])
        time.sleep(0.05)
    raise AssertionError("the order got no address")


@pytest.mark.parametrize("code, told", [(None, "an older version"), ("0.0.9+00c0ffee", "0.0.9")])
def test_a_sandbox_of_another_version_is_found_out_and_the_user_told_how_to_end_it(
    folder: Path, code: str | None, told: str
) -> None:
    process.ensure_running(folder, seed=5, extra_arguments=QUICK)
    assert process.outdated(folder) == ""
    state = StateDir(folder)
    written = state.read_info()
    assert written is not None and written.pop("code") == process.code_version()
    # As the version before the update left it, or one before there was such a field.
    state.write_info(written if code is None else written | {"code": code})
    text = process.outdated(folder)
    assert told in text and "clorefleet sandbox stop" in text
    process.stop(folder)
    assert process.outdated(folder) == ""


def test_killed_sandbox_comes_back_with_its_orders_money_key_ports_and_later_time(folder: Path) -> None:
    first = process.ensure_running(folder, seed=3, time_factor=600, extra_arguments=QUICK)
    rent_one(first)
    order = addressed_order(first)
    seen_s = process.control(first, "status")["now_unix_s"]
    os.kill(first.pid, signal.SIGKILL)
    deadline_s = time.monotonic() + WAIT_S_MAX
    while process.find(folder) is not None and time.monotonic() < deadline_s:
        time.sleep(0.02)
    assert process.find(folder) is None
    second = process.ensure_running(folder, extra_arguments=QUICK)
    assert second.pid != first.pid
    assert (second.market_url, second.api_key) == (first.market_url, first.api_key)
    assert (second.seed, second.time_factor) == (3, 600)
    again = addressed_order(second)
    assert (again["id"], again["ct"], again["tcp_ports"]) == (order["id"], order["ct"], order["tcp_ports"])
    assert again["spend"] >= order["spend"]
    assert process.control(second, "status")["now_unix_s"] > seen_s


def test_stop_is_clean_and_time_stands_still_meanwhile(folder: Path) -> None:
    info = process.ensure_running(folder, time_factor=5000, extra_arguments=QUICK)
    before_s = process.control(info, "status")["now_unix_s"]
    assert process.stop(folder)
    assert not process.stop(folder)
    assert not StateDir(folder).info_file.exists()
    stopped_s = time.monotonic()
    time.sleep(0.3)
    info = process.ensure_running(folder, time_factor=1, extra_arguments=QUICK)
    after_s = process.control(info, "status")["now_unix_s"]
    asleep_s = time.monotonic() - stopped_s
    assert before_s <= after_s < before_s + 5000 * asleep_s


def test_second_start_finds_the_first(folder: Path) -> None:
    first = process.ensure_running(folder, extra_arguments=QUICK)
    assert process.ensure_running(folder, extra_arguments=QUICK) == first


def test_directory_of_another_seed_is_refused_until_reset(folder: Path) -> None:
    process.ensure_running(folder, seed=3, extra_arguments=QUICK)
    process.stop(folder)
    with pytest.raises(SandboxError, match="seed 3"):
        process.ensure_running(folder, seed=4, extra_arguments=QUICK)
    process.reset(folder)
    assert process.ensure_running(folder, seed=4, extra_arguments=QUICK).seed == 4


def test_secrets_are_in_private_files_only(folder: Path) -> None:
    info = process.ensure_running(folder, extra_arguments=QUICK)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    for file in folder.iterdir():
        if file.is_file():
            assert stat.S_IMODE(file.stat().st_mode) == 0o600, file.name
    assert info.api_key not in repr(info)
    assert info.api_key not in Path(f"/proc/{info.pid}/cmdline").read_text()
    assert info.api_key not in StateDir(folder).log_file.read_text()
    shown = process.status(folder)
    assert shown is not None
    assert info.api_key not in str(shown)
    assert shown["market_url"] == info.market_url


def test_clock_outside_is_the_clock_inside(folder: Path) -> None:
    info = process.ensure_running(folder, time_factor=1000, extra_arguments=QUICK)
    process.control(info, "advance", {"seconds": 86_400})
    found = process.find(folder)
    assert found is not None
    before_s = time.time()
    inside_s = process.control(found, "status")["now_unix_s"]
    after_s = time.time()

    def outside_s(real_s: float) -> float:
        return found.clock.base_unix_s + (real_s - found.clock.real_unix_s) * found.clock.factor

    slack_s = 0.02 * found.clock.factor
    assert outside_s(before_s) - slack_s <= inside_s <= outside_s(after_s) + slack_s
    assert inside_s > info.clock.base_unix_s + 86_400


def test_light_import_pulls_in_no_server() -> None:
    import subprocess
    import sys

    script = "import sys, clorefleet.sandbox.process; print(*sys.modules)"
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert not {"starlette", "uvicorn", "asyncssh", "httpx", "pydantic"} & set(result.stdout.split())
