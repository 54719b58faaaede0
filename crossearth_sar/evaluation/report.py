"""Benchmark scores as tables beside the paper's: JSON, CSV, Markdown and one self-contained HTML page.

Numbers of the paper are marked as the paper's wherever they stand beside measured ones: they come from
another split, other code and other weights.
"""

from __future__ import annotations

import base64
import csv
import html
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from crossearth_sar.data.sample import ClassTable
from crossearth_sar.evaluation.protocol import BenchmarkScore
from crossearth_sar.evaluation.registry import PaperMethod, paper_methods

PAPER_MARK = "†"
"""Stands beside every number that is the paper's."""

_STYLE = """
:root{color-scheme:light dark;--ink:#222;--soft:#666;--line:#ddd;--page:#fff;--band:#f4f6f8;--own:#d55e00}
@media(prefers-color-scheme:dark){:root{--ink:#e8e8e8;--soft:#a5a5a5;--line:#3a3a3a;--page:#16181a;
--band:#1f2326}}
body{font:15px/1.5 system-ui,sans-serif;color:var(--ink);background:var(--page);max-width:72rem;
margin:2rem auto;padding:0 1rem}
h1{font-size:1.6rem}h2{font-size:1.2rem;margin-top:2.5rem;border-bottom:1px solid var(--line)}
table{border-collapse:collapse;font-variant-numeric:tabular-nums;margin:.8rem 0}
.wide{overflow-x:auto}th,td{padding:.25rem .55rem;text-align:right;border-bottom:1px solid var(--line)}
th:first-child,td:first-child{text-align:left;white-space:nowrap}tr.own{font-weight:600;background:var(--band)}
tr.own td:first-child{border-left:3px solid var(--own)}img{max-width:100%;height:auto;background:#fff}
.swatch{display:inline-block;width:.8em;height:.8em;margin-right:.4em;border:1px solid #8888}
.note{color:var(--soft)}
"""


