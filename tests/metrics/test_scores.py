import math
import random
from dataclasses import dataclass, field

import pytest
import torch

from lightning_cil.metrics import scores
from lightning_cil.metrics.scores import (
    FORMULAS,
    average_accuracy,
    average_forgetting,
    average_incremental_accuracy,
    backward_transfer,
    forward_transfer,
    intransigence,
    plasticity,
    plasticity_stability,
    summarise,
)

NAMES = ["ACC", "AIA", "FWT", "BWT", "AF", "I", "PS"]


@dataclass(frozen=True)
class Vector:
    """A matrix worked by hand, its scores, and values that a wrong reading of a formula would give."""

    matrix: list
    baseline: list | None
    joint: float
    expected: dict
    wrong: dict = field(default_factory=dict)


VECTORS = {
    "V1": Vector(
        [[0.90, 0.12, 0.10], [0.80, 0.85, 0.15], [0.70, 0.75, 0.88]],
        [0.10, 0.08, 0.11],
        0.92,
        {
            "ACC": 2.33 / 3,
            "AIA": (0.90 + 1.65 / 2 + 2.33 / 3) / 3,
            "FWT": 0.04,
            "BWT": -0.15,
            "AF": 0.15,
            "I": 0.04,
            "P": 0.73,
            "PS": 1.46 / 0.6,
        },
        {"FWT": 0.08 / 3, "BWT": -0.1, "AF": 0.1, "PS": 0.73 / 0.15},
    ),
    "V2": Vector(
        [[0.50, 0, 0], [0.60, 0.70, 0], [0.55, 0.80, 0.90]],
        None,
        0.85,
        {
            "ACC": 0.75,
            "AIA": (0.5 + 0.65 + 0.75) / 3,
            "FWT": None,
            "BWT": 0.075,
            "AF": -0.025,
            "I": -0.05,
            "P": 0.8,
            "PS": 16 / 3,
        },
        {"AF": 0.025, "BWT": 0.05},  # AF if the last row counted in the maximum, BWT if divided by T
    ),
    "V3": Vector(
        [[0.50, 0, 0], [0.50, 0.70, 0], [0.60, 0.60, 0.90]],
        None,
        0.90,
        {"ACC": 0.7, "AIA": 0.6, "FWT": None, "BWT": 0.0, "AF": 0.0, "I": 0.0, "P": 0.8, "PS": None},
        {"AF": 0.05},  # if the last row counted in the maximum
    ),
    "V4": Vector(
        [[0.90, 0.95, 0], [0.80, 0.85, 0], [0.70, 0.75, 0.90]],
        None,
        0.90,
        {
            "ACC": 2.35 / 3,
            "AIA": (0.9 + 0.825 + 2.35 / 3) / 3,
            "FWT": None,
            "BWT": -0.15,
            "AF": 0.2,
            "I": 0.0,
            "P": 0.4,
            "PS": 4 / 3,
        },
        {"AF": 0.15},  # if only rows from j on counted in the maximum
    ),
    "V5": Vector(
        [[0.92, 0.5, 0.5], [0.92, 0.90, 0.5], [0.92, 0.90, 0.88]],
        [0.5, 0.5, 0.5],
        0.90,
        {"ACC": 0.9, "AIA": 0.91, "FWT": 0.0, "BWT": 0.0, "AF": 0.0, "I": 0.02, "P": 0.39, "PS": None},
    ),
}


def all_scores(matrix, baseline, joint):
    return {
        "ACC": average_accuracy(matrix),
        "AIA": average_incremental_accuracy(matrix),
        "FWT": forward_transfer(matrix, baseline),
        "BWT": backward_transfer(matrix),
        "AF": average_forgetting(matrix),
        "I": intransigence(matrix, joint),
        "PS": plasticity_stability(matrix),
        "P": plasticity(matrix),
    }


def slow_scores(matrix, baseline, joint):
    """The definitions of the papers, counted from 1, one number at a time; needs T >= 2 and nothing missing."""
    num_tasks = len(matrix)

    def a(i, j):
        return matrix[i - 1][j - 1]

    accuracy = 0.0
    for k in range(1, num_tasks + 1):
        accuracy += a(num_tasks, k) / num_tasks
    incremental = 0.0
    for i in range(1, num_tasks + 1):
        row = 0.0
        for j in range(1, i + 1):
            row += a(i, j)
        incremental += row / i / num_tasks
    forward = gained = 0.0
    for k in range(2, num_tasks + 1):
        forward += (a(k - 1, k) - baseline[k - 1]) / (num_tasks - 1)
        gained += a(k, k) - a(k - 1, k)
    backward = lost = forgotten = 0.0
    for k in range(1, num_tasks):
        backward += (a(num_tasks, k) - a(k, k)) / (num_tasks - 1)
        lost += a(num_tasks, k) - a(k, k)
        best = -1.0
        for i in range(1, num_tasks):
            best = max(best, a(i, k))
        forgotten += (best - a(num_tasks, k)) / (num_tasks - 1)
    return {
        "ACC": accuracy,
        "AIA": incremental,
        "FWT": forward,
        "BWT": backward,
        "AF": forgotten,
        "I": joint - a(num_tasks, num_tasks),
        "PS": gained / abs(lost) / (num_tasks - 1),
        "P": gained / (num_tasks - 1),
    }


