"""`OtherClassifier`: a second matrix from what `test_step` returns, in results and checkpoints, of streams only."""

from pathlib import Path
from typing import Any

import torch

from lightning_cil.callbacks import OtherClassifier
from lightning_cil.data import SplitDigits
from lightning_cil.methods import FineTune
from tests.streams import fit, make, results


class AlwaysThree(FineTune):
    """Beside its predictions it calls everything a 3."""

    def test_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> dict[str, Any]:
        three = torch.full_like(batch["target"], 3)
        predicted = super().test_step(batch, batch_idx, dataloader_idx)
        return {**predicted, "three": {"class_il": three, "task_il": torch.full_like(three, 4)}}


def test_the_second_matrix_counts_what_the_other_classifier_said(tmp_path: Path) -> None:
    other, data = OtherClassifier("three", "it never learns"), SplitDigits(sizes=[4, 6], eval_batch_size=50)
    found = results(fit(tmp_path, make(AlwaysThree), data, [other], limit_train_batches=2))
    labels = data.labels("test")
    three = (labels == 3).sum().item() / (labels < 4).sum().item()
    four = (labels == 4).sum().item() / (labels >= 4).sum().item()
    expected = {"class_il": [[three, 0.0]] * 2, "task_il": [[0.0, four]] * 2}
    assert found["other_classifier"]["matrix"] == expected
    assert found["other_classifier"]["before_training"] == {s: rows[0] for s, rows in expected.items()}
    assert found["other_classifier"]["name"] == "three"
    assert found["other_classifier"]["scores"]["class_il"]["ACC"] == three / 2
    assert found["other_classifier"]["undefined"]["task_il"]["FWT"] == "it never learns"
    assert found["matrix"] != expected


def test_a_run_that_goes_on_keeps_the_rows_and_a_new_one_does_not(tmp_path: Path) -> None:
    other = OtherClassifier("three")
    options = {"limit_train_batches": 2, "stop_after_task": 0}
    first = fit(tmp_path, make(AlwaysThree), SplitDigits(num_tasks=2), [other], **options)
    path = f"{first.log_dir}/checkpoints/last.ckpt"
    again = OtherClassifier("three")
    trainer = fit(tmp_path, make(AlwaysThree), SplitDigits(num_tasks=2), [again], path, limit_train_batches=2)
    assert all(v is not None for row in results(trainer)["other_classifier"]["matrix"]["class_il"] for v in row)
    new = fit(tmp_path, make(AlwaysThree), SplitDigits(num_tasks=2), [again], **options)
    assert results(new)["other_classifier"]["matrix"]["class_il"][1] == [None, None]


def test_a_method_without_one_has_no_counts(tmp_path: Path) -> None:
    other = OtherClassifier("three")
    trainer = fit(tmp_path, make(FineTune), SplitDigits(num_tasks=2), [other], limit_train_batches=1)
    assert results(trainer)["other_classifier"]["matrix"]["class_il"] == [[None, None]] * 2
