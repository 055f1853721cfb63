"""`python -m localr1` is `localr1`: the way in, left without a word by a Ctrl-C that comes while it still imports."""

import sys
from typing import NoReturn

INTERRUPTED = 130


def main() -> NoReturn:
    """Runs the command line of this process."""
    try:
        from localr1.cli.app import main as run

        run()
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)


if __name__ == "__main__":
    main()
