"""Self-supervised pre-training: `deepspeed train/di3cl.py`. The command is crossearth_sar/cli/selfsup.py."""

import sys

from crossearth_sar.cli.main import script

if __name__ == "__main__":
    sys.exit(script("selfsup"))
