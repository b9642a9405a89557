"""`python -m clorefleet.sandbox --state-dir DIR`: run one sandbox until SIGTERM or Ctrl-C.

Exit status: 0 after a clean stop, 2 for wrong arguments, 3 when another sandbox has the directory.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import signal
import sys
from pathlib import Path

from clorefleet.sandbox.records import Remembered
from clorefleet.sandbox.server import DifferentSeed, SandboxServer
from clorefleet.sandbox.settings import HttpStatusMode, OutbidFate, SandboxSettings, TcpPortsForm
from clorefleet.sandbox.statedir import StateDir, StateDirBusy

EXIT_BUSY = 3
EXIT_USAGE = 2


def _settings(arguments: list[str]) -> SandboxSettings:
    parser = argparse.ArgumentParser(prog="python -m clorefleet.sandbox", description=__doc__)
    parser.add_argument("--state-dir", type=Path, required=True)
    parser.add_argument("--seed", type=int, help="of the market; as at the last start, or 1")
    parser.add_argument(
        "--time-factor", type=float, help="simulated per real second; as at the last start, or 1"
    )
    parser.add_argument("--market-port", type=int, default=0)
    parser.add_argument("--hub-port", type=int, default=0)
    parser.add_argument("--servers", type=int, help="how many; as at the last start, or 3200")
    parser.add_argument(
        "--market-only", action="store_true", help="nodes refuse connections, and there is no hub"
    )
    parser.add_argument("--churn", type=float, default=1.0)
    parser.add_argument("--charge-interval", type=int, choices=[1, 60], default=60, help="seconds")
    parser.add_argument("--http-status", choices=[*HttpStatusMode], default=HttpStatusMode.BY_CODE)
    parser.add_argument("--tcp-ports", choices=[*TcpPortsForm], default=TcpPortsForm.LIST)
    parser.add_argument("--outbid", choices=[*OutbidFate], default=OutbidFate.ENDED)
    parser.add_argument("--list-lag", type=float, default=2.5, help="real seconds, at most")
    parser.add_argument("--required-price-refusal-rate", type=float, default=0.15)
    parser.add_argument("--no-rate-limits", action="store_true")
    parser.add_argument("--faults", type=json.loads, default={}, help='JSON, {"name": {"rate": 0.1}}')
    given = parser.parse_args(arguments)
    state = StateDir(given.state_dir.expanduser().resolve())
    last = Remembered.of(state.database_file)
    return SandboxSettings(
        state_dir=state.path,
        seed=last.seed if given.seed is None else given.seed,
        time_factor=last.time_factor if given.time_factor is None else given.time_factor,
        market_port=given.market_port,
        hub_port=given.hub_port,
        server_count=given.servers or last.server_count,
        market_only=given.market_only,
        churn=given.churn,
        charge_interval_s=given.charge_interval,
        http_status=HttpStatusMode(given.http_status),
        tcp_ports=TcpPortsForm(given.tcp_ports),
        outbid=OutbidFate(given.outbid),
        list_lag_real_s=given.list_lag,
        required_price_refusal_rate=given.required_price_refusal_rate,
        enforce_rate_limits=not given.no_rate_limits,
        faults=given.faults,
    )


async def _run(settings: SandboxSettings) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    server = SandboxServer(settings)
    info = await server.start()
    sys.stderr.write(f"simulated market at {info['market_url']}, state in {settings.state_dir}\n")
    try:
        await stop.wait()
    finally:
        await server.stop()


def main() -> int:
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(name)s %(message)s")
    logging.getLogger("uvicorn").setLevel(logging.CRITICAL)  # it would log every injected fault as its own
    try:
        asyncio.run(_run(_settings(sys.argv[1:])))
    except (StateDirBusy, DifferentSeed, ValueError) as error:
        sys.stderr.write(f"{error}\n")
        return EXIT_BUSY if isinstance(error, StateDirBusy) else EXIT_USAGE
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
