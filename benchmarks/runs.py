"""What the scripts that make many runs share: which are finished, and a cell of their table."""

import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def finished(folder: Path) -> dict[str, Any] | None:
    """The results of a run with all its tasks."""
    for path in folder.glob("**/results.json"):
        results: dict[str, Any] = json.loads(path.read_text())
        if results["tasks_done"] == len(results["task_sizes"]):
            return results
    return None


def spread(values: Sequence[float | None], scale: float = 100, digits: int = 1) -> str:
    """Mean and standard deviation over runs, in percent by default; `-` if a run has no such value."""
    known = [scale * v for v in values if v is not None]
    if not known or len(known) < len(values):
        return "-"
    deviation = f" ± {statistics.stdev(known):.{digits}f}" if len(known) > 1 else ""
    return f"{statistics.mean(known):.{digits}f}{deviation}"
