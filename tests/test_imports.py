"""Imports point inward, and the first screen is cheap.

cli, daemon, dashboard -> fleet (effects), report -> market, node, engine, store
                       -> planner, fleet (pure) -> domain
"""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

import clorefleet
from clorefleet.store.database import open_store

PACKAGE = Path(clorefleet.__file__).parent
PURE_FLEET = {
    "autoscale",
    "bidding",
    "consolidate",
    "demand",
    "forecast",
    "idle",
    "action",
    "audit",
    "alerts",
    "budget",
    "change",
    "doubt",
    "filling",
    "limits",
    "moves",
    "reconcile",
    "schedule",
    "slots",
    "snapshot",
    "spot",
    "start_up",
    "wallet",
    "wanted",
    "wish",
}
ALLOWED: dict[str, set[str]] = {
    "domain": {"domain"},
    "planner": {"planner", "domain", "config"},
    "store": {"store", "domain", "config", "clock"},
    "market": {"market", "domain", "clock"},
    "node": {"node", "engine", "domain", "clock", "config", "planner"},
    "engine": {"engine", "domain"},
    "gateway": {"gateway", "domain", "config", "clock"},
    "notify": {"notify", "report", "fleet", "store", "config", "domain", "clock"},
    "report": {"report", "domain"},
    "config": {"config", "domain", "clock", "sandbox"},
    "sandbox": {"sandbox", "domain"},
    "simulation": {"simulation", "domain", "fleet", "store", "market", "planner"},
    "fleet": {"fleet", "domain", "store", "clock", "planner"},
    "dashboard": {"dashboard", "report", "fleet", "store", "config", "domain", "clock"},
    "daemon": {"daemon", "planner", "fleet", "notify", "store", "config", "domain", "clock", "wiring"},
}
SIMULATED_EDGES = {"market", "nodes", "choice", "clock", "dice", "faults"}
IO_MODULES = {"httpx", "sqlmodel", "sqlalchemy", "paramiko", "time", "random", "logging", "socket", "os"}


def imports_of(file: Path) -> set[str]:
    """Modules that a file imports at run time: what is only for type checkers does not count."""
    found: set[str] = set()

    def walk(node: ast.AST) -> None:
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            return
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found.add(node.module)
            found.update(f"{node.module}.{alias.name}" for alias in node.names)
        for child in ast.iter_child_nodes(node):
            walk(child)

    walk(ast.parse(file.read_text("utf-8")))
    return found


@pytest.mark.parametrize("package", sorted(ALLOWED))
def test_a_package_imports_only_what_lies_further_in(package: str):
    for file in sorted((PACKAGE / package).rglob("*.py")):
        if "payload" in file.parts:
            continue  # programs for nodes: they import nothing of ours
        inner = {name.split(".")[1] for name in imports_of(file) if name.startswith("clorefleet.")}
        inner -= {"__version__"}
        assert inner <= ALLOWED[package], f"{file.relative_to(PACKAGE)} imports {inner - ALLOWED[package]}"


@pytest.mark.parametrize("name", sorted(SIMULATED_EDGES))
def test_a_simulated_edge_uses_nothing_of_what_it_tests(name: str):
    """The simulated market and nodes know domain values and themselves: they agree with no bug."""
    imports = imports_of(PACKAGE / "simulation" / f"{name}.py")
    inner = {each for each in imports if each.startswith("clorefleet.")}
    assert {each.split(".")[1] for each in inner} <= {"domain", "simulation"}
    reached = {each.split(".")[2] for each in inner if each.startswith("clorefleet.simulation.")}
    assert reached <= SIMULATED_EDGES | {"scenario"}


@pytest.mark.parametrize(
    "file",
    sorted(
        [*(PACKAGE / "domain").glob("*.py"), *(PACKAGE / "planner").glob("*.py")]
        + [PACKAGE / "fleet" / f"{name}.py" for name in PURE_FLEET]
    ),
    ids=lambda file: f"{file.parent.name}/{file.name}",
)
def test_the_core_has_no_clock_no_network_no_chance(file: Path):
    tops = {name.split(".")[0] for name in imports_of(file)}
    assert not tops & IO_MODULES


@pytest.mark.parametrize(
    "heavy",
    [
        "rich",
        "numpy",
        "msgspec",
        "httpx",
        "pydantic",
        "sqlmodel",
        "paramiko",
        "apscheduler",
        "asyncssh",
        "jinja2",
    ],
)
def test_help_imports_nothing_heavy(heavy: str):
    code = (
        "import sys; sys.argv=['clorefleet','--help']\n"
        "from clorefleet.cli.main import main\n"
        f"main(); print('loaded' if {heavy!r} in sys.modules else 'absent', file=sys.stderr)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "Commands:" in run.stdout and run.stderr.strip() == "absent"


@pytest.mark.parametrize("heavy", ["sqlmodel", "sqlalchemy", "paramiko", "asyncssh"])
@pytest.mark.parametrize("command", ["offers", "plan", "models", "wallet"])
def test_reading_commands_do_not_load_the_store_or_ssh(command: str, heavy: str):
    code = f"import sys\nimport clorefleet.cli.{command}, clorefleet.wiring\nprint({heavy!r} in sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "False"


@pytest.mark.parametrize("heavy", ["pydantic", "sqlmodel", "rich", "numpy", "httpx", "tomllib"])
def test_status_imports_nothing_heavy(heavy: str, tmp_path: Path):
    """It has 300 ms in all; pydantic alone, with what it makes of each option, took 100."""
    store = tmp_path / "state" / "default" / "clorefleet.db"
    store.parent.mkdir(parents=True)
    open_store(f"sqlite:///{store}")
    code = (
        "import sys; sys.argv=['clorefleet', 'status', '--profile', 'default']\n"
        "from clorefleet.cli.main import main\n"
        f"assert main() == 0; print({heavy!r} in sys.modules)"
    )
    env = os.environ | {"CLOREFLEET_HOME": str(tmp_path)}
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=env)
    assert run.stdout.strip().splitlines()[-1] == "False"
