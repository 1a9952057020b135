"""`ContinualEvaluation`: accuracy on every task seen, every few steps while a task is being learned.

Between two task ends accuracy on old tasks can fall and recover (the stability gap); a matrix with one row a task does
not show it. De Lange, van de Ven, Tuytelaars: Continual evaluation for lifelong learning: identifying the stability
gap, ICLR 2023, https://arxiv.org/abs/2205.13452. `lightning_cil.metrics.continual` has the scores.
"""

import json
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer

from lightning_cil.callbacks.base import StreamCallback
from lightning_cil.callbacks.results import write_atomically
from lightning_cil.callbacks.stream_state import stream_state
from lightning_cil.networks.freezing import evaluating
from lightning_cil.report.records import FOLDER
from lightning_cil.types import SCENARIOS, Task

FILE = "continual.json"
SCHEMA = 1


class ContinualEvaluation(StreamCallback):
    """Scores all tasks seen so far on their test images every few optimizer steps.

    | hook | effect |
    |---|---|
    | `on_train_batch_end` | every `every_n_steps` steps: one row of counts |
    | `on_task_end` | `records/continual.json` on rank 0 |

    Training is not disturbed: the network is in eval mode, no random number is drawn. State saved: the rows.

    Args:
        every_n_steps: Optimizer steps between two evaluations; the paper evaluates after every step.
        images_per_task: Test images of each task, at even distances; `None`: all. The paper takes 1,000 at most.

    Raises:
        ValueError: For numbers below 1.
    """

    def __init__(self, every_n_steps: int = 10, images_per_task: int | None = 1000) -> None:
        if every_n_steps < 1 or (images_per_task is not None and images_per_task < 1):
            raise ValueError(
                f"got `every_n_steps={every_n_steps}`, `images_per_task={images_per_task}`; expected at least 1 (or "
                "`images_per_task=None` for all). To evaluate at task ends only, take the callback out."
            )
        self.every_n_steps = every_n_steps
        self.images_per_task = images_per_task
        self.rows: list[dict[str, Any]] = []
        self._last_step = 0

    @property
    def state_key(self) -> str:
        """One per trainer."""
        return "ContinualEvaluation"

    def on_stream_start(self, trainer: Trainer, module: LightningModule, resumed: bool) -> None:
        """A new stream starts without rows.

        Raises:
            ValueError: For multi-label data, of which no image has one predicted label.
        """
        if getattr(module, "label_kind", "single") != "single":
            raise ValueError(
                f"`ContinualEvaluation` counts correct labels, and {type(module).__name__} predicts any number of "
                "labels for each image; expected a single-label method. Take the callback out."
            )
        if not resumed:
            self.rows, self._last_step = [], 0

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any, **kwargs: Any) -> None:
        """Evaluate, if it is time."""
        step, state = trainer.global_step, stream_state(trainer)
        if step % self.every_n_steps or step == self._last_step or state is None or state.current_task is None:
            return
        self._last_step = step
        seen = state.current_task.index + 1
        counts = self._count(trainer, pl_module, seen).tolist()
        rows: dict[str, Any] = {s: [correct[i] for correct in counts] for i, s in enumerate(SCENARIOS)}
        total = [correct[-1] for correct in counts]
        self.rows.append({"step": step, "task": seen - 1, "stage": state.stage, "total": total, **rows})

    def _count(self, trainer: Trainer, module: Any, seen: int) -> torch.Tensor:
        """Correct in each scenario and counted samples of each task, summed over ranks; long `[seen, 3]`."""
        counts = torch.zeros(seen, len(SCENARIOS) + 1, dtype=torch.int64, device=module.device)
        loaders = trainer.datamodule.test_dataloader()[:seen]  # type: ignore[attr-defined]
        with evaluating(module), trainer.precision_plugin.forward_context():
            for task, loader in enumerate(loaders):
                loader.indices = _spread(loader.indices, self.images_per_task)
                for batch in loader:
                    batch = trainer.strategy.batch_to_device(batch)
                    predicted = module.predicted_labels(batch)
                    for column, scenario in enumerate(SCENARIOS):
                        counts[task, column] += (predicted[scenario] == batch["target"]).sum()
                    counts[task, -1] += len(batch["target"])
        return trainer.strategy.reduce(counts, reduce_op="sum")

    def on_task_end(self, trainer: Trainer, module: LightningModule, task: Task) -> None:
        """Write the rows so far."""
        log_dir = trainer.log_dir  # a collective: not on rank 0 alone
        if trainer.is_global_zero and log_dir and not trainer.fast_dev_run:  # type: ignore[attr-defined]
            path = Path(log_dir) / FOLDER / FILE
            path.parent.mkdir(parents=True, exist_ok=True)
            content = {"schema": SCHEMA, "every_n_steps": self.every_n_steps, "rows": self.rows}
            write_atomically(path, json.dumps(content) + "\n")

    def state_dict(self) -> dict[str, Any]:
        """The rows, plain types only."""
        return {"rows": self.rows, "last_step": self._last_step}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take them back."""
        self.rows, self._last_step = list(state_dict["rows"]), int(state_dict["last_step"])


def _spread(indices: torch.Tensor, count: int | None) -> torch.Tensor:
    """`count` of the indices at even distances."""
    if count is None or len(indices) <= count:
        return indices
    return indices[torch.arange(count) * len(indices) // count]
