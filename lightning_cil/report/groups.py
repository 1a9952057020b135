"""Runs of one method, data, tasks and settings that differ in their seed only: a row of a table."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Any

from lightning_cil.report.runs import INDEPENDENT, Flat, Run, same_split, short, tells_apart
from lightning_cil.types import Scenario

APART = "every task has a network of its own: only the accuracy on its own task means something"
AT_ONCE = "trained on all tasks at once, so that there is nothing to measure before the last task"
ANEW = "trained anew for every task, so that nothing is carried over"


@dataclass(frozen=True)
class Stat:
    """Mean of a number over the runs of a group.

    Args:
        mean: `None`: undefined.
        std: Sample standard deviation (n - 1 in the denominator); `None` with fewer than two runs.
        n: Number of runs.
        reason: Why it is undefined.
    """

    mean: float | None
    std: float | None = None
    n: int = 0
    reason: str = ""


def mean_of(values: Sequence[float | None], reasons: Sequence[str] = ()) -> Stat:
    """Mean and sample standard deviation; undefined where one of the values is.

    A mean over those runs only in which a score is defined would be another quantity.

    Example:
        >>> mean_of([0.5, 0.75])
        Stat(mean=0.625, std=0.1767766952966369, n=2, reason='')
        >>> mean_of([0.5, None], ["", "no net forgetting"]).reason
        'undefined in 1 of 2 runs: no net forgetting'
    """
    defined = [v for v in values if v is not None]
    if not defined or len(defined) < len(values):
        found = sorted({r for v, r in zip(values, reasons, strict=False) if v is None and r})
        missing = len(values) - len(defined)
        where = f"undefined in {missing} of {len(values)} runs: " if 0 < missing < len(values) else ""
        return Stat(None, None, len(values), where + "; ".join(found))
    return Stat(fmean(defined), stdev(defined) if len(defined) > 1 else None, len(defined))


@dataclass(frozen=True)
class Group:
    """Runs of the same settings: a row of the tables.

    Args:
        label: Name of the row: the method, and what tells it from others of the same method.
        runs: In the order of their seeds.
        joint: Runs that bound it from above: same data, tasks and order of classes.
        joint_reason: Why there are none.
    """

    label: str
    runs: tuple[Run, ...]
    joint: tuple[Run, ...] = ()
    joint_reason: str = ""

    @property
    def first(self) -> Run:
        """A run that stands for all in what they share."""
        return self.runs[0]

    @property
    def complete(self) -> bool:
        """All tasks were learned."""
        return self.first.complete

    @property
    def is_joint(self) -> bool:
        """The upper bound."""
        return self.first.is_joint

    @property
    def is_independent(self) -> bool:
        """A network of its own for every task."""
        return self.first.method == INDEPENDENT

    @property
    def is_stream(self) -> bool:
        """One network learns task after task: what it forgets means something."""
        return not self.is_joint and not self.is_independent

    @property
    def trained_once(self) -> bool:
        """Nothing was measured before the last task."""
        before = [row for run in self.runs for row in run.matrix("class_il")[:-1]]
        return self.is_joint and bool(before) and all(v is None for row in before for v in row)

    def alone(self, scenario: Scenario) -> Stat:
        """Mean accuracy on each task after that task, a fraction."""
        diagonals = [[row[i] for i, row in enumerate(run.matrix(scenario))] for run in self.runs]
        return mean_of([mean_of(values).mean for values in diagonals])

    def joint_accuracy(self, run: Run, scenario: Scenario) -> float | None:
        """a* of a run: mean over the Joint runs of its class order of the accuracy on the last task, a fraction."""
        last = [j.matrix(scenario)[-1][-1] for j in self.joint if j.split == run.split]
        return None if not last else mean_of(last).mean

    def scores(self, scenario: Scenario) -> dict[str, Stat]:
        """Every score's mean over the runs, fractions."""
        if self.is_independent:
            names = self.first.scores(scenario)[0]
            return {name: Stat(None, None, len(self.runs), APART) for name in names}
        found = [run.scores(scenario, self.joint_accuracy(run, scenario)) for run in self.runs]
        stats = {}
        for name in found[0][0]:
            reasons = [why.get(name, "") for _, why in found]
            if name == "I" and self.joint_reason:
                reasons = [self.joint_reason] * len(found)
            elif self.trained_once:
                reasons = [AT_ONCE if "was not evaluated" in reason else reason for reason in reasons]
            stats[name] = mean_of([values[name] for values, _ in found], reasons)
        return stats

    def seconds(self, kind: str) -> Stat:
        """Mean of `Run.seconds`."""
        return mean_of([run.seconds[kind] for run in self.runs])

    def bytes(self, kind: str) -> Stat:
        """Mean of `Run.bytes`."""
        return mean_of([run.bytes[kind] for run in self.runs])

    def curve(self, scenario: Scenario) -> list[Stat]:
        """Mean of `Run.curve`, one for each task done."""
        return [mean_of(values) for values in zip(*(run.curve(scenario) for run in self.runs), strict=True)]

    def matrix(self, scenario: Scenario) -> list[list[float | None]]:
        """Mean matrix, `[done, done]` fractions."""
        rows = zip(*(run.matrix(scenario) for run in self.runs), strict=True)
        return [[mean_of(entries).mean for entries in zip(*row, strict=True)] for row in rows]

    def forgetting(self, scenario: Scenario) -> list[Stat]:
        """Terms of AF: how far each task but the last fell below its best, fractions."""
        return [mean_of(values) for values in zip(*(_forgetting(r.matrix(scenario)) for r in self.runs), strict=True)]

    def plasticity(self, scenario: Scenario) -> Stat:
        """Mean of `metrics.plasticity`."""
        from lightning_cil.metrics.scores import plasticity

        return mean_of([plasticity(run.matrix(scenario)) for run in self.runs])