def write_tables(
    folder: Path,
    name: str,
    scores: Sequence[BenchmarkScore],
    *,
    about: Mapping[str, Any],
    absent: Mapping[str, str],
) -> None:
    """results.json, results.csv, results.md and confusion-*.csv in `folder`."""
    content = {
        "model": name,
        "provenance": dict(about),
        "benchmarks": [score.to_mapping() for score in scores],
        "absent": dict(absent),
        "paper": {
            method.name: {s.row.key: method.scores[s.row.key] for s in scores} for method in paper_methods()
        },
    }
    (folder / "results.json").write_text(
        json.dumps(content, indent=2, allow_nan=False) + "\n", encoding="utf-8"
    )
    with (folder / "results.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["method", "benchmark", "miou_percent", "origin"])
        for score in scores:
            writer.writerow([name, score.row.key, _number(100 * score.miou), "measured"])
        for method in paper_methods():
            writer.writerows([method.name, s.row.key, method.scores[s.row.key], "paper"] for s in scores)
    for score in scores:
        with (folder / f"confusion-{score.row.slug}.csv").open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            names = score.row.classes.classes.names
            writer.writerow(["target \\ predicted", *names])
            writer.writerows(
                [label, *counts] for label, counts in zip(names, score.confusion.counts.tolist(), strict=True)
            )
    (folder / "results.md").write_text(_markdown(name, scores, about, absent), encoding="utf-8")


def write_html(
    folder: Path,
    name: str,
    scores: Sequence[BenchmarkScore],
    *,
    about: Mapping[str, Any],
    absent: Mapping[str, str],
    pictures: Mapping[str, Path],
) -> Path:
    """report.html in `folder`, pictures embedded: it can be mailed as one file.

    Args:
        pictures: caption -> PNG, shown in this order.
    """
    head, rows = _comparison(name, scores)
    parts = [
        f"<h1>{html.escape(name)}: {len(scores)} of 22 benchmarks</h1>",
        "<p>mIoU in percent over each benchmark's classes. Rows marked "
        f"{PAPER_MARK} are figures of the paper, not measured here.</p>",
        _html_table(head, rows, own=name),
    ]
    for score in scores:
        parts += [f"<h2>{html.escape(_title(score))}</h2>", _class_table(score)]
        parts += [f'<p class="note">{html.escape(note)}</p>' for note in score.notes]
    for caption, picture in pictures.items():
        data = base64.b64encode(picture.read_bytes()).decode()
        parts.append(
            f"<h2>{html.escape(caption)}</h2>"
            f'<img alt="{html.escape(caption)}" src="data:image/png;base64,{data}">'
        )
    if absent:
        listed = "".join(f"<li>{html.escape(key)}: {html.escape(why)}</li>" for key, why in absent.items())
        parts.append(f"<h2>Not run</h2><ul>{listed}</ul>")
    origin = "; ".join(f"{key} {value}" for key, value in about.items())
    parts.append(f'<p class="note">{html.escape(origin)}</p>')
    page = (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{html.escape(name)}</title>'
        f'<meta name="viewport" content="width=device-width"><style>{_STYLE}</style>'
        f"<body>{''.join(parts)}</body></html>\n"
    )
    path = folder / "report.html"
    path.write_text(page, encoding="utf-8")
    return path


def _comparison(name: str, scores: Sequence[BenchmarkScore]) -> tuple[list[str], list[list[str]]]:
    keys = [score.row.key for score in scores]
    head = ["Method", "Backbone", *keys, "mean"]
    own = [100 * score.miou for score in scores]
    rows = [[name, "", *map(_number, own), _number(_mean(own))]]
    for method in paper_methods():
        theirs = [method.scores[key] for key in keys]
        rows.append(
            [f"{method.name} {PAPER_MARK}", _backbone(method), *map(_number, theirs), _number(_mean(theirs))]
        )
    return head, rows


def _backbone(method: PaperMethod) -> str:
    active = f", {method.params_active} active" if method.params_active else ""
    return f"{method.backbone} ({method.params_total}{active})"


def _markdown(
    name: str, scores: Sequence[BenchmarkScore], about: Mapping[str, Any], absent: Mapping[str, str]
) -> str:
    head, rows = _comparison(name, scores)
    lines = [f"# {name}: {len(scores)} of 22 benchmarks", ""]
    lines += [f"mIoU in percent. {PAPER_MARK} marks figures of the paper, which were not measured here.", ""]
    lines += ["| " + " | ".join(head) + " |", "|---|---|" + "---:|" * (len(head) - 2)]
    lines += ["| " + " | ".join(row) + " |" for row in rows]
    for score in scores:
        names = score.row.classes.classes.names
        iou = score.confusion.scores().iou.tolist()
        lines += ["", f"## {_title(score)}", "", "| class | IoU |", "|---|---:|"]
        lines += [
            f"| {_class_name(score, label)} | {_number(100 * value)} |"
            for label, value in zip(names, iou, strict=True)
        ]
        lines += ["", *(f"- {note}" for note in score.notes)]
    if absent:
        lines += ["", "## Not run", "", *(f"- {key}: {why}" for key, why in absent.items())]
    lines += ["", "; ".join(f"{key} {value}" for key, value in about.items())]
    return "\n".join(lines) + "\n"


def _title(score: BenchmarkScore) -> str:
    row = score.row
    return f"{row.key}: {row.source} → {row.target} ({row.gap}), {score.images} images"


def _html_table(head: Sequence[str], rows: Sequence[Sequence[str]], own: str) -> str:
    cells = "".join(f"<th>{html.escape(cell)}</th>" for cell in head)
    body = "".join(
        f"<tr{' class=own' if row[0] == own else ''}>"
        + "".join(f"<td>{html.escape(cell)}</td>" for cell in row)
        + "</tr>"
        for row in rows
    )
    return f'<div class="wide"><table><tr>{cells}</tr>{body}</table></div>'


def _class_table(score: BenchmarkScore) -> str:
    classes: ClassTable = score.row.classes.classes
    found = score.confusion.scores()
    rows = []
    for i, (name, color) in enumerate(zip(classes.names, classes.palette, strict=True)):
        swatch = f'<span class="swatch" style="background:rgb{color}"></span>'
        shown = html.escape(_class_name(score, name))
        iou, share = float(found.iou[i]), float(found.target_share[i])
        rows.append(
            f"<tr><td>{swatch}{shown}</td><td>{_number(100 * iou)}</td><td>{_number(100 * share)}</td></tr>"
        )
    return (
        f"<p>mIoU <strong>{_number(100 * score.miou)}</strong></p><table><tr><th>Class</th><th>IoU %</th>"
        f"<th>share of pixels %</th></tr>{''.join(rows)}</table>"
    )


def _class_name(score: BenchmarkScore, name: str) -> str:
    return name if name in score.row.classes.scored else f"{name} (not scored)"


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else math.nan


def _number(value: float) -> str:
    return "–" if math.isnan(value) else f"{value:.1f}"
