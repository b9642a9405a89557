"""Everything a contributor runs, by one name each: `nox -s lint`, or `nox -l` for the list.

`nox` alone runs lint, types, docs and the quick tests. `.ci/run` is what our checks run: the same, from
nothing, with the long ones.
"""

from __future__ import annotations

import nox

nox.options.sessions = ["lint", "types", "docs", "quick"]
nox.options.reuse_existing_virtualenvs = True
PYTHON = "3.11"


@nox.session(python=PYTHON)
def lint(session: nox.Session) -> None:
    """Style and form. `nox -s lint -- --fix` mends what can be mended."""
    session.install("-e", ".[lint]")
    if "--fix" in session.posargs:
        session.run("ruff", "check", "--fix", ".")
        session.run("ruff", "format", ".")
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")


@nox.session(python=PYTHON)
def types(session: nox.Session) -> None:
    """mypy, strict."""
    session.install("-e", ".[lint,test]")
    session.run("mypy", *session.posargs)


@nox.session(python=PYTHON)
def quick(session: nox.Session) -> None:
    """The tests without daemons, soaks and end-to-end runs: some minutes."""
    session.install("-e", ".[test]")
    session.run(
        "pytest", "--ignore=tests/end_to_end", "--ignore=tests/simulation", "-m", "not slow", *session.posargs
    )


@nox.session(python=PYTHON)
def tests(session: nox.Session) -> None:
    """All tests. `nox -s tests -- tests/fleet -k budget` runs some."""
    session.install("-e", ".[test]")
    session.run("pytest", *session.posargs)


@nox.session(python=PYTHON)
def simulation(session: nox.Session) -> None:
    """Simulated lives of fleets, and every planted bug: docs/simulation.md."""
    session.install("-e", ".[sandbox]")
    arguments = session.posargs or ["--seeds", "200", "--planted"]
    session.run("python", "-m", "clorefleet.simulation", *arguments)


@nox.session(python=PYTHON)
def docs(session: nox.Session) -> None:
    """Write docs/commands.md and docs/json/ anew, and check every link, command line and example."""
    session.install("-e", ".[test]")
    session.run("python", "tools/reference.py")
    session.run("pytest", "tests/test_docs.py", "tests/cli/test_reference.py", "-n", "0")


@nox.session(python=PYTHON)
def benchmarks(session: nox.Session) -> None:
    """The figures that docs claim: all of them, or those named: `nox -s benchmarks -- status_answer`."""
    session.install("-e", ".[test,bench]")
    for name in session.posargs or QUICK_BENCHMARKS:
        session.run("python", "-m", f"benchmarks.{name}")


QUICK_BENCHMARKS = ("help_startup", "status_answer", "cost_report", "plan_bulk", "tick_scale")
"""Minutes; the others take a quiet machine and say so in their first lines."""


@nox.session(python=PYTHON)
def build(session: nox.Session) -> None:
    """Wheel and sdist into dist/, and the wheel installed and asked for its version."""
    session.install("build")
    session.run("python", "-m", "build", "--outdir", "dist", ".")
    session.install("--force-reinstall", "--find-links", "dist", "clorefleet")
    session.run("clorefleet", "--version")
