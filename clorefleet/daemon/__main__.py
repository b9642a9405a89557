"""`python -m clorefleet.daemon --profile NAME`: what `clorefleet daemon start` runs detached."""

from __future__ import annotations

import argparse
import sys

from clorefleet.config.profile import find_profile
from clorefleet.daemon.service import run
from clorefleet.domain.errors import ClorefleetError


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m clorefleet.daemon", description=__doc__)
    parser.add_argument("--profile", default="default")
    parser.add_argument("--log-to", choices=("file", "stderr"), default="file")
    parser.add_argument("--log-format", choices=("text", "json"))
    arguments = parser.parse_args()
    as_json = None if arguments.log_format is None else arguments.log_format == "json"
    try:
        return run(find_profile(arguments.profile), foreground=arguments.log_to == "stderr", as_json=as_json)
    except ClorefleetError as error:
        sys.stderr.write(f"daemon_not_started why={error.what} {error.remedy}\n")
        return int(error.exit_code)


if __name__ == "__main__":
    sys.exit(main())
