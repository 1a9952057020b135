"""Multi-label metrics: golden values, scikit-learn, a literal reference with ties, one image once on any ranks."""

import math
from pathlib import Path

import pytest
import torch
from sklearn import metrics as sk
from torch import Tensor

from lightning_cil.metrics import (
    MultiLabelScores,
    average_precision,
    class_f1,
    false_positive_rate,
    label_counts,
    mean_average_precision,
    overall_f1,
    score_histogram,
    summarise_scores,
    threshold_scores,
    threshold_sweep,
)
from tests.ranks import all_well, run_ranks

SCORES = [[0.95, 0.10, 0.85], [0.82, 0.90, 0.20], [0.40, 0.81, 0.30], [0.90, 0.70, 0.05], [0.10, 0.30, 0.88]]
LABELS = [[1, 0, 1], [0, 1, 0], [1, 1, 0], [1, 0, 0], [0, 0, 0]]


def test_golden_values() -> None:
    scores, target = torch.tensor(SCORES), torch.tensor(LABELS)
    assert average_precision(scores, target).tolist() == pytest.approx([11 / 12, 1, 0.5], abs=1e-6)
    found = {
        "mAP": mean_average_precision(scores, target),
        "CF1": class_f1(scores, target),
        "CF1_cp_cr": class_f1(scores, target, mode="cp_cr"),
        "OF1": overall_f1(scores, target),
        "FPR": false_positive_rate(scores, target),
        "FPR_macro": false_positive_rate(scores, target, average="macro"),
    }
    expected = [80.555556, 77.777778, 79.693487, 76.923077, 22.222222, 25.0]
    assert [100 * v.item() for v in found.values()] == pytest.approx(expected, abs=1e-5)
    assert {k: v.item() for k, v in found.items() if k != "mAP"}.items() <= threshold_scores(scores, target).items()


def draw(seed: int, ties: bool = False, classes: int = 6) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(40, classes, generator=generator)
    return (logits.round() if ties else logits), torch.randint(0, 2, (40, classes), generator=generator)


@pytest.mark.parametrize("seed", range(5))
def test_scores_are_those_of_scikit_learn(seed: int) -> None:
    logits, target = draw(seed)
    probabilities, labels = logits.double().sigmoid(), target.numpy()
    expected = [sk.average_precision_score(labels[:, c], logits[:, c].numpy()) for c in range(6)]
    assert average_precision(logits, target).tolist() == pytest.approx(expected, rel=1e-12)
    assert mean_average_precision(logits, target).item() == pytest.approx(sum(expected) / 6, rel=1e-12)
    for threshold in (0.8, 0.5):
        chosen = (probabilities > threshold).numpy()
        found = threshold_scores(probabilities, target, threshold)
        for name, score, average in (
            ("CF1", sk.f1_score, "macro"),
            ("OF1", sk.f1_score, "micro"),
            ("precision", sk.precision_score, "micro"),
            ("recall", sk.recall_score, "micro"),
            ("class_precision", sk.precision_score, "macro"),
            ("class_recall", sk.recall_score, "macro"),
        ):
            assert found[name] == pytest.approx(score(labels, chosen, average=average, zero_division=0), rel=1e-12)
        matrices = sk.multilabel_confusion_matrix(labels, chosen)
        counts = label_counts(probabilities, target, threshold)
        assert torch.stack([counts.tn, counts.fp, counts.fn, counts.tp], dim=1).tolist() == [
            m.reshape(-1).tolist() for m in matrices
        ]
        fp, tn = matrices[:, 0, 1].sum(), matrices[:, 0, 0].sum()
        assert found["FPR"] == pytest.approx(fp / (fp + tn), rel=1e-12)


def literal_ap(scores: list[float], labels: list[int]) -> float:
    """The mean over the positives of the precision at each; equal scores in the order given."""
    ranked = sorted(range(len(scores)), key=lambda i: (-scores[i], i))
    hits, total = 0, 0.0
    for rank, i in enumerate(ranked, 1):
        hits += labels[i]
        total += labels[i] * hits / rank
    return total / hits if hits else 0.0


@pytest.mark.parametrize("seed", range(5))
def test_ties_stay_in_the_order_given(seed: int) -> None:
    logits, target = draw(seed, ties=True)
    expected = [literal_ap(logits[:, c].tolist(), target[:, c].tolist()) for c in range(6)]
    assert average_precision(logits, target).tolist() == pytest.approx(expected, rel=1e-12)
    for dtype in (torch.float16, torch.bfloat16):
        assert average_precision(logits.to(dtype), target).tolist() == pytest.approx(expected, rel=1e-12)


def test_logits_that_saturate_as_probabilities_keep_their_order() -> None:
    logits, target = torch.tensor([[30.0], [40.0]]), torch.tensor([[0], [1]])
    assert logits.sigmoid()[0] == logits.sigmoid()[1]
    assert average_precision(logits, target).item() == 1


