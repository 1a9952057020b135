"""Markdown table of finished runs, from their results.json.

python benchmarks/cifar100/table.py RUN [RUN …]
"""

import json
import sys
from pathlib import Path
from typing import Any


def percent(value: float | None) -> str:
    """In percent, or a dash."""
    return "-" if value is None else f"{100 * value:.2f}"


def row(results: dict[str, Any]) -> str:
    """One run as a line."""
    scores = results["scores"]
    cells = [percent(scores["class_il"][n]) for n in ("ACC", "AIA", "BWT", "AF")]
    cells += [percent(scores["task_il"][n]) for n in ("ACC", "FWT", "BWT")]
    train = sum(s["seconds"] for s in results["seconds"] if s["stage"] in ("train", "joint"))
    return f"| {results['method']} | {results['seed']} | " + " | ".join(cells) + f" | {train:.0f} |"


def main(runs: list[Path]) -> None:
    """Print the table, best Class-IL first."""
    found = [json.loads((run / "results.json").read_text()) for run in runs]
    found.sort(key=lambda r: -r["scores"]["class_il"]["ACC"])
    print("| method | seed | Class-IL ACC | AIA | BWT | AF | Task-IL ACC | FWT | BWT | training s |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    print("\n".join(row(results) for results in found))


if __name__ == "__main__":
    main([Path(argument) for argument in sys.argv[1:]])
