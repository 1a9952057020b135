"""The hooks that a stream adds to Lightning's."""

from typing import TYPE_CHECKING, Any, ClassVar

from lightning.pytorch import Callback

from lightning_cil import _compat
from lightning_cil.callbacks.stream_state import in_stream
from lightning_cil.types import Stage, Task

if TYPE_CHECKING:
    from lightning.pytorch import LightningModule, Trainer


class StreamCallback(Callback):
    """A callback that also hears of tasks and stages. All hooks do nothing by default.

    In the order of a task::

        on_stream_start                                              once for a run
        on_task_start                                            once, the head still has its old size
            setup_stage, on_stage_start, <a complete fit>, on_stage_end    for each stage
        on_task_end                                              model on the device, before the evaluation
        <evaluation on all tasks>
        on_task_scored                                           the new row of the matrix is known

    A resumed run repeats none of the hooks that ran before the checkpoint, except `setup_stage`, which must
    only set shapes, modes and `requires_grad`. `on_task_end` can run again after a kill inside it, from the
    state of the last checkpoint, so it must be a function of that state.
    """

    part_of_method: ClassVar[bool] = False
    """Whether a run with another method should leave the callback out: memory, teacher, stages."""

    def on_stream_start(self, trainer: "Trainer", module: "LightningModule", resumed: bool) -> None:
        """Before everything else; not resumed: forget what an earlier stream left here."""

    def on_task_start(self, trainer: "Trainer", module: "LightningModule", task: Task) -> None:
        """Before the head grows; the module is still the old model."""

    def setup_stage(self, trainer: "Trainer", module: "LightningModule", task: Task, stage: Stage) -> None:
        """Before every stage, also a resumed one."""

    def on_stage_start(self, trainer: "Trainer", module: "LightningModule", task: Task, stage: Stage) -> None:
        """Before a stage that starts from its beginning."""

    def on_stage_end(self, trainer: "Trainer", module: "LightningModule", task: Task, stage: Stage) -> None:
        """After a stage, model on the device."""

    def on_task_end(self, trainer: "Trainer", module: "LightningModule", task: Task) -> None:
        """After the last stage, model on the device, training data still there."""

    def on_task_scored(self, trainer: "Trainer", module: "LightningModule", task: Task) -> None:
        """After the evaluation that follows a task."""

    def on_stream_end(self, trainer: "Trainer", module: "LightningModule") -> None:
        """After the last task that this run trains."""

    def footprint(self) -> dict[str, int]:
        """Bytes held beside the network, by line of `metrics.footprint`; summed over callbacks and the module."""
        return {}

    def extra_results(self, done: int) -> dict[str, Any]:
        """Further entries of `results.json` after `done` tasks, plain JSON types; a module can have some too."""
        return {}


def call_hook(trainer: "Trainer", module: "LightningModule", name: str, *args: Any) -> None:
    """Call a stream hook on all callbacks that have it, then on the module."""
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        hook = getattr(callback, name, None)
        if hook is not None:
            hook(trainer, module, *args)
    hook = getattr(module, name, None)
    if hook is not None:
        hook(*args)


def refuse_processes_that_end(trainer: "Trainer", name: str, lost: str) -> None:
    """Refuse a stock fit in spawned or forked processes, of which only the weights come back.

    A stream is one launch, so that all its tasks are in the same processes.

    Args:
        trainer: The trainer, in one of the processes, before training starts.
        name: The callback that carries something from one fit to the next.
        lost: What it carries.

    Raises:
        ValueError: Under `ddp_spawn`, `ddp_fork` and `ddp_notebook`, also for one process.
    """
    if not in_stream(trainer) and _compat.launcher_kind(trainer) == "multiprocessing":
        raise ValueError(
            f"`{name}` got a stock fit in spawned or forked processes ('ddp_spawn', 'ddp_fork', 'ddp_notebook'): "
            f"{lost} would be lost with them when the fit ends, and the next fit would train without; expected "
            "processes that last. Use `strategy='ddp'` in a script, torchrun, one process (`strategy='auto', "
            "devices=1`), or an `IncrementalTrainer` with an `IncrementalDataModule`, which keeps its processes for "
            "all tasks."
        )