def test_nothing_over_nothing() -> None:
    scores, nothing = torch.tensor([[0.1, 0.9], [0.2, 0.3]]), torch.zeros(2, 2)
    assert average_precision(scores, nothing).tolist() == [0, 0]
    one = torch.tensor([[0.0, 1.0], [0.0, 0.0]])
    assert mean_average_precision(scores, one).item() == 0.5
    assert mean_average_precision(scores, one, empty_class="skip").item() == 1
    assert math.isnan(mean_average_precision(scores, nothing, empty_class="skip"))
    low = threshold_scores(scores, one, 0.95)
    assert (low["CF1"], low["CF1_cp_cr"], low["OF1"], low["precision"], low["recall"]) == (0, 0, 0, 0, 0)
    assert false_positive_rate(scores, torch.ones(2, 2)).item() == 0
    assert summarise_scores(torch.zeros(0, 2), torch.zeros(0, 2))["mAP"] is None
    found = summarise_scores(scores, one, empty_class="skip")
    assert (found["AP"], found["mAP"], found["images"]) == ([None, 1.0], 1.0, 2)


def test_thresholds_are_strict_and_of_the_scores_own_type() -> None:
    for dtype in (torch.float16, torch.float32, torch.float64):
        scores = torch.tensor([[0.8], [0.8]], dtype=dtype)
        assert label_counts(scores, torch.tensor([[1], [0]]), 0.8).fp.item() == 0


def test_sweep_and_histogram_agree_with_the_counts() -> None:
    logits, target = draw(3)
    probabilities = logits.sigmoid()
    sweep = threshold_sweep(probabilities, target)
    i = sweep["threshold"].index(0.8)
    assert sweep["CF1"][i] == class_f1(probabilities, target).item()
    assert sweep["OF1"][i] == overall_f1(probabilities, target).item()
    assert sweep["FPR"] == sorted(sweep["FPR"], reverse=True)
    histogram = score_histogram(probabilities, target)
    assert sum(histogram["present"]) == int(target.sum())
    above = sum(histogram["absent"][16:])  # bins of 0.05 from 0.8 on
    assert above / sum(histogram["absent"]) == pytest.approx(sweep["FPR"][i])
    assert score_histogram(torch.tensor([[0.0, 1.0]]), torch.tensor([[0, 1]]))["present"][-1] == 1


def test_what_cannot_be_scored_is_refused() -> None:
    scores = torch.rand(4, 3)
    for call, words in (
        (lambda: average_precision(scores, torch.tensor([0, 1, 2, 0])), "class numbers"),
        (lambda: average_precision(scores, torch.zeros(4, 3), empty_class="none"), "empty_class"),
        (lambda: class_f1(scores, torch.zeros(4, 3), mode="micro"), "mode"),
        (lambda: false_positive_rate(scores, torch.zeros(4, 3), average="all"), "average"),
        (lambda: MultiLabelScores(threshold=1.0), "threshold"),
        (lambda: MultiLabelScores(empty_class="none"), "empty_class"),
        (lambda: MultiLabelScores().update(scores, torch.zeros(4, 3), torch.zeros(3).long()), "index"),
        (lambda: MultiLabelScores().samples(), "no image"),
    ):
        with pytest.raises(ValueError, match=words):
            call()


def test_an_image_that_comes_twice_counts_once_whatever_the_batches() -> None:
    logits, target = draw(4, ties=True)
    index = torch.arange(40)
    whole = MultiLabelScores()
    whole.update(logits, target, index)
    parts = MultiLabelScores()
    for rows in torch.cat([torch.randperm(40), torch.arange(9)]).split(7):
        parts.update(logits[rows], target[rows].float(), index[rows])
    parts.update(logits[:0], target[:0], index[:0])
    expected = {
        "mAP": mean_average_precision(logits, target),
        "CF1": class_f1(logits.sigmoid(), target),
        "FPR": false_positive_rate(logits.sigmoid(), target),
    }
    for metric in (whole, parts):
        found = metric.compute()
        assert {k: found[k].item() for k in expected} == {k: v.item() for k, v in expected.items()}
        assert metric.samples()[1].equal(logits)
    parts.reset()
    with pytest.raises(ValueError, match="no image"):
        parts.samples()


def test_processes_score_what_one_scores(tmp_path: Path) -> None:
    logits, target = draw(5, ties=True)
    whole = MultiLabelScores()
    whole.update(logits, target, torch.arange(40))
    expected = {name: value.item() for name, value in whole.compute().items()}

    def rank() -> None:
        import os
        import warnings

        warnings.simplefilter("ignore")  # torchmetrics: the third process computes without an update
        torch.distributed.init_process_group("gloo")
        me = int(os.environ["RANK"])
        metric = MultiLabelScores()
        if me < 2:  # the third process sees nothing; image 20 comes on both others
            rows = torch.arange(40)[21 * me - me : 21 + 19 * me]
            for part in rows.split(6 + me):
                metric.update(logits[part], target[part], part)
        assert {name: value.item() for name, value in metric.compute().items()} == expected
        index, found, _ = metric.samples()
        assert index.equal(torch.arange(40))
        assert found.equal(logits)
        torch.distributed.destroy_process_group()

    assert all_well(run_ranks(rank, tmp_path, world=3))
