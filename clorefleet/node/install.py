"""The engine on a base image: a job that installs pinned packages on the node, into a folder of their own.

Which packages is the recipe's business (`ImageVariant.packages`); the work and its rules are in
`payload/install_engine.py`. The folder is named by the pins, so that two sets of them can never mix and the
same set is found again after any restart. What the phases then run, they run `within` that folder.

The index is the node's own setting (PIP_INDEX_URL), as the hub is (HF_ENDPOINT); without one it is PyPI.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from clorefleet.domain.failure import Cause
from clorefleet.domain.identity import JobId
from clorefleet.domain.node import JobReport, JobState
from clorefleet.domain.recipe import ImageVariant
from clorefleet.node import jobs
from clorefleet.node.jobs import JobSpec
from clorefleet.node.session import NodeSession

ENGINES_DIR = ".clorefleet/engines"
CACHE_DIR = ".clorefleet/wheels"
"""Both below the node's home. The cache is one for all pins."""
DEADLINE_S = 1500
"""Below the phase's limit of half an hour, so that a slow install says so itself. 5 GB of wheels take 7
minutes at 100 Mbit/s [computed]; unpacking them one or two more [assumed]."""
_SCRIPT_PATH = ".clorefleet/bin/install_engine.py"
_WITHIN = 'PATH="$1/bin:$PATH"; export PATH; shift; exec "$@"'

CAUSES = {
    30: (Cause.INDEX_UNREACHABLE, "the package index cannot be reached from the server"),
    31: (Cause.PACKAGE_NOT_FOUND, "the index has no such version of a package"),
    32: (
        Cause.BUILD_NEEDED,
        "the index has no wheel of a package for this server, only its source",
    ),
    33: (Cause.DISK_FULL, "the disk has no room for the engine"),
    34: (Cause.BAD_PACKAGE, "a wheel arrived twice with bytes that are not the index's"),
    35: (Cause.TOOK_TOO_LONG, "the install was not done in time"),
    36: (Cause.INSTALL_FAILED, "the image has no Python that packages can be installed with"),
    37: (Cause.INSTALL_FAILED, "the install failed"),
}
"""Exit codes of the node's installer, with their cause and words."""


def prefix_of(home: str, packages: tuple[str, ...]) -> str:
    """The folder of these packages on the node."""
    digest = hashlib.sha256("\n".join(packages).encode()).hexdigest()
    return f"{home}/{ENGINES_DIR}/{digest[:16]}"


def within(prefix: str, argv: tuple[str, ...]) -> tuple[str, ...]:
    """`argv` with the programs of `prefix` found first; unchanged where `prefix` is ""."""
    return ("sh", "-c", _WITHIN, "sh", prefix, *argv) if prefix else argv


def start_install(session: NodeSession, job_id: JobId, variant: ImageVariant) -> None:
    """Start the install unless this job was started before.

    Raises:
        NodeError: it could not be started; trying again is safe.
    """
    home = session.home()
    script = Path(__file__).parent / "payload" / "install_engine.py"
    session.write_file(f"{home}/{_SCRIPT_PATH}", script.read_bytes(), mode=0o700)
    jobs.start(session, install_job(home, job_id, variant))


def install_job(home: str, job_id: JobId, variant: ImageVariant) -> JobSpec:
    words = (
        "python3",
        f"{home}/{_SCRIPT_PATH}",
        prefix_of(home, variant.packages),
        f"{home}/{CACHE_DIR}",
        "--needs-bytes",
        str(variant.install_bytes),
        "--deadline-s",
        str(DEADLINE_S),
        *variant.packages,
    )
    return JobSpec(job_id, words, {"PROGRESS_FILE": f"{home}/.clorefleet/jobs/{job_id}/progress"})


def read_install(session: NodeSession, job_id: JobId) -> tuple[JobReport, Cause | None, str]:
    """How the install stands; its cause and words if it failed."""
    report = jobs.read(session, job_id)
    if report.state is not JobState.FAILED:
        return report, None, ""
    # 127 is the shell's: no python3 at all.
    code = 36 if report.exit_code == 127 else report.exit_code or 0
    return report, *CAUSES.get(code, CAUSES[37])