def _forgetting(matrix: list[list[float | None]]) -> list[float | None]:
    terms: list[float | None] = []
    for column in list(zip(*matrix, strict=True))[:-1]:
        known = [v for v in column if v is not None]
        terms.append(max(known[:-1]) - known[-1] if len(known) == len(column) else None)
    return terms


def group_runs(runs: Sequence[Run], joint: Sequence[Run], average_different_orders: bool = False) -> list[Group]:
    """Group runs by their settings, in an order that does not depend on that of `runs`.

    Args:
        runs: All runs, those of `joint` included.
        joint: The chosen upper bounds; empty: those among `runs`, if they are of one kind.
        average_different_orders: Average runs with different class orders or splits.

    Raises:
        ValueError: If runs of a group have different class orders or splits and are not to be averaged.
    """
    by_key: dict[str, list[Run]] = {}
    for run in sorted(runs, key=lambda r: (r.method.lower(), r.group_key, r.seed or 0, r.path.as_posix())):
        by_key.setdefault(run.group_key, []).append(run)
    members = sorted(by_key.values(), key=lambda g: g[0].is_joint)
    for group in members:
        if not average_different_orders:
            _refuse_different_splits(group)
    groups = []
    for label, group in zip(_labels(members), members, strict=True):
        bounds, why = _joint_of(group, list(joint), members)
        groups.append(Group(label, tuple(group), tuple(bounds), why))
    return groups


def _refuse_different_splits(group: list[Run]) -> None:
    first = group[0]
    for other in group[1:]:
        for name, value in first.split.items():
            if other.split[name] != value:
                raise ValueError(
                    f"{first.path} and {other.path} are both {first.method} with the same settings, but their {name} "
                    f"differs: {short(value)} and {short(other.split[name])}. A mean over them mixes different "
                    "problems. Report on them separately, or give `--average_different_orders` if you want that."
                )


def _joint_of(group: list[Run], chosen: list[Run], groups: list[list[Run]]) -> tuple[list[Run], str]:
    """The Joint runs that bound a group, or why there are none."""
    if group[0].is_joint:
        return [], "it is the bound itself"
    if not group[0].complete:
        return [], "the run is unfinished"
    joints = [run for g in groups for run in g if run.is_joint and run.complete]
    candidates = chosen or _own_joint(group, joints)
    if not candidates:
        found = [g for g in groups if g[0].is_joint and g[0].complete and g[0].protocol == group[0].protocol]
        if len(found) > 1:
            return [], "there are Joint runs of different settings: name those to use by --joint"
        candidates = found[0] if found else []
    if not candidates:
        return [], "needs a Joint run (--joint)"
    same = [j for j in candidates if j.protocol == group[0].protocol]
    splits = [j.split for j in same]
    if not all(run.split in splits for run in group):
        return [], "no Joint run has the same data, tasks, class order and held-out share"
    return same, ""


def _own_joint(group: list[Run], joints: list[Run]) -> list[Run]:
    """Joint runs among the references of a group's runs: of the kind that most of the runs have, `joint` first."""
    kinds: dict[str, dict[str, list[Run]]] = {}
    for run in group:
        for joint in joints:
            if run.folder in joint.path.parents:
                kind = joint.folder.parent.name
                kinds.setdefault(kind, {}).setdefault(run.folder.as_posix(), []).append(joint)
    if not kinds:
        return []
    best = min(kinds, key=lambda kind: (-len(kinds[kind]), kind))
    return [joint for found in kinds[best].values() for joint in found]


