"""Continued pre-training: `deepspeed train/cpt.py`. The command is crossearth_sar/cli/train.py."""

import sys

from crossearth_sar.cli.main import script

if __name__ == "__main__":
    sys.exit(script("train"))
