"""Whether Triton kernels can run here, and if not, why. Imports triton lazily: absence is an answer."""

from __future__ import annotations

import importlib.util
import os


def triton_status() -> tuple[bool, str]:
    """(usable, reason): a CUDA device of compute capability >= 8.0, or Triton's interpreter on a CPU."""
    if importlib.util.find_spec("triton") is None:
        return False, "triton is not installed: pip install 'triton>=3.6'"
    import torch

    if os.environ.get("TRITON_INTERPRET") == "1":
        return True, "Triton interpreter (TRITON_INTERPRET=1): for tests, not for speed"
    if not torch.cuda.is_available():
        return False, "no CUDA device; TRITON_INTERPRET=1 runs the kernels slowly on a CPU"
    if torch.version.hip is not None:  # whose capability 9.4 looks like Hopper's 9.0
        return False, "an AMD GPU: the kernels are written for NVIDIA's, and tried on no other"
    major, minor = torch.cuda.get_device_capability()
    if major < 8:
        return False, f"compute capability {major}.{minor} is below 8.0"
    return True, f"CUDA device of compute capability {major}.{minor}"