def _labels(groups: list[list[Run]]) -> list[str]:
    """The method, and the settings that tell a group from others of the same method and protocol."""
    labels = []
    for group in groups:
        run = group[0]
        rivals = [g[0] for g in groups if g[0].method == run.method and g[0].protocol == run.protocol]
        label = run.method
        names = [k for k in differing([r.settings for r in rivals if "config" in r.results]) if tells_apart(k)]
        if "config" not in run.results and len(rivals) > 1:
            label += " (settings not recorded)"
        elif names:
            shown = [f"{_short_name(k)}={_plain(run.settings, k)}" for k in names[:3]]
            label += f" ({', '.join(shown)}{', …' if len(names) > 3 else ''})"
        if not run.complete:
            label += f", {run.tasks_done} of {run.num_tasks} tasks"
        labels.append(label)
    counts: dict[tuple[str, tuple[str, tuple[int, ...]]], int] = {}
    unique = []
    for label, group in zip(labels, groups, strict=True):
        key = (label, group[0].protocol)
        counts[key] = counts.get(key, 0) + 1
        unique.append(label if counts[key] == 1 else f"{label} [{counts[key]}]")
    return unique


def differing(settings: Sequence[Flat]) -> list[str]:
    """Names of the settings that are not the same in all, in the order of their first appearance."""
    names = list(dict.fromkeys(name for flat in settings for name in flat))
    missing = object()
    return [n for n in names if any(flat.get(n, missing) != settings[0].get(n, missing) for flat in settings)]


def _short_name(setting: str) -> str:
    """What a label calls a setting: its last part, for a class what it is the class of.

    Example:
        >>> _short_name("method.optimizer.class"), _short_name("method.optimizer.lr")
        ('optimizer', 'lr')
    """
    return setting.removesuffix(".class").rpartition(".")[2]


def _plain(settings: Flat, name: str) -> str:
    if name not in settings:
        return "none"
    value: Any = settings[name]
    return value if isinstance(value, str) else json.dumps(value)


def notes_of(groups: Sequence[Group], average_different_orders: bool) -> list[str]:
    """What a reader must know before comparing the rows."""
    notes = []
    for group in groups:
        seeds = [run.seed for run in group.runs]
        twice = sorted({str(s) for s in seeds if seeds.count(s) > 1})
        if twice:
            notes.append(
                f"{group.label}: several runs have the seed {', '.join(twice)}; repetitions of a seed say nothing "
                "about the spread over seeds."
            )
        if not group.complete:
            notes.append(
                f"{group.label}: unfinished; scores are of the first {group.first.tasks_done} of "
                f"{group.first.num_tasks} tasks and do not compare with finished runs."
            )
        if group.first.is_multilabel:
            notes.append(
                f"{group.label}: multi-label; wherever formulas and figures speak of accuracy on a task, its number is "
                "the mean average precision of the task's classes."
            )
        if len({json.dumps(r.results.get("versions"), sort_keys=True) for r in group.runs}) > 1:
            notes.append(f"{group.label}: the runs were made with different versions of the software.")
        if len(group.runs) > 1 and any("config" not in run.results for run in group.runs):
            notes.append(
                f"{group.label}: results of an older version, without settings; the runs are averaged as if all had "
                "the same."
            )
        if group.is_independent:
            means = f"Class-IL {_percent(group.alone('class_il'))}, Task-IL {_percent(group.alone('task_il'))}"
            notes.append(f"{group.label}: mean accuracy on each task alone: {means}; {APART}.")
        if average_different_orders and len({json.dumps(r.split) for r in group.runs}) > 1:
            notes.append(f"{group.label}: the mean is over different class orders or splits, as was asked for.")
    for protocol in dict.fromkeys(g.first.protocol for g in groups):
        rows = [g for g in groups if g.first.protocol == protocol]
        if not all(_same_problems(rows[0], other) for other in rows[1:]):
            notes.append(f"{protocol[0]}: the rows have different class orders or splits; compare them with care.")
    return notes


def _same_problems(one: Group, other: Group) -> bool:
    """Whether each split of either group occurs in the other, as far as splits are recorded."""
    return all(
        any(same_split(a.split, b.split) for b in theirs.runs)
        for ours, theirs in ((one, other), (other, one))
        for a in ours.runs
    )


def _percent(stat: Stat) -> str:
    return "undefined" if stat.mean is None else f"{100 * stat.mean:.2f} %"
