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
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from crossearth_sar.data.sample import ClassTable
from crossearth_sar.evaluation.figures.canvas import DPI
from crossearth_sar.evaluation.markdown import write_markdown
from crossearth_sar.evaluation.protocol import BenchmarkScore
from crossearth_sar.evaluation.registry import BENCHMARKS, Benchmark, PaperMethod, paper_methods
from crossearth_sar.whole import table, write_text

PAPER_MARK = "†"
"""Stands beside every number that is the paper's."""

EXPERTS_TABLE = "experts-by-domain.csv"
"""File of the experts' shares of every row, of sparse models only."""

SUMMARY_METHODS = ("DINOv2", "CrossEarth-SAR-L")
"""Methods of the paper that stand in the page's summary; all of them stand in the table further down."""

_STYLE = """
:root{color-scheme:light dark;--ink:#222;--soft:#5f6368;--line:#dcdfe3;--page:#fff;--band:#f3f5f7;
--own:#d55e00;--link:#0b62a4}
@media(prefers-color-scheme:dark){:root{--ink:#e6e6e6;--soft:#a3a8ad;--line:#3a3f44;--page:#16181a;
--band:#212529;--link:#7cc0f4}img{filter:brightness(.88)}}
*{box-sizing:border-box}
body{font:15px/1.5 system-ui,sans-serif;color:var(--ink);background:var(--page);max-width:80rem;
margin:2rem auto 4rem;padding:0 1rem}
h1{font-size:1.7rem;margin:0 0 .4rem;overflow-wrap:anywhere}
h2{font-size:1.3rem;margin:3rem 0 .6rem;padding-bottom:.2rem;border-bottom:1px solid var(--line)}
h3{font-size:1.05rem;margin:2.5rem 0 .4rem}p{max-width:52rem;margin:.5rem 0}a{color:var(--link)}
.note,figcaption{color:var(--soft);font-size:.87rem}.small{color:var(--soft);font-size:.92em}
table{border-collapse:collapse;font-variant-numeric:tabular-nums;margin:.6rem 0}
th,td{padding:.22rem .55rem;text-align:right;border-bottom:1px solid var(--line);white-space:nowrap}
th{font-weight:600;vertical-align:bottom}th.text,td.text{text-align:left}
tr.own,td.own{font-weight:600;background:var(--band)}tr.mean td{border-top:2px solid var(--line)}
.wide{overflow-x:auto;max-width:100%}
.summary{font-size:.93rem}.summary th,.summary td{padding:.22rem .42rem}
.summary th{white-space:normal}.summary th:not(.text){width:1%;min-width:5rem}
.many{font-size:.8rem}.many th,.many td{padding:.2rem .28rem}.many td.text{white-space:normal}
.many th:first-child,.many td:first-child{position:sticky;left:0;background:var(--page);
border-right:1px solid var(--line)}
.many tr.own td:first-child{background:var(--band);box-shadow:inset 3px 0 var(--own)}
.row{display:flex;flex-wrap:wrap;gap:.5rem 2rem;align-items:flex-start}.row figure{flex:1 1 34rem}
figure{margin:1rem 0 1.6rem}figcaption{max-width:52rem;margin-top:.4rem}
img{display:block;max-width:100%;height:auto;background:#fff;border:1px solid var(--line);border-radius:4px}
.swatch{display:inline-block;width:.8em;height:.8em;margin-right:.45em;border:1px solid #888}
dl{display:grid;grid-template-columns:max-content 1fr;gap:.1rem 1rem;font-size:.87rem}dt{color:var(--soft)}
dd{margin:0;overflow-wrap:anywhere}li{margin:.2rem 0;overflow-wrap:anywhere}
@media print{body{max-width:none}img{filter:none}.wide{overflow:visible}}
"""


@dataclass(frozen=True, kw_only=True)
class Picture:
    """A PNG in the page. caption: how to read it. row: the benchmark it belongs to; None: to all of them."""

    path: Path
    title: str
    caption: str
    row: str | None = None


def write_tables(
    folder: Path,
    name: str,
    scores: Sequence[BenchmarkScore],
    *,
    about: Mapping[str, Any],
    absent: Mapping[str, str],
) -> None:
    """results.json, results.csv, results.md, confusion-*.csv and, of sparse models, EXPERTS_TABLE."""
    content = {
        "model": name,
        "provenance": dict(about),
        "benchmarks": [score.to_mapping() for score in scores],
        "absent": dict(absent),
        "paper": {
            method.name: {s.row.key: method.scores[s.row.key] for s in scores if s.row.key in BENCHMARKS}
            for method in paper_methods()
        },
    }
    write_text(folder / "results.json", json.dumps(content, indent=2, allow_nan=False) + "\n")
    with table(folder / "results.csv") as file:
        writer = csv.writer(file)
        writer.writerow(["method", "benchmark", "miou_percent", "origin"])
        for score in scores:
            writer.writerow([name, score.row.key, _number(100 * score.miou), "measured"])
        for method in paper_methods():
            found = {s.row.key: method.scores[s.row.key] for s in scores if s.row.key in BENCHMARKS}
            writer.writerows([method.name, key, value, "paper"] for key, value in found.items())
    for score in scores:
        with table(folder / f"confusion-{score.row.slug}.csv") as file:
            writer = csv.writer(file)
            names = score.row.classes.classes.names
            writer.writerow(["target \\ predicted", *names])
            writer.writerows(
                [label, *counts] for label, counts in zip(names, score.confusion.counts.tolist(), strict=True)
            )
    _write_experts(folder, scores)
    write_markdown(folder / "results.md", _markdown(name, scores, about, absent))


