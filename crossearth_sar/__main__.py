"""`python -m crossearth_sar` is `crossearth-sar`; without a command, its `info`."""

import sys

from crossearth_sar.cli.main import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:] or ["info"]))
