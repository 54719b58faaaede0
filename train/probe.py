"""Probes of encoders: `crossearth-sar probe`, as a file."""

import sys

from crossearth_sar.cli.main import script

if __name__ == "__main__":
    sys.exit(script("probe"))
