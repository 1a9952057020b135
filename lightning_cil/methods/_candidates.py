"""`CandidateCounts`: accuracy on every task among the classes up to it, whichever were learned.

Of what GEM's forward transfer is made in M2: the matrix itself has only learned classes as candidates.
"""

import torch
from torch import Tensor

from lightning_cil.metrics import TaskMatrix


class CandidateCounts:
    """Counts of a stream's evaluations.

    Args:
        num_tasks: Of the stream.

    Attributes:
        counts: long `[2, tasks + 1, tasks]`, correct and all samples of a task in each evaluation; row 0 is
            before training.
    """

    def __init__(self, num_tasks: int) -> None:
        self.counts = torch.zeros(2, num_tasks + 1, num_tasks, dtype=torch.int64)
        self._running = TaskMatrix(num_tasks)

    def start(self, device: torch.device) -> None:
        """An evaluation begins."""
        self._running.to(device).reset()

    def add(self, logits: Tensor, target: Tensor, task: Tensor, end_class: Tensor, row: int) -> None:
        """Count a batch.

        Args:
            logits: float `[B, classes]`, of the whole stream.
            target: long `[B]`.
            task: long `[B]`.
            end_class: long `[tasks]`, the class after each task's last.
            row: The task learned last, -1 before training.
        """
        candidates = torch.arange(logits.shape[1], device=logits.device) < end_class[task].unsqueeze(1)
        self._running.update(logits.masked_fill(~candidates, -torch.inf).argmax(1), target, task, row)

    def keep(self, row: int) -> None:
        """An evaluation ends; a collective."""
        with self._running.sync_context():
            for part, counts in enumerate((self._running.correct, self._running.total)):
                self.counts[part, row + 1] = counts[row + 1].cpu()

    def ahead(self, done: int) -> tuple[list[float | None], list[float | None]]:
        """Accuracy on each task just before it was learned, and before anything was; `None`: not known."""
        correct, total = self.counts.tolist()

        def score(row: int, task: int) -> float | None:
            return correct[row][task] / total[row][task] if total[row][task] else None

        return [score(t, t) for t in range(done)], [score(0, t) for t in range(done)]
