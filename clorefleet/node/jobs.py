"""Detached work on a node: started once, followed by looking, never by staying connected.

A job is a folder `~/.clorefleet/jobs/<id>/`:

    script     what runs          log        what it printed
    started    boot id, process id and start time of the process, written before the work begins
    progress   one line of JSON, replaced as the work goes on (optional)
    exit       the exit code, put in place in one step when the work has ended

`mkdir` decides who starts it: a second start finds the folder and changes nothing. A job without `exit`
whose process is not there any more was killed, or the host was restarted: it is lost.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field

from clorefleet.domain.errors import CommandFailed
from clorefleet.domain.identity import JobId
from clorefleet.domain.node import JobReport, JobState
from clorefleet.domain.text import clean_line, clean_lines
from clorefleet.node.session import NodeSession

LOG_TAIL_BYTES = 8_000
PROGRESS_MAX_BYTES = 2_000
REPORT_MAX_BYTES = 16_000
_ID = re.compile(r"[A-Za-z0-9_-]{1,96}")
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_MARK = "--clorefleet--"

_START = r"""
umask 077
d="$HOME/.clorefleet/jobs/$1"
mkdir -p "$HOME/.clorefleet/jobs" || exit 1
mkdir "$d" 2>/dev/null || { echo already; exit 0; }
cat > "$d/script" && chmod 700 "$d/script" || { rm -rf "$d"; exit 1; }
setsid nohup sh -c '
  cd "$1" || exit 1
  printf "%s %s %s\n" "$(cat /proc/sys/kernel/random/boot_id 2>/dev/null)" "$$" \
    "$(cut -d" " -f22 /proc/$$/stat 2>/dev/null)" > started
  ./script > log 2>&1 < /dev/null
  code=$?
  printf "%s\n" "$code" > exit.tmp && mv exit.tmp exit
' sh "$d" > /dev/null 2>&1 < /dev/null &
echo started
"""

_READ = r"""
d="$HOME/.clorefleet/jobs/$1"
[ -d "$d" ] || { echo absent; exit 0; }
state=running
if [ -f "$d/exit" ]; then state="exit $(head -c 16 "$d/exit")"
elif [ -s "$d/started" ]; then
  read boot pid begun < "$d/started"
  now=$(cat /proc/sys/kernel/random/boot_id 2>/dev/null)
  seen=$(cut -d' ' -f22 "/proc/$pid/stat" 2>/dev/null)
  if [ "$boot" != "$now" ] || [ "$begun" != "$seen" ]; then
    if [ -f "$d/exit" ]; then state="exit $(head -c 16 "$d/exit")"; else state=lost; fi
  fi
elif [ -z "$(find "$d" -maxdepth 0 -mmin -1 2>/dev/null)" ]; then state=lost
fi
echo "$state"; echo "$3"
[ -f "$d/progress" ] && head -c 2000 "$d/progress"
echo; echo "$3"
[ -f "$d/log" ] && tail -c "$2" "$d/log"
exit 0
"""

_STOP = r"""
d="$HOME/.clorefleet/jobs/$1"
[ -s "$d/started" ] || exit 0
[ -f "$d/exit" ] && exit 0
read boot pid begun < "$d/started"
[ "$begun" = "$(cut -d' ' -f22 "/proc/$pid/stat" 2>/dev/null)" ] || exit 0
kill -"$2" "-$pid" 2>/dev/null
exit 0
"""


@dataclass(frozen=True, slots=True)
class JobSpec:
    """What to run. Secrets go into `env`, which is in a private file, never into `argv`."""

    job_id: JobId
    argv: tuple[str, ...]
    env: Mapping[str, str] = field(default_factory=dict)

    def script(self) -> str:
        """The shell script of the job, each word quoted."""
        lines = ["#!/bin/sh"]
        for name, value in self.env.items():
            if not _NAME.fullmatch(name):
                raise ValueError(f"{name!r} cannot name a variable")
            lines.append(f"export {name}={shlex.quote(value)}")
        lines.append(f"exec {shlex.join(self.argv)}")
        return "\n".join(lines) + "\n"


def start(session: NodeSession, spec: JobSpec) -> bool:
    """Start the job unless it was started before; true when this call did.

    Raises:
        CommandFailed: the node cannot hold it (no space, no home).
        NodeUnreachable: the connection broke; whether it was started is told by the next `read`.
    """
    answer = session.run_ok(
        ["sh", "-c", _START, "sh", _checked(spec.job_id)], stdin=spec.script().encode()
    ).strip()
    if answer not in ("started", "already"):
        raise CommandFailed(
            f"The node answered “{clean_line(answer, max_chars=60)}” to the start of a job.", exit_status=0
        )
    return answer == "started"


def read(session: NodeSession, job_id: JobId, *, log_bytes: int = LOG_TAIL_BYTES) -> JobReport:
    """How the job stands, in one round trip.

    Raises:
        NodeError: the node cannot be asked.
    """
    text = session.run_ok(
        ["sh", "-c", _READ, "sh", _checked(job_id), str(log_bytes), _MARK],
        max_output_bytes=REPORT_MAX_BYTES + log_bytes,
    )
    return parse_report(text)


def parse_report(text: str) -> JobReport:
    """Read what `_READ` prints; anything odd counts as lost rather than as success (F7)."""
    if text.strip() == "absent":
        return JobReport(JobState.ABSENT)
    state_line, _, rest = text.partition(f"\n{_MARK}\n")
    progress_text, _, log = rest.partition(f"\n{_MARK}\n")
    state, exit_code = _state(state_line.strip())
    done, total, words = _progress(progress_text.strip()[:PROGRESS_MAX_BYTES])
    return JobReport(
        state=state,
        exit_code=exit_code,
        progress_text=words,
        progress_done=done,
        progress_total=total,
        log_tail=tuple(clean_lines(log)),
    )


def _state(line: str) -> tuple[JobState, int | None]:
    if line == "running":
        return JobState.RUNNING, None
    word, _, code = line.partition(" ")
    if word == "exit" and code.strip().isdigit():
        number = int(code)
        return (JobState.SUCCEEDED if number == 0 else JobState.FAILED), number
    return JobState.LOST, None


def _progress(text: str) -> tuple[int | None, int | None, str]:
    try:
        document = json.loads(text) if text else {}
    except ValueError:
        return None, None, ""
    if not isinstance(document, dict):
        return None, None, ""
    done, total = document.get("done"), document.get("total")
    return (
        done if isinstance(done, int) and done >= 0 else None,
        total if isinstance(total, int) and total > 0 else None,
        clean_line(document.get("text", ""), max_chars=120),
    )


def stop(session: NodeSession, job_id: JobId, *, signal_name: str = "TERM") -> None:
    """Signal the job's whole process group, if it is still the process that we started."""
    if signal_name not in ("TERM", "KILL", "INT"):
        raise ValueError(f"{signal_name} is not a signal for jobs")
    session.run_ok(["sh", "-c", _STOP, "sh", _checked(job_id), signal_name])


def _checked(job_id: JobId) -> str:
    if not _ID.fullmatch(job_id):
        raise ValueError(f"{job_id!r} cannot name a job")
    return job_id
