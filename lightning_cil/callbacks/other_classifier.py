"""`OtherClassifier`: the scores of a second classifier on the same features, beside those of the predictions."""

from collections.abc import Mapping
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer

from lightning_cil.callbacks.base import StreamCallback
from lightning_cil.callbacks.results import scores_of
from lightning_cil.callbacks.stream_state import Counts
from lightning_cil.metrics import TaskMatrix
from lightning_cil.types import SCENARIOS, Scenario


class OtherClassifier(StreamCallback):
    """Scores what `test_step` returns under a classifier's name: a dict of predicted labels by scenario.

    | hook | effect |
    |---|---|
    | `on_test_batch_end` | counts correct predictions of every evaluation of a stream |
    | `on_test_end` | adds up all ranks' counts and keeps them as a row of a second matrix |
    | `extra_results` | `results.json` has `other_classifier`: name, matrix, scores |
    | checkpoint | the counts |

    Args:
        name: Of the classifier.
        no_forward_transfer: Why its forward transfer is undefined, if it is.
    """

    part_of_method = True

    def __init__(self, name: str, no_forward_transfer: str | None = None) -> None:
        self.name = name
        self.no_forward_transfer = no_forward_transfer
        self.counts: dict[Scenario, Counts] = {}
        self._matrices: dict[Scenario, TaskMatrix] = {}

    @property
    def state_key(self) -> str:
        """One per trainer."""
        return "OtherClassifier"

    def on_stream_start(self, trainer: Trainer, module: LightningModule, resumed: bool) -> None:
        """A new stream starts without counts."""
        num_tasks = trainer.datamodule.num_tasks  # type: ignore[attr-defined]
        self._matrices = {s: TaskMatrix(num_tasks) for s in SCENARIOS}
        if not resumed or not self.counts:
            empty = torch.zeros(num_tasks + 1, num_tasks, dtype=torch.int64)
            self.counts = {s: Counts(empty.clone(), empty.clone()) for s in SCENARIOS}

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start counting anew."""
        for matrix in self._matrices.values():
            matrix.to(pl_module.device).reset()

    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Count a batch."""
        row = getattr(pl_module, "evaluation_row", None)
        if row is None or not isinstance(outputs, Mapping) or self.name not in outputs:
            return
        for scenario, matrix in self._matrices.items():
            matrix.update(outputs[self.name][scenario], batch["target"], batch["task"], row)

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keep the row."""
        row = getattr(pl_module, "evaluation_row", None)
        if row is None:
            return
        for scenario, matrix in self._matrices.items():
            with matrix.sync_context():
                self.counts[scenario].correct[row + 1] = matrix.correct[row + 1].cpu()
                self.counts[scenario].total[row + 1] = matrix.total[row + 1].cpu()

    def extra_results(self, done: int) -> dict[str, Any]:
        """The second matrix and its scores."""
        scores = {s: scores_of(c, done, s, self.no_forward_transfer) for s, c in self.counts.items()}
        return {
            "other_classifier": {
                "name": self.name,
                "matrix": {s: c.matrix() for s, c in self.counts.items()},
                "before_training": {s: c.before_training() for s, c in self.counts.items()},
                "scores": {s: found for s, (found, _) in scores.items()},
                "undefined": {s: reasons for s, (_, reasons) in scores.items()},
            }
        }

    def state_dict(self) -> dict[str, Any]:
        """The counts."""
        return {s: {"correct": c.correct.clone(), "total": c.total.clone()} for s, c in self.counts.items()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take them back."""
        self.counts = {s: Counts(state_dict[s]["correct"], state_dict[s]["total"]) for s in SCENARIOS}
