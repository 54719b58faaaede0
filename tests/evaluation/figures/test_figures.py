"""The package of pictures as a whole: it draws without a display and without pyplot's global state.

How pictures look is judged by eye; the tests in this folder hold what an eye would not check twice: that
they are written, how large, with which colours, and that nothing global is touched.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from crossearth_sar.evaluation import figures


def test_pyplot_is_never_loaded(tmp_path: Path) -> None:
    code = (
        "import sys, torch; from crossearth_sar.evaluation.figures import expert_share_figure, curves_figure;"
        f"expert_share_figure(torch.full((2, 4), 0.25), {str(tmp_path / 'a.png')!r});"
        f"curves_figure({{'loss': [1.0, 2.0]}}, {str(tmp_path / 'b.png')!r});"
        "assert 'matplotlib.pyplot' not in sys.modules"
    )
    subprocess.run(
        [sys.executable, "-W", "error", "-c", code], check=True, cwd=Path(figures.__file__).parents[3]
    )
