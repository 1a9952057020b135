"""The table of multi-label runs: mAP, F1 and false positive rate, as such papers print them."""

from collections.abc import Sequence

from lightning_cil.report.groups import AT_ONCE, Group, Stat, mean_of
from lightning_cil.report.tables import Column, Row, Table, protocol_name

NAME = "multilabel"
SCORES = ("mAP_last", "mAP_avg", "CF1", "OF1", "FPR", "precision", "recall", "AF")
LOWER_IS_BETTER = ("FPR", "AF")
NOT_KNOWN = "a task was not evaluated, or there is one task only"
FORMULAS = {
    "precision": "TP / (TP + FP) over all pairs of image and class, at the same probability",
    "recall": "TP / (TP + FN) over all pairs of image and class, at the same probability",
}


def make_multilabel_table(groups: Sequence[Group]) -> Table | None:
    """Table of mAP last and average, CF1, OF1, FPR, precision, recall and forgetting; `None` without such runs.

    Args:
        groups: The rows; those of single-label runs are left out.
    """
    shown = [group for group in groups if group.first.is_multilabel]
    if not shown:
        return None
    formulas = {**FORMULAS, **shown[0].first.multilabel.get("formulas", {})}
    columns = tuple(
        Column(name, f"{name} (%) {'↓' if name in LOWER_IS_BETTER else '↑'}", "fraction", formulas.get(name, ""))
        for name in SCORES
    )
    rows = tuple(
        Row(g.label, protocol_name(g.first.protocol), len(g.runs), g.complete, tuple(multilabel_scores(g).values()))
        for g in shown
    )
    title = "Multi-label: scores after the last task"
    return Table(title, NAME, columns, rows, len({row.data for row in rows}) > 1)


def multilabel_scores(group: Group) -> dict[str, Stat]:
    """The columns of a row by their names; empty for single-label runs."""
    if not group.first.is_multilabel:
        return {}
    reason = AT_ONCE if group.trained_once else NOT_KNOWN
    values = {name: [run.multilabel.get(name) for run in group.runs] for name in SCORES}
    return {name: mean_of(found, [reason] * len(found)) for name, found in values.items()}
