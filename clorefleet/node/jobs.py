"""Detached work on a node: started once, followed by looking, never by staying connected.

A job is a folder `~/.clorefleet/jobs/<id>/`:

    script     what runs          log        what it printed
    started    boot id, process id and start time of the process, written before the work begins
    progress   one line of JSON, replaced as the work goes on (optional)
    exit       the exit code, put in place in one step when the work has ended

`mkdir` decides who starts it: a second start finds the folder and changes nothing. A job without `exit`
whose process is not there any more was killed, or the host was restarted: it is lost. So is one whose
script never arrived whole, since a cut connection looks like the end of the input on the other side.

The process that is watched is a small shell around the work. It outlives a polite signal to its group, so
that the exit code of work that was stopped is written too.
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
from clorefleet.domain.secret import Secret
from clorefleet.domain.text import LINE_MAX_CHARS, clean_line, clean_lines
from clorefleet.node.session import NodeSession, shell

NEEDED_FILE_MISSING = 66
"""EX_NOINPUT of sysexits.h."""
LOG_TAIL_BYTES = 8_000
LOG_TAIL_LINES = 200
LOG_READ_BYTES_MAX = 1_000_000
LOG_LINES_MAX = 10_000
PROGRESS_MAX_BYTES = 2_000
PROGRESS_MAX = 10**15
"""Bytes, mostly; no weights have a thousandth of it."""
REPORT_MAX_BYTES = 16_000
_ID = re.compile(r"[A-Za-z0-9_-]{1,96}")
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_EXIT = re.compile(r"exit +([0-9]{1,3})", re.ASCII)
"""Plain digits: other scripts have zeros too."""
_MARK = "--clorefleet--"

# $1 job, $2 bytes of the script.
_START = r"""
umask 077
d="$HOME/.clorefleet/jobs/$1"
mkdir -p "$HOME/.clorefleet/jobs" || exit 1
mkdir "$d" 2>/dev/null || { [ -d "$d" ] && echo already && exit 0; exit 1; }
cat > "$d/script" && [ "$(wc -c < "$d/script")" -eq "$2" ] || { rm -rf "$d"; exit 1; }
setsid nohup sh -c '
  cd "$1" || exit 1
  trap : TERM INT
  printf "%s %s %s\n" "$(cat /proc/sys/kernel/random/boot_id 2>/dev/null)" "$$" \
    "$(sed "s/.*) //" /proc/$$/stat | cut -d" " -f20)" > started.tmp && mv started.tmp started
  sh script > log 2>&1 < /dev/null
  code=$?
  printf "%s\n" "$code" > exit.tmp && mv exit.tmp exit
' sh "$d" > /dev/null 2>&1 < /dev/null &
echo started
"""

# Behind the command's name in /proc/PID/stat: state is the 1st word, start time the 20th. A zombie that
# nobody collects, usual in containers, has both and runs no more.
_BEGUN = r"""
begun_of() {
  s=$(sed 's/.*) //' "/proc/$1/stat" 2>/dev/null)
  case "$s" in ""|[ZX]*) ;; *) printf '%s\n' "$s" | cut -d' ' -f20 ;; esac
}
"""

# $1 job, $2 bytes of the log, $3 mark.
_READ = (
    _BEGUN
    + r"""
d="$HOME/.clorefleet/jobs/$1"
[ -d "$d" ] || { echo absent; exit 0; }
state=running
if [ -f "$d/exit" ]; then state="exit $(head -c 16 "$d/exit")"
elif [ -s "$d/started" ]; then
  read -r boot pid begun < "$d/started"
  now=$(cat /proc/sys/kernel/random/boot_id 2>/dev/null)
  if [ "$boot" != "$now" ] || [ "$begun" != "$(begun_of "$pid")" ]; then
    # It may have ended between the two looks.
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
)

# $1 job, $2 signal.
_STOP = (
    _BEGUN
    + r"""
d="$HOME/.clorefleet/jobs/$1"
[ -s "$d/started" ] || exit 0
[ -f "$d/exit" ] && exit 0
read -r boot pid begun < "$d/started"
[ "$boot" = "$(cat /proc/sys/kernel/random/boot_id 2>/dev/null)" ] || exit 0
[ -n "$begun" ] && [ "$begun" = "$(begun_of "$pid")" ] || exit 0
kill -s "$2" -- "-$pid" 2>/dev/null
exit 0
"""
)

# $1 job, $2 offset, $3 bytes.
_LOG_SIZE = r"""
f="$HOME/.clorefleet/jobs/$1/log"
[ -f "$f" ] && wc -c < "$f" || echo 0
"""
_LOG = r"""
f="$HOME/.clorefleet/jobs/$1/log"
[ -f "$f" ] || exit 0
tail -c "+$(($2 + 1))" "$f" | head -c "$3"
"""


