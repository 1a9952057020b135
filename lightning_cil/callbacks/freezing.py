"""`StagedFreezing`: a declared list of stages, each of which trains the parameters whose names match."""

from collections.abc import Sequence
from itertools import accumulate

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.strategies import DDPStrategy

from lightning_cil.callbacks.base import StreamCallback
from lightning_cil.callbacks.stream_state import in_stream
from lightning_cil.networks import set_trainable
from lightning_cil.types import Stage, Task


class StagedFreezing(StreamCallback):
    """Trains a part of the network at a time.

    In a stream, every task runs these stages in place of the method's own, each with a fresh optimizer; a method with
    stages of its own, such as `NFL`, needs no callback, as the driver applies the same patterns. In a stock
    `Trainer.fit`, the stages follow one another inside the fit, by epoch; the optimizer stays the module's.

    | hook | effect |
    |---|---|
    | `setup_stage` | stream: `requires_grad` and eval mode (BatchNorm included) by the stage's patterns |
    | `on_train_epoch_start` | stock fit: the same, for the stage that the epoch belongs to |
    | `on_fit_end`, `on_exception` | stock fit: everything trainable again |

    Nothing is carried from one fit to the next.

    Args:
        stages: The stages in order. Stock fit: epochs beyond their sum stay in the last one.

    Raises:
        ValueError: Without a stage, or (in a stock fit) under DDP, which cannot follow a change of trainable
            parameters.

    Example:
        >>> callback = StagedFreezing([Stage("head", 2, ["head.*"]), Stage("all", 8)])
    """

    part_of_method = True

    def __init__(self, stages: Sequence[Stage]) -> None:
        if not stages:
            raise ValueError("`stages=[]`: expected at least one, for example [Stage('head', 2, ['head.*'])].")
        self.stages = list(stages)
        self._current: Stage | None = None

    def setup_stage(self, trainer: Trainer, module: LightningModule, task: Task, stage: Stage) -> None:
        """Apply the stage's patterns."""
        set_trainable(module, stage.train)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuse what would go wrong silently."""
        self._current = None  # the last fit may have been broken off
        if not in_stream(trainer) and isinstance(trainer.strategy, DDPStrategy) and trainer.world_size > 1:
            raise ValueError(
                "`StagedFreezing` got a stock Trainer with DDP, which registers trainable parameters once; expected "
                "one process. Use `IncrementalTrainer` with an `IncrementalDataModule`, which wraps every stage anew."
            )

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stock fit: enter the stage of this epoch."""
        if in_stream(trainer):
            return
        stage = self.stage_at(trainer.current_epoch)
        if stage is not self._current:
            set_trainable(pl_module, stage.train)
            self._current = stage

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stock fit: leave nothing frozen behind."""
        if not in_stream(trainer):
            set_trainable(pl_module, ["*"])
            self._current = None

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Stock fit: the next one may make its optimizer of trainable parameters only."""
        if self._current is not None:
            self.on_fit_end(trainer, pl_module)

    def stage_at(self, epoch: int) -> Stage:
        """The stage that an epoch of a stock fit belongs to."""
        ends = accumulate(stage.epochs for stage in self.stages)
        return next((s for s, end in zip(self.stages, ends, strict=True) if epoch < end), self.stages[-1])
