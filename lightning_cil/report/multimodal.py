"""The table of multimodal runs: average and last accuracy, M1 and M2 with the choices they were made by."""

import json
from collections.abc import Sequence

from lightning_cil.report.groups import Group, Stat, mean_of
from lightning_cil.report.tables import Column, Row, Table, Unit, protocol_name

NAME = "multimodal"
SCORES: dict[str, tuple[str, Unit]] = {
    "Acc_avg": ("Acc_avg (%) ↑", "fraction"),
    "Acc_last": ("Acc_last (%) ↑", "fraction"),
    "M1": ("M1 (%) ↑", "fraction"),
    "M1_frozen": ("M1, frozen features (%) ↑", "fraction"),
    "M2": ("M2 ↑", "ratio"),
    "NMI_visual": ("NMI(f,v)", "ratio"),
    "NMI_audio": ("NMI(f,a)", "ratio"),
    "fused": ("samples fused (%)", "fraction"),
}
"""Columns: the score, its head and its unit."""
NOT_KNOWN = {
    "M1": "the similarity of a task is not known",
    "M1_frozen": "nobody looked at the untrained towers",
    "M2": "needs NMI, which is measured after the last task, of images and of sounds",
    "NMI_visual": "is measured after the last task",
    "NMI_audio": "is measured after the last task, of methods that hear sounds",
    "fused": "no fusion that chooses",
}
"""Why a score can be undefined; of the others: a task was not evaluated."""
CHOICES = ("c_A, c_B, c_N", "A_t", "For_t", "w_t", "BWT_t", "FWT_t", "NMI")
OTHER_CHOICES = "M1 and M2 of the rows are made by different choices (`scores` of the method), and do not compare"


def make_multimodal_table(groups: Sequence[Group]) -> Table | None:
    """Table of accuracies, M1 and M2; `None` without such runs.

    Args:
        groups: The rows; those of other runs are left out.
    """
    shown = [group for group in groups if _is_multimodal(group)]
    if not shown:
        return None
    made = _choices(shown[0])
    columns = tuple(Column(name, head, unit, _formula(name, made)) for name, (head, unit) in SCORES.items())
    rows = tuple(
        Row(g.label, protocol_name(g.first.protocol), len(g.runs), g.complete, tuple(multimodal_scores(g).values()))
        for g in shown
    )
    different = any(json.dumps(_choices(g)) != json.dumps(made) for g in shown[1:])
    title = "Multimodal: scores of the whole stream"
    many = len({row.data for row in rows}) > 1
    return Table(title, NAME, columns, rows, many, (OTHER_CHOICES,) if different else ())


def multimodal_scores(group: Group) -> dict[str, Stat]:
    """The columns of a row by their names, fractions (M2, NMI: numbers); empty for other runs."""
    if not _is_multimodal(group):
        return {}
    found = [_scores(run.results["multimodal"]) for run in group.runs]
    missing = {name: NOT_KNOWN.get(name, "a task was not evaluated") for name in SCORES}
    return {name: mean_of([s[name] for s in found], [missing[name]] * len(found)) for name in SCORES}


def _scores(found: dict[str, object]) -> dict[str, float | None]:
    def number(value: object, scale: float = 1) -> float | None:
        return value / scale if isinstance(value, int | float) else None

    nmi = found.get("nmi")
    tasks = found.get("tasks")
    shares = [t.get("fused_fraction") for t in tasks if isinstance(t, dict)] if isinstance(tasks, list) else []
    agreement = nmi if isinstance(nmi, dict) else {}
    return {
        "Acc_avg": number(found.get("average_accuracy")),
        "Acc_last": number(found.get("last_accuracy")),
        "M1": number(found.get("M1"), 100),
        "M1_frozen": number(found.get("M1_frozen"), 100),
        "M2": number(found.get("M2")),
        "NMI_visual": number(agreement.get("visual")),
        "NMI_audio": number(agreement.get("audio")),
        "fused": mean_of(shares).mean if shares else None,
    }


def _is_multimodal(group: Group) -> bool:
    return all(isinstance(run.results.get("multimodal"), dict) for run in group.runs)


def _choices(group: Group) -> dict[str, object]:
    """By what definitions M1 and M2 of a row were made."""
    made = group.first.results["multimodal"].get("choices", {})
    return {name: made[name] for name in ("M1", "M2", *CHOICES, "nmi") if name in made}


def _formula(name: str, made: dict[str, object]) -> str:
    letters = "; ".join(f"{letter} = {made[letter]}" for letter in CHOICES if letter in made)
    return {
        "Acc_avg": f"mean_t A_t; A_t: {made.get('A_t', 'not recorded')}",
        "Acc_last": "A_t of the last task",
        "M1": str(made.get("M1", "not recorded")) + (f"; {letters}" if letters else ""),
        "M1_frozen": "M1 with w_t of the untrained towers' features, which compares between methods",
        "M2": str(made.get("M2", "not recorded")),
        "NMI_visual": f"of fused and visual features: {made.get('NMI', 'not recorded')}",
        "NMI_audio": "the same of fused and audio features",
        "fused": "share of the training samples whose sound the fusion took, mean over the tasks",
    }[name]
