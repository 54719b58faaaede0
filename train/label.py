"""Pseudo labels: `crossearth-sar label`, as a file."""

import sys

from crossearth_sar.cli.main import script

if __name__ == "__main__":
    sys.exit(script("label"))
