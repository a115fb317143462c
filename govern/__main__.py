"""`python -m govern`, and the console command `govern`."""

from __future__ import annotations

import sys


def main() -> int:
    """Run the command line of this process; returns the exit code."""
    try:
        from .cli.parser import run  # inside, so that Ctrl-C during the imports is no traceback either

        return run(sys.argv[1:])
    except KeyboardInterrupt:
        print("govern: interrupted", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
