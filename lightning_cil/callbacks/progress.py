"""`StreamProgressBar`: Lightning's bar, named after task and stage; nothing is left behind by a finished stage."""

import sys
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import TQDMProgressBar
from lightning.pytorch.callbacks.progress.tqdm_progress import Tqdm

from lightning_cil.callbacks.stream_state import stream_state


class StreamProgressBar(TQDMProgressBar):
    """A progress bar that says `task 2/5 · train · epoch 3/10`; silent where the output is no terminal.

    Args:
        refresh_rate: Batches between two updates; updates cost as much as a small step.
    """

    def __init__(self, refresh_rate: int = 20) -> None:
        super().__init__(refresh_rate=refresh_rate, leave=False)

    @property
    def is_disabled(self) -> bool:
        """Whether nothing is drawn: a log file keeps the lines of `StreamSummary` only."""
        return super().is_disabled or not sys.stdout.isatty()

    def description(self, trainer: Trainer) -> str:
        """Where the run is."""
        epoch = f"epoch {trainer.current_epoch + 1}/{trainer.max_epochs}"
        state = stream_state(trainer)
        if state is None or state.current_task is None or state.current_stage is None:
            return epoch
        return f"task {state.current_task.index + 1}/{state.num_tasks} · {state.current_stage.name} · {epoch}"

    def on_train_epoch_start(self, trainer: Trainer, *args: Any) -> None:
        """Name the bar."""
        super().on_train_epoch_start(trainer, *args)
        self.train_progress_bar.set_description(self.description(trainer))

    def init_test_tqdm(self) -> Tqdm:
        """A bar over the tests of all tasks that disappears."""
        bar = super().init_test_tqdm()
        bar.leave = False
        return bar

    def on_test_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Name the bar after the task that is tested, where each has a loader of its own."""
        super().on_test_batch_start(trainer, pl_module, batch, batch_idx, dataloader_idx)
        if not self.test_progress_bar.disable:
            together = getattr(trainer.datamodule, "label_kind", "single") == "multi"  # type: ignore[attr-defined]
            self.test_progress_bar.set_description("testing" if together else f"testing task {dataloader_idx + 1}")