def random_case(seed, num_tasks=None):
    rng = random.Random(seed)
    num_tasks = num_tasks or rng.randint(2, 9)
    matrix = [[rng.random() for _ in range(num_tasks)] for _ in range(num_tasks)]
    return matrix, [rng.random() for _ in range(num_tasks)], rng.random()


@pytest.mark.parametrize("name", VECTORS)
@pytest.mark.parametrize("convert", [list, torch.tensor, lambda m: torch.tensor(m, dtype=torch.float64)])
def test_vectors_worked_by_hand(name, convert):
    vector = VECTORS[name]
    found = all_scores(convert(vector.matrix), vector.baseline, vector.joint)
    undefined = {score for score, value in vector.expected.items() if value is None}
    assert {score for score, value in found.items() if value is None} == undefined
    for score in found.keys() - undefined:
        assert found[score] == pytest.approx(vector.expected[score], rel=1e-6, abs=1e-7)
    for score, value in vector.wrong.items():
        assert found[score] != pytest.approx(value, abs=1e-3)


@pytest.mark.parametrize("seed", range(60))
def test_scores_equal_a_slow_reference(seed):
    matrix, baseline, joint = random_case(seed)
    expected = slow_scores(matrix, baseline, joint)
    assert all_scores(matrix, baseline, joint) == pytest.approx(expected, rel=1e-9, abs=1e-12)
    tensors = torch.tensor(matrix, dtype=torch.float64), torch.tensor(baseline, dtype=torch.float64)
    assert all_scores(*tensors, joint) == pytest.approx(expected, rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("seed", range(60))
def test_invariances(seed):
    matrix, baseline, joint = random_case(seed)
    found = all_scores(matrix, baseline, joint)
    num_tasks = len(matrix)
    assert found["AF"] >= -found["BWT"] - 1e-12
    assert found["PS"] == pytest.approx(found["P"] / ((num_tasks - 1) * abs(found["BWT"])))
    halved = all_scores([[value / 2 for value in row] for row in matrix], [b / 2 for b in baseline], joint / 2)
    for name in ("ACC", "AIA", "FWT", "BWT", "AF", "I", "P"):
        assert halved[name] == pytest.approx(found[name] / 2)
    assert halved["PS"] == pytest.approx(found["PS"])
    assert -1 <= found["BWT"] <= 1
    assert -sum(baseline[1:]) / (num_tasks - 1) <= found["FWT"]


def test_one_task_has_only_acc_aia_and_intransigence():
    values, reasons = summarise([[0.75]], baseline=[0.25], joint_accuracy=1.0)
    assert values == {"ACC": 0.75, "AIA": 0.75, "FWT": None, "BWT": None, "AF": None, "I": 0.25, "PS": None}
    assert reasons == dict.fromkeys(["FWT", "BWT", "AF", "PS"], "needs at least 2 tasks")
    assert plasticity([[0.75]]) is None
    _, reasons = summarise([[0.75]], no_baseline_reason="not in Class-IL")
    assert reasons["FWT"] == "needs at least 2 tasks"


def entries_read(name, num_tasks):
    """Literal reading of the formulas, apart from the package's own table."""
    last = num_tasks - 1
    if name == "ACC":
        return {(last, j) for j in range(num_tasks)}
    if name == "AIA":
        return {(i, j) for i in range(num_tasks) for j in range(i + 1)}
    if name == "FWT":
        return {(j - 1, j) for j in range(1, num_tasks)}
    if name == "BWT":
        return {(last, j) for j in range(last)} | {(j, j) for j in range(last)}
    if name == "AF":
        return {(i, j) for i in range(num_tasks) for j in range(last)}
    if name == "I":
        return {(last, last)}
    gained = {(j, j) for j in range(1, num_tasks)} | {(j - 1, j) for j in range(1, num_tasks)}
    return gained if name == "P" else gained | entries_read("BWT", num_tasks)


@pytest.mark.parametrize("num_tasks", [2, 3, 5])
@pytest.mark.parametrize("as_tensor", [False, True])
def test_a_score_is_none_exactly_when_it_reads_a_missing_entry(num_tasks, as_tensor):
    for i in range(num_tasks):
        for j in range(num_tasks):
            matrix, baseline, joint = random_case(7, num_tasks)
            before = all_scores(matrix, baseline, joint)
            matrix[i][j] = None
            if as_tensor:
                matrix = torch.tensor([[math.nan if a is None else a for a in row] for row in matrix]).double()
            after = all_scores(matrix, baseline, joint)
            _, reasons = summarise(matrix, baseline=baseline, joint_accuracy=joint)
            sentence = f"A[{i},{j}] was not evaluated: the score on task {j} after task {i}"
            for name in [*NAMES, "P"]:
                if (i, j) in entries_read(name, num_tasks):
                    assert after[name] is None, (name, i, j)
                    assert name == "P" or reasons[name] == sentence
                else:
                    assert after[name] == pytest.approx(before[name], rel=1e-4), (name, i, j)
                    assert name not in reasons


def test_a_missing_row_is_named_as_a_row():
    values, reasons = summarise([[None, None], [0.5, 0.75]], baseline=[0.0, 0.0], joint_accuracy=0.75)
    assert values == {"ACC": 0.625, "AIA": None, "FWT": None, "BWT": None, "AF": None, "I": 0.0, "PS": None}
    assert reasons == dict.fromkeys(["AIA", "FWT", "BWT", "AF", "PS"], "row 0 was not evaluated")


def test_a_reason_names_an_entry_that_its_own_score_reads():
    _, reasons = summarise(
        [[0.5, 0.5, None], [None, 0.5, 0.5], [0.25, 0.5, 0.5]], joint_accuracy=0.5, baseline=[0.0] * 3
    )
    assert {name: reason[:6] for name, reason in reasons.items()} == {"AIA": "A[1,0]", "AF": "A[1,0]"}


def test_a_stream_under_way_is_scored_by_its_leading_block():
    full, _, _ = random_case(3, num_tasks=4)
    under_way = torch.tensor(full, dtype=torch.float64)
    under_way[2:] = math.nan
    assert average_accuracy(under_way) is None
    assert average_accuracy(under_way[:2, :2]) == pytest.approx((full[1][0] + full[1][1]) / 2)


@pytest.mark.parametrize("name", VECTORS)
def test_summarise_gives_all_scores_in_order_and_a_reason_for_each_none(name):
    vector = VECTORS[name]
    values, reasons = summarise(vector.matrix, baseline=vector.baseline, joint_accuracy=vector.joint)
    assert list(values) == list(FORMULAS) == NAMES
    assert values == {key: all_scores(vector.matrix, vector.baseline, vector.joint)[key] for key in NAMES}
    assert set(reasons) == {key for key, value in values.items() if value is None}
    assert all(reasons.values())


def test_summarise_says_what_is_missing():
    matrix = [[0.75, 0.25], [0.5, 1.0]]
    _, reasons = summarise(matrix)
    assert reasons == {
        "FWT": "needs the accuracy of the untrained model on each task (b)",
        "I": "needs the accuracy of a Joint run (I)",
    }
    _, reasons = summarise(matrix, no_baseline_reason="not reported in Class-IL", joint_accuracy=0.5)
    assert reasons == {"FWT": "not reported in Class-IL"}
    values, reasons = summarise(matrix, baseline=[0.5, None], joint_accuracy=math.nan)
    assert values["FWT"] is None
    assert values["I"] is None
    assert reasons == {
        "FWT": "the untrained model was not evaluated on task 1",
        "I": "the accuracy of the Joint run is not a number",
    }


def test_baseline_of_the_first_task_is_not_read():
    matrix = [[0.75, 0.25], [0.5, 1.0]]
    assert forward_transfer(matrix, [None, 0.125]) == forward_transfer(matrix, [0.5, 0.125]) == 0.125


@pytest.mark.parametrize(
    ("matrix", "limit"),
    [([[0.5, 0.0], [0.5, 1.0]], "+inf"), ([[0.5, 1.0], [0.5, 0.0]], "-inf"), ([[0.5, 0.25], [0.5, 0.25]], "nan")],
)
def test_zero_denominator_has_its_reason(matrix, limit):
    values, reasons = summarise(matrix, baseline=[0.0, 0.0], joint_accuracy=1.0)
    assert values["PS"] is None
    assert reasons == {"PS": f"the denominator is 0: no net forgetting ({limit})"}


def test_terms_that_cancel_only_up_to_rounding_have_no_ratio():
    matrix = [[0.1, 0.0, 0.0], [0.1, 0.7, 0.0], [0.3, 0.5, 0.9]]
    assert (0.3 - 0.1) + (0.5 - 0.7) != 0  # in float64
    assert plasticity_stability(matrix) is None
    assert plasticity_stability(torch.tensor(matrix, dtype=torch.float32)) is None
    assert plasticity_stability(torch.tensor(matrix, dtype=torch.bfloat16)) is None


@pytest.mark.parametrize("convert", [list, torch.tensor])
def test_tiny_forgetting_has_a_ratio(convert):
    matrix = [[0.5, 0.0], [0.5 - 1e-5, 1.0]]
    assert plasticity_stability(convert(matrix)) == pytest.approx(1e5, rel=1e-2)


def test_integers_and_values_within_tolerance_pass():
    assert average_accuracy([[1, 0], [0, 1]]) == 0.5
    assert average_accuracy(torch.tensor([[1, 0], [0, 1]])) == 0.5
    assert average_accuracy([[1 + 1e-7]]) == pytest.approx(1.0)
    assert intransigence([[1]], 1) == 0.0


def test_the_argument_is_left_alone():
    matrix = torch.tensor([[0.5, math.nan], [0.25, 0.75]], dtype=torch.float64)
    matrix.requires_grad_()
    before = matrix.detach().clone()
    summarise(matrix, baseline=before[0], joint_accuracy=0.5)
    assert torch.equal(matrix.nan_to_num(-1), before.nan_to_num(-1))


@pytest.mark.parametrize(
    ("matrix", "words"),
    [
        ([[0.5, 0.5]], r"shape \(1, 2\), expected \(T, T\).*Give one row"),
        ([], r"shape \(0,\), expected \(T, T\)"),
        (torch.zeros(0, 0), r"shape \(0, 0\), expected \(T, T\)"),
        (torch.zeros(3), r"shape \(3,\), expected \(T, T\)"),
        (torch.zeros(2, 3), r"shape \(2, 3\)"),
        ([[0.5, 0.5], [0.5]], r"`matrix` cannot be read.*rows of equal length.*Write None"),
        ([[50.0, 0.0], [25.0, 75.0]], r"`matrix` holds 50, expected fractions in \[0, 1\]\. Divide percentages by 100"),
        ([[0.5, 0.0], [-0.25, 0.5]], r"`matrix` holds -0\.25"),
        ([[0.5, 0.0], [0.5, math.inf]], r"`matrix` holds inf"),
        ([[1 + 1e-5]], r"`matrix` holds 1\.00001"),
    ],
)
@pytest.mark.parametrize(
    "score",
    [
        average_accuracy,
        average_incremental_accuracy,
        backward_transfer,
        average_forgetting,
        plasticity,
        plasticity_stability,
        lambda matrix: forward_transfer(matrix, None),
        lambda matrix: intransigence(matrix, None),
        lambda matrix: summarise(matrix)[0],
    ],
)
def test_malformed_matrix_is_refused(score, matrix, words):
    with pytest.raises(ValueError, match=words):
        score(matrix)


@pytest.mark.parametrize(
    ("baseline", "words"),
    [
        ([0.5], r"`baseline` has shape \(1,\), expected \(2,\)"),
        (torch.zeros(2, 1), r"`baseline` has shape \(2, 1\), expected \(2,\)"),
        ([0.5, 10.0], r"`baseline` holds 10, expected fractions"),
    ],
)
def test_malformed_baseline_is_refused(baseline, words):
    with pytest.raises(ValueError, match=words):
        forward_transfer([[0.5, 0.5], [0.5, 0.5]], baseline)


def test_joint_accuracy_in_percent_is_refused():
    with pytest.raises(ValueError, match=r"`joint_accuracy` holds 92, expected fractions.*Divide percentages by 100"):
        intransigence([[0.5]], 92.0)


@pytest.mark.parametrize("name", NAMES)
def test_docstring_names_its_source(name):
    function = {
        "ACC": average_accuracy,
        "AIA": average_incremental_accuracy,
        "FWT": forward_transfer,
        "BWT": backward_transfer,
        "AF": average_forgetting,
        "I": intransigence,
        "PS": plasticity_stability,
    }[name]
    assert f"({name})" in function.__doc__
    source = {"ACC": "23", "AIA": "iCaRL", "FWT": "24", "BWT": "25", "AF": "26-27", "I": "28", "PS": "29"}[name]
    assert (source if name == "AIA" else f"NFL Eq. {source}") in function.__doc__
    assert "https://arxiv.org/abs/2503.04638" in scores.__doc__
