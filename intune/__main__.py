"""``python -m intune``: the command, where its script is on no path."""

import sys

from intune.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