@dataclass(frozen=True, slots=True)
class JobSpec:
    """What to run. A secret never goes into `argv`."""

    job_id: JobId
    argv: tuple[str, ...]
    env: Mapping[str, str] = field(default_factory=dict)
    secrets: Mapping[str, Secret] = field(default_factory=dict)
    """More of the environment; with any, the script removes itself from the disk before it does its work."""
    needs_file: str = ""
    """A path that must exist when the job begins; without it the job fails with `NEEDED_FILE_MISSING`."""

    def script(self) -> str:
        """The shell script of the job, each word quoted."""
        # The shell has the file open and reads on: what is gone is its name.
        lines = ["#!/bin/sh", *(["rm -f script"] if self.secrets else [])]
        revealed = {name: secret.reveal() for name, secret in self.secrets.items()}
        for name, value in (dict(self.env) | revealed).items():
            if not _NAME.fullmatch(name):
                raise ValueError(f"{name!r} cannot name a variable")
            lines.append(f"export {name}={shlex.quote(value)}")
        if self.needs_file:
            path = shlex.quote(self.needs_file)
            lines.append(f"[ -e {path} ] || {{ echo {path} is missing; exit {NEEDED_FILE_MISSING}; }}")
        lines.append(f"exec {shlex.join(self.argv)}")
        return "\n".join(lines) + "\n"


def start(session: NodeSession, spec: JobSpec) -> bool:
    """Start the job unless it was started before; true when this call did.

    Raises:
        CommandFailed: the node cannot hold it (no space, no home).
        NodeUnreachable: the connection broke; whether it was started is told by the next `read`.
    """
    script = spec.script().encode()
    answer = session.run_ok(shell(_START, _checked(spec.job_id), str(len(script))), stdin=script).strip()
    if answer not in ("started", "already"):
        raise CommandFailed(
            f"The node answered “{clean_line(answer, max_chars=60)}” to the start of a job.", exit_status=0
        )
    return answer == "started"


def read(
    session: NodeSession, job_id: JobId, *, log_bytes: int = LOG_TAIL_BYTES, log_lines: int = LOG_TAIL_LINES
) -> JobReport:
    """How the job stands, in one round trip.

    Raises:
        NodeError: the node cannot be asked.
    """
    text = session.run_ok(
        shell(_READ, _checked(job_id), str(log_bytes), _MARK),
        max_output_bytes=REPORT_MAX_BYTES + log_bytes,
    )
    return parse_report(text, log_lines=log_lines)


def read_log_tail(session: NodeSession, job_id: JobId, *, lines: int) -> tuple[str, ...]:
    """The last lines of a job's log, cleaned; none where it has no log.

    Raises:
        NodeError: the node cannot be asked.
    """
    wanted = min(LOG_LINES_MAX, max(1, lines))
    size = min(LOG_READ_BYTES_MAX, wanted * LINE_MAX_CHARS)
    return read(session, job_id, log_bytes=size, log_lines=wanted).log_tail


def read_log(
    session: NodeSession, job_id: JobId, *, offset: int, max_bytes: int = LOG_TAIL_BYTES
) -> tuple[tuple[str, ...], int]:
    """Whole lines of a job's log from a byte offset on, cleaned, and the offset to go on from.

    A line that has no end yet is left for the next call, unless it alone fills `max_bytes`.

    Raises:
        NodeError: the node cannot be asked.
    """
    size = max(1, min(max_bytes, LOG_READ_BYTES_MAX))
    words = (_checked(job_id), str(max(0, offset)), str(size))
    _, raw, _ = session.run_raw(shell(_LOG, *words), max_output_bytes=size + LOG_TAIL_BYTES)
    whole = raw if len(raw) >= size and b"\n" not in raw else raw[: raw.rfind(b"\n") + 1]
    return tuple(clean_lines(whole.decode("utf-8", "replace"), max_lines=LOG_LINES_MAX)), offset + len(whole)


def log_size(session: NodeSession, job_id: JobId) -> int:
    """Bytes of a job's log; 0 where it has none.

    Raises:
        NodeError: the node cannot be asked.
    """
    text = session.run_ok(shell(_LOG_SIZE, _checked(job_id))).strip()
    return int(text) if text.isascii() and text.isdigit() and len(text) < 16 else 0


def parse_report(text: str, *, log_lines: int = LOG_TAIL_LINES) -> JobReport:
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
        log_tail=tuple(clean_lines(log, max_lines=log_lines)),
    )


def _state(line: str) -> tuple[JobState, int | None]:
    if line == "running":
        return JobState.RUNNING, None
    code = _EXIT.fullmatch(line)
    if code is None:
        return JobState.LOST, None
    number = int(code.group(1))
    return (JobState.SUCCEEDED if number == 0 else JobState.FAILED), number


def _progress(text: str) -> tuple[int | None, int | None, str]:
    try:
        document = json.loads(text) if text else {}
    except (ValueError, RecursionError):  # a bomb of brackets is no JSON either (G7)
        return None, None, ""
    if not isinstance(document, dict):
        return None, None, ""
    done, total = document.get("done"), document.get("total")
    return (
        done if isinstance(done, int) and 0 <= done <= PROGRESS_MAX else None,
        total if isinstance(total, int) and 0 < total <= PROGRESS_MAX else None,
        clean_line(document.get("text", ""), max_chars=120),
    )


def stop(session: NodeSession, job_id: JobId, *, signal_name: str = "TERM") -> None:
    """Signal the job's whole process group, if it is still the process that we started.

    After TERM or INT the work's exit code is written as always; after KILL the job is lost.
    """
    if signal_name not in ("TERM", "KILL", "INT"):
        raise ValueError(f"{signal_name} is not a signal for jobs")
    session.run_ok(shell(_STOP, _checked(job_id), signal_name))


def _checked(job_id: JobId) -> str:
    if not _ID.fullmatch(job_id):
        raise ValueError(f"{job_id!r} cannot name a job")
    return job_id
