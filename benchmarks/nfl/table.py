"""Markdown tables of the runs that `run.py` made: mean and sample standard deviation over seeds, in percent.

python benchmarks/nfl/table.py OUT
"""

import json
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

SCORES = [("class_il", name) for name in ("ACC", "AIA", "BWT", "AF")]
SCORES += [("task_il", name) for name in ("ACC", "FWT", "BWT")]
PAPER = {  # the paper's table 4 (2,000 exemplars) and table 3 (none; 500 to 5,120 exemplars)
    "NFL": ("66.59", "83.45"),
    "NFLPlus": ("70.22", "92.68"),
    "LwF": ("43.14", "62.86"),
    "FineTune": ("-", "58.41"),
    "Joint": ("-", "97.40"),
    "Coil": ("59.67", "81.25 to 86.27"),
    "ICaRL": ("63.97", "86.93 to 89.26"),
    "DERPlusPlus": ("68.41", "88.45 to 90.45"),
    "MEMO": ("69.92", "89.01 to 90.87"),
}
NONE = ("-", "-")
OTHER = {"linear": "linear head", "nme": "nearest mean"}
"""The classifier of iCaRL and Coil that does not predict, scored beside the other."""


def percent(values: Sequence[float | None]) -> str:
    """Mean, and standard deviation of two or more."""
    known = [100 * v for v in values if v is not None]
    if not known:
        return "-"
    deviation = f" ± {statistics.stdev(known):.2f}" if len(known) > 1 else ""
    return f"{statistics.mean(known):.2f}{deviation}"


def finished(folder: Path, tasks: int) -> list[dict[str, Any]]:
    """Results of all seeds of a cell, after so many tasks."""
    found = [json.loads(path.read_text()) for path in sorted(folder.glob("seed_*/version_*/results.json"))]
    return [r for r in found if r["tasks_done"] >= tasks]


def cells(out: Path) -> list[str]:
    """A line for each cell whose runs are over, best Class-IL AIA first; a second classifier has its own."""
    lines = []
    for folder in out.glob("cells/*"):
        runs = finished(folder, 10)
        others = [r["other_classifier"] for r in runs if "other_classifier" in r]
        second = f"{folder.name}, {OTHER[others[0]['name']]}" if others else ""
        for name, scored in ((folder.name, runs), (second, others)):
            if scored:
                values = {s: [r["scores"][s[0]][s[1]] for r in scored] for s in SCORES}
                shown = [percent(v) for v in values.values()]
                seconds = [sum(t["seconds"] for t in r["seconds"] if "evaluation" not in t["stage"]) for r in runs]
                first = values["class_il", "AIA"][0] or values["class_il", "ACC"][0]
                beside = PAPER.get(name, NONE)
                line = [name, len(scored), *shown, *beside, f"{statistics.mean(seconds) / 60:.0f}"]
                lines.append((first, "| " + " | ".join(map(str, line)) + " |"))
    return [line for _, line in sorted(lines, reverse=True)]


def ablation(out: Path) -> list[str]:
    """Accuracy after two tasks: of both, of the second and of the first."""
    lines = []
    for folder in [*(out / "cells" / name for name in ("LwF", "NFL")), *sorted(out.glob("ablation/*"))]:
        runs = finished(folder, 2)
        shown: list[str] = []
        for scenario in ("class_il", "task_il"):
            rows = [r["matrix"][scenario][1][:2] for r in runs]
            shown += [percent([sum(v) / 2 for v in rows]), *(percent([v[k] for v in rows]) for k in (1, 0))]
        if runs:
            lines.append(f"| {folder.name.replace('_', ' ')} | {len(runs)} | " + " | ".join(shown) + " |")
    return lines


def main(out: Path) -> None:
    """Print both tables."""
    print("| method | seeds | Class-IL ACC | AIA | BWT | AF | Task-IL ACC | FWT | BWT | paper, 4 | paper, 3 | min |")
    print("|---|---|---|---|---|---|---|---|---|---|---|---|")
    print("\n".join(cells(out)), end="\n\n")
    print("| after 2 tasks | seeds | Class-IL ACC | new | old | Task-IL ACC | new | old |")
    print("|---|---|---|---|---|---|---|---|")
    print("\n".join(ablation(out)))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