def _write_experts(folder: Path, scores: Sequence[BenchmarkScore]) -> None:
    sparse = [score for score in scores if score.expert_share_LE.numel()]
    if not sparse:
        return
    with table(folder / EXPERTS_TABLE) as file:
        writer = csv.writer(file)
        writer.writerow(["benchmark", "layer", "expert", "share"])
        for score in sparse:
            for layer, shares in enumerate(score.expert_share_LE.tolist()):
                writer.writerows(
                    [score.row.key, layer, expert, f"{share:.6f}"] for expert, share in enumerate(shares)
                )


_INTRODUCTION = (
    "<p>What this is: scores of one model on benchmarks of SAR segmentation across domains. A row trains "
    "on one domain and tests on another, which differs in region, polarization, band, platform or form "
    "of the signal. Scores are the mean IoU over the row's classes, in percent. "
    f"{PAPER_MARK} marks figures of the paper, which were not measured here: they come from another "
    "split, other code and other weights.</p>"
)


def write_html(
    folder: Path,
    name: str,
    scores: Sequence[BenchmarkScore],
    *,
    about: Mapping[str, Any],
    absent: Mapping[str, str],
    pictures: Sequence[Picture],
) -> Path:
    """report.html in `folder`, pictures embedded: it can be mailed as one file.

    From the whole to the parts: what it is, a summary, pictures of all rows, the paper's methods, each row
    with its pictures, what was not run, and where the figures come from.

    Args:
        pictures: shown in this order, those of a row with the row.
    """
    shown = html.escape(name)
    parts = [
        f"<h1>{shown}: {_how_many(scores)}</h1>",
        _INTRODUCTION,
        "<h2>Summary</h2>",
        _summary(scores),
        *(_figure(picture) for picture in pictures if picture.row is None),
        "<h2>Beside the paper's methods</h2>",
        _method_table(name, scores),
        "<h2>Row by row</h2>",
    ]
    for score in scores:
        mine = [picture for picture in pictures if picture.row == score.row.key]
        parts.append(_row_section(score, mine))
    if absent:
        parts.append(f"<h2>Not run</h2><ul>{''.join(_absent_items(absent))}</ul>")
    origin = "".join(
        f"<dt>{html.escape(str(key))}</dt><dd>{html.escape(str(value))}</dd>" for key, value in about.items()
    )
    parts.append(f"<h2>Where the figures come from</h2><dl>{origin}</dl>")
    page = (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{shown}</title>'
        f'<meta name="viewport" content="width=device-width,initial-scale=1"><style>{_STYLE}</style>'
        f"<body>{''.join(parts)}</body></html>\n"
    )
    return write_text(folder / "report.html", page)


def _comparison(name: str, scores: Sequence[BenchmarkScore]) -> tuple[list[str], list[list[str]]]:
    keys = [score.row.key for score in scores]
    head = ["Method", "Backbone", *keys, "mean"]
    own = [100 * score.miou for score in scores]
    rows = [[name, "", *map(_number, own), _number(_mean(own))]]
    for method in paper_methods():
        theirs = [method.score(key) for key in keys]
        rows.append(
            [f"{method.name} {PAPER_MARK}", _backbone(method), *map(_number, theirs), _number(_mean(theirs))]
        )
    return head, rows


def _how_many(scores: Sequence[BenchmarkScore]) -> str:
    others = sum(score.row.key not in BENCHMARKS for score in scores)
    papers = f"{len(scores) - others} of {len(BENCHMARKS)} benchmarks"
    return f"{papers} and {others} beside the paper" if others else papers


def _backbone(method: PaperMethod) -> str:
    active = f", {method.params_active} active" if method.params_active else ""
    return f"{method.backbone} ({method.params_total}{active})"


def _markdown(
    name: str, scores: Sequence[BenchmarkScore], about: Mapping[str, Any], absent: Mapping[str, str]
) -> str:
    head, rows = _comparison(name, scores)
    lines = [f"# {name}: {_how_many(scores)}", ""]
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
    row, images = score.row, "1 image" if score.images == 1 else f"{score.images} images"
    return f"{row.key}: {row.source} → {row.target} ({row.gap}), {images}"


