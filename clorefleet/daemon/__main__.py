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
    arguments = parser.parse_args()
    try:
        return run(find_profile(arguments.profile))
    except ClorefleetError as error:
        sys.stderr.write(f"daemon_not_started why={error.what} {error.remedy}\n")
        return int(error.exit_code)


if __name__ == "__main__":
    sys.exit(main())
