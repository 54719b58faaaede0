"""The DI3CL paper's scores (arXiv 2511.07808, Tables II and III), as data, and what their mean IoU counts.

The printed mIoU is not that of the ten classes whose F1 stands beside it. IoU = F1 / (2 - F1) of the ten
gives a mean that is four to six points lower in every row, and one more class, right almost everywhere,
explains each of them. So both stand here: to compare with a mean over ten classes, take the second.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

REMARK = (
    "The printed mIoU counts an eleventh class, which the tables do not show: the mean over the ten classes "
    "is the second figure, from the printed F1 by IoU = F1 / (2 - F1), and the third is the IoU that the "
    "eleventh must have. Data set, split and sensor are not named; single runs. The public code of DI3CL "
    "starts from ImageNet weights."
)


@dataclass(frozen=True, kw_only=True)
class PublishedRow:
    """A line of the tables, in percent as printed. f1: by class. others: OA and Kappa, where printed."""

    table: str
    method: str
    miou: float
    f1: dict[str, float]
    others: dict[str, float]

    @property
    def ten_class_miou(self) -> float:
        """Mean IoU of the classes whose F1 is printed."""
        return sum(self._iou()) / len(self.f1)

    @property
    def eleventh_iou(self) -> float:
        """IoU of the one more class with which the printed mean comes out."""
        return (len(self.f1) + 1) * self.miou - sum(self._iou())

    def _iou(self) -> list[float]:
        return [100 * f1 / (200 - f1) for f1 in self.f1.values()]


@cache
def di3cl_results() -> tuple[PublishedRow, ...]:
    """The 24 rows, in the paper's order."""
    text = files("crossearth_sar.evaluation").joinpath("di3cl_results.csv").read_text(encoding="utf-8")
    found: dict[tuple[str, str], dict[str, float]] = {}
    for line in csv.DictReader(text.splitlines()):
        table = "III" if "Table III" in line["dataset"] else "II"
        found.setdefault((table, line["method"]), {})[line["metric"]] = float(line["value"])
    return tuple(
        PublishedRow(
            table=table,
            method=method,
            miou=values["mIoU"],
            f1={key.removeprefix("F1 "): value for key, value in values.items() if key.startswith("F1 ")},
            others={key: values[key] for key in ("OA", "Kappa") if key in values},
        )
        for (table, method), values in found.items()
    )


def published_lines() -> list[str]:
    """Both tables as Markdown, with the remark."""
    lines = ["DI3CL (arXiv 2511.07808), land-cover mapping in SAR; published, not measured here.", "", REMARK]
    for table in ("II", "III"):
        lines += [
            "",
            f"| Table {table} | mIoU as printed | mIoU of ten classes | IoU of the eleventh |",
            "|---|---:|---:|---:|",
        ]
        lines += [
            f"| {row.method} | {row.miou:.2f} | {row.ten_class_miou:.2f} | {row.eleventh_iou:.2f} |"
            for row in di3cl_results()
            if row.table == table
        ]
    return lines