def _summary(scores: Sequence[BenchmarkScore]) -> str:
    """A line per row: our score beside the paper's best known figures."""
    methods = paper_methods()
    chosen = [method for method in methods if method.name in SUMMARY_METHODS]
    heads = [
        '<th class="text">Row</th><th>mIoU here</th>',
        *(f"<th>{html.escape(method.name)}&nbsp;{PAPER_MARK}</th>" for method in chosen),
        f"<th>Best of {len(methods)}&nbsp;{PAPER_MARK}</th>",
        f'<th>Images here</th><th>in the paper&nbsp;{PAPER_MARK}</th><th class="text">Gap</th>',
        '<th class="text">Trained on → tested on</th>',
    ]
    lines, figures = [], []
    for score in scores:
        row = score.row
        found = [100 * score.miou, *(method.score(row.key) for method in chosen)]
        found.append(max(method.score(row.key) for method in methods))
        figures.append(found)
        words = (row.gap.replace("+", " + "), _sides(row))
        lines.append(
            f'<tr><td class="text"><a href="#{row.slug}">{html.escape(row.key)}</a></td>{_score_cells(found)}'
            f"<td>{score.images}</td><td>{row.test_images or '–'}</td>"
            + "".join(f'<td class="text">{html.escape(word)}</td>' for word in words)
            + "</tr>"
        )
    if len(scores) > 1:
        means = [_mean(column) for column in zip(*figures, strict=True)]
        lines.append(
            f'<tr class="mean"><td class="text">mean of {len(scores)}</td>{_score_cells(means)}'
            '<td colspan="4"></td></tr>'
        )
    return f'<div class="wide summary"><table><tr>{"".join(heads)}</tr>{"".join(lines)}</table></div>'


def _sides(row: Benchmark) -> str:
    source, target = row.source, row.target
    if source.dataset == target.dataset:
        return f"{source.dataset}: {source.domain} → {target.domain}"
    return f"{source} → {target}"


def _score_cells(values: Sequence[float]) -> str:
    own, *others = map(_number, values)
    return f'<td class="own">{own}</td>' + "".join(f"<td>{value}</td>" for value in others)


def _method_table(name: str, scores: Sequence[BenchmarkScore]) -> str:
    """All methods. The table is wider than most pages: the mean comes first, the names stay in sight."""
    head, rows = _comparison(name, scores)
    method, _, *keys, mean = map(html.escape, head)
    lines = []
    for line in rows:
        label, backbone, *values, average = map(html.escape, line)
        under = f'<br><span class="small">{backbone}</span>' if backbone else ""
        lines.append(
            f"<tr{' class=own' if line is rows[0] else ''}><td class=text>{label}{under}</td>"
            + "".join(f"<td>{value}</td>" for value in (average, *values))
            + "</tr>"
        )
    heads = f"<th class=text>{method}</th>" + "".join(f"<th>{key}</th>" for key in (mean, *keys))
    return f'<div class="wide many"><table><tr>{heads}</tr>{"".join(lines)}</table></div>'


def _row_section(score: BenchmarkScore, pictures: Sequence[Picture]) -> str:
    notes = "".join(f'<p class="note">{html.escape(note)}</p>' for note in score.notes)
    first, rest = pictures[:1], pictures[1:]
    return (
        f'<h3 id="{score.row.slug}">{html.escape(_title(score))}</h3>{notes}'
        f'<div class="row">{_class_table(score)}{"".join(map(_figure, first))}</div>'
        f"{''.join(map(_figure, rest))}"
    )


def _figure(picture: Picture) -> str:
    """At the size it was drawn for, or as wide as the page; the PNG has more pixels for sharp screens."""
    content = picture.path.read_bytes()
    width = int.from_bytes(content[16:20], "big")  # of the PNG's header
    data = base64.b64encode(content).decode()
    return (
        f'<figure><img alt="{html.escape(picture.title)}" width="{round(width * 96 / DPI)}" '
        f'src="data:image/png;base64,{data}"><figcaption>{html.escape(picture.caption)}</figcaption></figure>'
    )


def _absent_items(absent: Mapping[str, str]) -> list[str]:
    rows: dict[str, list[str]] = {}
    for key, reason in absent.items():
        rows.setdefault(reason, []).append(key)
    return [f"<li>{html.escape(', '.join(keys))}: {html.escape(why)}</li>" for why, keys in rows.items()]


def _class_table(score: BenchmarkScore) -> str:
    classes: ClassTable = score.row.classes.classes
    found = score.confusion.scores()
    rows = []
    for i, (name, color) in enumerate(zip(classes.names, classes.palette, strict=True)):
        swatch = f'<span class="swatch" style="background:rgb{color}"></span>'
        shown = html.escape(_class_name(score, name))
        iou, share = float(found.iou[i]), float(found.target_share[i])
        rows.append(
            f'<tr><td class="text">{swatch}{shown}</td><td>{_number(100 * iou)}</td>'
            f"<td>{_number(100 * share)}</td></tr>"
        )
    return (
        '<table><tr><th class="text">Class</th><th>IoU %</th><th>Share of<br>pixels %</th></tr>'
        f'{"".join(rows)}<tr class="mean"><td class="text">mIoU</td>'
        f'<td class="own">{_number(100 * score.miou)}</td><td></td></tr></table>'
    )


def _class_name(score: BenchmarkScore, name: str) -> str:
    return name if name in score.row.classes.scored else f"{name} (not scored)"


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else math.nan


def _number(value: float) -> str:
    return "–" if math.isnan(value) else f"{value:.1f}"
