"""Published numbers beside ours: a YAML file that says what a paper prints.

```yaml
unit: percent          # or: fraction. PS has no unit.
numbers:
  - method: LwF        # a method, or a row's name in the table
    data: SplitCIFAR100    # optional: only for this data set
    task_sizes: [10, 10, 10, 10, 10, 10, 10, 10, 10, 10]    # optional: only for these tasks
    source: NFL, table 4
    class_il: {AIA: 29.7}
```
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightning_cil.report.groups import Group
from lightning_cil.types import SCENARIOS, Scenario

KEYS = ("method", "data", "task_sizes", "source", *SCENARIOS)


@dataclass(frozen=True)
class Published:
    """A row of a paper's table.

    Args:
        method: A method's class or the label of a row of ours.
        data: A data set's class; `None`: any.
        source: Paper and table.
        class_il: Score → fraction (PS: number).
        task_il: The same for Task-IL.
        task_sizes: Classes of each task; `None`: any.
    """

    method: str
    data: str | None
    source: str
    class_il: dict[str, float]
    task_il: dict[str, float]
    task_sizes: tuple[int, ...] | None = None

    def scores(self, scenario: Scenario) -> dict[str, float]:
        """The numbers of a scenario."""
        return self.class_il if scenario == "class_il" else self.task_il

    def fits(self, group: Group) -> bool:
        """Whether the numbers stand beside a group's."""
        named = self.method in (group.label, group.first.method) and self.data in (None, group.first.data)
        return named and self.task_sizes in (None, group.first.task_sizes)

    def closeness(self, group: Group) -> int:
        """How many of its words tell the group from others: of several entries that fit, the closest counts."""
        return (self.method == group.label) + (self.data is not None) + (self.task_sizes is not None)


def read_published(path: Path) -> list[Published]:
    """Read such a file.

    Raises:
        ValueError: If it is no such file; names file, entry and what was expected.
        FileNotFoundError: If there is none.
    """
    import yaml

    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist; expected a YAML file with published numbers (--published).")
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is no YAML: {error}") from error
    if not isinstance(content, dict) or content.get("unit") not in ("percent", "fraction"):
        raise ValueError(f"{path}: expected `unit: percent` (or `fraction`) and a list `numbers` at the top.")
    entries = content.get("numbers")
    if not isinstance(entries, list) or set(content) != {"unit", "numbers"}:
        raise ValueError(f"{path}: has the keys {sorted(map(str, content))}, expected `unit` and a list `numbers`.")
    found = [_entry(path, i, entry, content["unit"] == "percent") for i, entry in enumerate(entries)]
    _refuse_doubles(path, found)
    return found


def _refuse_doubles(path: Path, found: Sequence[Published]) -> None:
    first: dict[tuple[object, ...], int] = {}
    for number, entry in enumerate(found, 1):
        for scenario in SCENARIOS:
            for score in entry.scores(scenario):
                key = (entry.method, entry.data, entry.task_sizes, scenario, score)
                if key in first:
                    raise ValueError(
                        f"{path}: entries {first[key]} and {number} of `numbers` both give {scenario} {score} of "
                        f"{entry.method}; only one can stand beside a row. Keep one, or tell them apart by `data` or "
                        "`task_sizes`."
                    )
                first[key] = number


def unmatched(published: Sequence[Published], groups: Sequence[Group]) -> list[str]:
    """Notes on entries that stand beside no row."""
    names = ", ".join(dict.fromkeys(g.label for g in groups))
    lost = [p for p in published if not any(p.fits(g) for g in groups)]
    return [f"published numbers of {p.method} ({p.source}) fit no row; the rows are {names}" for p in lost]


def _entry(path: Path, index: int, entry: Any, percent: bool) -> Published:
    from lightning_cil.metrics.scores import FORMULAS

    where = f"{path}: entry {index + 1} of `numbers`"
    if not isinstance(entry, dict) or not isinstance(entry.get("method"), str) or not entry.get("source"):
        raise ValueError(f"{where} is {entry!r}, expected a `method`, a `source` and the scores of a scenario.")
    unknown = set(map(str, entry)) - set(KEYS)
    if unknown:
        raise ValueError(f"{where} has the key {sorted(unknown)[0]!r}, expected some of {', '.join(KEYS)}.")
    found: dict[str, dict[str, float]] = {}
    for scenario in SCENARIOS:
        scores = entry.get(scenario) or {}
        if not isinstance(scores, dict):
            raise ValueError(f"{where}: `{scenario}` is {scores!r}, expected scores such as {{ACC: 43.2}}.")
        found[scenario] = {}
        for name, value in scores.items():
            number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
            if name not in FORMULAS or not number:
                raise ValueError(
                    f"{where}: `{scenario}` has {name}: {value!r}, expected a number for one of {', '.join(FORMULAS)}."
                )
            scaled = value / 100 if percent and name != "PS" else float(value)
            if name != "PS" and not -1 <= scaled <= 1:
                raise ValueError(
                    f"{where}: `{scenario}` has {name}: {value}, no {'percentage' if percent else 'fraction'}; "
                    "say `unit: percent` or `unit: fraction` at the top."
                )
            found[scenario][str(name)] = scaled
    if not any(found.values()):
        raise ValueError(f"{where} gives no score; expected some, such as `class_il: {{ACC: 43.2}}`.")
    data, sizes = entry.get("data"), entry.get("task_sizes")
    if data is not None and not isinstance(data, str):
        raise ValueError(f"{where}: `data` is {data!r}, expected the class of a data set, such as SplitCIFAR100.")
    if sizes is not None and not (isinstance(sizes, list) and sizes and all(type(s) is int and s > 0 for s in sizes)):
        raise ValueError(
            f"{where}: `task_sizes` is {sizes!r}, expected the classes of each task, such as [50, 10, 10]."
        )
    only = tuple(sizes) if sizes is not None else None
    return Published(entry["method"], data, str(entry["source"]), found["class_il"], found["task_il"], only)
