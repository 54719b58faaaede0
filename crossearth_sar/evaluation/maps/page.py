"""One HTML file with a scene and its map to swipe over each other: pictures embedded, no network, no library.

Works with a mouse, a finger and the arrow keys, in light and dark, on narrow screens.
"""

from __future__ import annotations

import base64
import io
from html import escape
from pathlib import Path

import numpy as np
from PIL import Image

from crossearth_sar.data.sample import IGNORE_INDEX, ClassTable
from crossearth_sar.evaluation.maps.quicklook import QuickLook, colored
from crossearth_sar.whole import write_text

_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy"
 content="default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'">
<title>{title}</title>
<style>
:root {{ color-scheme: light dark; }}
body {{ font: 1rem/1.5 system-ui, sans-serif; margin: 1rem auto; padding: 0 1rem; max-width: 90rem;
 background: Canvas; color: CanvasText; }}
h1 {{ font-size: 1.25rem; overflow-wrap: anywhere; }}
.swipe {{ --cut: 50%; position: relative; display: inline-block; max-width: 100%; line-height: 0; }}
.swipe img {{ width: {width}px; max-width: 100%; height: auto; image-rendering: auto; }}
.swipe .map {{ position: absolute; inset: 0; width: 100%; height: 100%; clip-path: inset(0 0 0 var(--cut)); }}
.swipe i {{ position: absolute; top: 0; bottom: 0; left: var(--cut); border-left: 2px solid #fff;
 outline: 1px solid #000; }}
.swipe input {{ position: absolute; inset: 0; width: 100%; height: 100%; margin: 0; opacity: 0;
 cursor: ew-resize; }}
.swipe:focus-within {{ outline: 3px solid Highlight; }}
table {{ border-collapse: collapse; margin-top: 1rem; }}
td, th {{ padding: .15rem .75rem .15rem 0; text-align: left; }}
td:last-child, th:last-child {{ text-align: right; font-variant-numeric: tabular-nums; }}
.swatch {{ display: inline-block; width: 1.1em; height: 1.1em; vertical-align: -.2em;
 border: 1px solid GrayText; }}
</style>
</head>
<body>
<h1>{title}</h1>
<p>Left of the line the scene in decibels, right of it its map. Drag, or use the arrow keys.</p>
<div class="swipe">
<img src="data:image/png;base64,{grey}" alt="the scene">
<img class="map" src="data:image/png;base64,{map}" alt="its class map">
<i></i>
<input type="range" min="0" max="100" step="0.5" value="50" aria-label="from the map to the scene, in percent"
 oninput="this.parentNode.style.setProperty('--cut', this.value + '%')">
</div>
<table>
<tr><th></th><th>Class</th><th>Share</th></tr>
{legend}
</table>
</body>
</html>
"""


def write_page(look: QuickLook, target: Path, title: str, classes: ClassTable, pixels: np.ndarray) -> Path:
    """Writes the page of a scene.

    Args:
        title: of the page, any text.
        pixels: (256,) number of pixels of the whole map by class number, 255 for not measured.

    Raises:
        InputError: it cannot be written.
    """
    rows = [
        _row("#" + "".join(f"{channel:02x}" for channel in color), name, pixels[index] / pixels.sum())
        for index, (name, color) in enumerate(zip(classes.names, classes.palette, strict=True))
    ]
    if pixels[IGNORE_INDEX]:
        rows.append(_row(None, "not measured", pixels[IGNORE_INDEX] / pixels.sum()))
    text = _PAGE.format(
        title=escape(title),
        width=look.grey.shape[1],
        grey=_png(look.grey),
        map=_png(np.dstack([colored(look, classes), np.where(look.classes == IGNORE_INDEX, 0, 255)])),
        legend="\n".join(rows),
    )
    return write_text(target, text)


def _row(color: str | None, name: str, share: float) -> str:
    swatch = f'<span class="swatch" style="background:{color}"></span>' if color else ""
    return f"<tr><td>{swatch}</td><td>{escape(name)}</td><td>{share:.1%}</td></tr>"


def _png(pixels: np.ndarray) -> str:
    file = io.BytesIO()
    Image.fromarray(pixels.astype(np.uint8)).save(file, format="PNG", optimize=True)
    return base64.b64encode(file.getvalue()).decode("ascii")
