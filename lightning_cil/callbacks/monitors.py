"""Lightning's `EarlyStopping` and `ModelCheckpoint`, made to start afresh with every stage.

The stock ones keep their best score between stages, so that an easy first task ends all later stages after one
epoch, or leaves no later model as the best one. In a run without stages these behave as the stock ones.
"""

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch import callbacks as stock

from lightning_cil.callbacks.stream_state import stream_state
from lightning_cil.types import Stage, Task


class EarlyStopping(stock.EarlyStopping):
    """`lightning.pytorch.callbacks.EarlyStopping` that ends the stage, not the stream; same arguments."""

    def on_stage_start(self, trainer: Trainer, module: LightningModule, task: Task, stage: Stage) -> None:
        """Forget the last stage's best score."""
        self.wait_count = 0
        self.stopped_epoch = 0
        self.best_score = torch.tensor(torch.inf if self.monitor_op == torch.lt else -torch.inf)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Decide, and remember the decision for a resumed run."""
        super().on_train_epoch_end(trainer, pl_module)
        _remember_stop(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Decide, and remember the decision for a resumed run."""
        super().on_validation_end(trainer, pl_module)
        _remember_stop(trainer)


def _remember_stop(trainer: Trainer) -> None:
    state = stream_state(trainer)
    if state is not None and trainer.should_stop:
        state.should_stop = True


class ModelCheckpoint(stock.ModelCheckpoint):
    """`lightning.pytorch.callbacks.ModelCheckpoint` that looks for the best model of each stage; same arguments."""

    def on_stage_start(self, trainer: Trainer, module: LightningModule, task: Task, stage: Stage) -> None:
        """Forget the last stage's scores; its files stay."""
        if self.monitor is not None:
            self.best_k_models = {}
            self.kth_best_model_path = ""
            self.best_model_score = None
            self.best_model_path = ""
            self.current_score = None
            self.kth_value = torch.tensor(torch.inf if self.mode == "min" else -torch.inf)
