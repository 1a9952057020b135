"""`Teacher`: a frozen copy of the old model and its logits for every training batch."""

from typing import Any, Literal

import torch
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from torch import Tensor, nn

from lightning_cil.callbacks.base import StreamCallback, refuse_processes_that_end
from lightning_cil.callbacks.gather import equalise_buffers
from lightning_cil.callbacks.recorded_logits import RecordedLogits, check_targets
from lightning_cil.callbacks.stream_state import in_stream, stream_state
from lightning_cil.metrics.footprint import module_bytes
from lightning_cil.networks import copy_unsharded
from lightning_cil.types import Stage, Task

CHECKPOINT_KEY = "lightning_cil.Teacher"
RECORDED_KEY = "lightning_cil.Teacher.recorded_bytes"


class Teacher(StreamCallback):
    """Keeps the model as it was when the task began; not a child of the module, so it is not trained, saved or wrapped.

    | hook | effect |
    |---|---|
    | `on_task_start` | snapshot of the module, from the second task on |
    | `on_fit_start` | stock fit: refuses processes that end with it |
    | `on_train_end` | stock fit: snapshot for the next fit |
    | `on_train_start` | `targets='recorded'`: the logits of all images of the stage |
    | `on_train_batch_start` | dict batches: `teacher_logits`, and `replay_teacher_logits` if there are exemplars; `[x, y]` lists: the logits are appended |
    | checkpoint | the teacher's weights under an own key; its shapes come from them |

    One batched forward for current images and exemplars, in eval mode, without grad, in the trainer's precision.
    Uses `module(image) -> logits`. A stage with `options={"teacher": False}` does without.

    Args:
        targets: `online`: the logits of the same augmented images; `recorded`: those of the images without
            augmentation, computed once a task (streams only; exemplars' are always computed online).
        features: Whether dict batches also get `teacher_features`, from the same forward; uses `module.features` and
            `module.head`.
        outputs: Whether dict batches get `teacher_<name>` for everything that `module.teacher_outputs(image)` returns,
            a dict of tensors `[B, …]` with `logits` among them; for methods that keep more than logits.
        exemplars: Whether exemplars get logits too; a loss that does not use them saves their part of the forward.

    Raises:
        ValueError: For other `targets`, or `outputs` together with recorded targets or `features`.
    """  # noqa: E501

    part_of_method = True

    def __init__(
        self,
        targets: Literal["online", "recorded"] = "online",
        features: bool = False,
        outputs: bool = False,
        exemplars: bool = True,
    ) -> None:
        check_targets(targets)
        if outputs and (features or targets != "online"):
            raise ValueError(
                f"got `outputs=True` with `targets={targets!r}` and `features={features}`; expected `targets='online'` "
                "and no `features`, which the module can name among its outputs."
            )
        self.targets = targets
        self.features = features
        self.outputs = outputs
        self.exemplars = exemplars
        self.network: nn.Module | None = None
        self._recorded: RecordedLogits | None = None
        self._recorded_data: tuple[str, float] | None = None
        self._recorded_bytes = 0
        self._weights: dict[str, Tensor] | None = None

    def snapshot(self, module: LightningModule) -> None:
        """Copy the module as it is now."""
        self.network, self._weights = _frozen_copy(module), None
        self._recorded, self._recorded_bytes = None, 0

    def on_stream_start(self, trainer: Trainer, module: LightningModule, resumed: bool) -> None:
        """A new stream starts without a teacher."""
        if not resumed:
            self.network = self._weights = self._recorded = None
            self._recorded_bytes = 0

    def on_task_start(self, trainer: Trainer, module: LightningModule, task: Task) -> None:
        """Keep the old model; before the first task there is none."""
        if not task.is_first:
            self.snapshot(module)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stock fit: refuse spawned and forked processes.

        Raises:
            ValueError: In them.
        """
        refuse_processes_that_end(trainer, "Teacher", "the old model")

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Rebuild a teacher that a checkpoint brought, move it to the device, and record its logits."""
        self._rebuild(pl_module)
        if self.network is not None:
            self.network.to(pl_module.device)
            self._record(trainer, pl_module, self.network)

    def on_stage_end(self, trainer: Trainer, module: LightningModule, task: Task, stage: Stage) -> None:
        """Rebuild a teacher that came with a stage that was over already, so that nothing was trained."""
        self._rebuild(module)

    def _rebuild(self, module: LightningModule) -> None:
        if self._weights is not None:
            self.network = _frozen_copy(module)
            self.network.load_state_dict(self._weights)
            self.network.eval().requires_grad_(False)  # a part may have been replaced by one of another shape
            self._weights = None

    def _record(self, trainer: Trainer, module: LightningModule, network: nn.Module) -> None:
        state = stream_state(trainer)
        stage = state.current_stage if state is not None else None
        data = (stage.data, stage.holdout) if stage is not None else None
        if self.targets == "online" or not _wanted(trainer) or (self._recorded and self._recorded_data == data):
            return
        function = self._with_features if self.features else network
        self._recorded, self._recorded_data = RecordedLogits.of_stage(trainer, module, network, function), data
        self._recorded_bytes = self._recorded.num_bytes

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Add the teacher's logits to the batch."""
        if not isinstance(batch, dict | list):
            raise TypeError(
                f"`Teacher` got a batch of type {type(batch).__name__}, which nothing can be added to; expected a dict "
                "with 'image' or a list [x, y]. Let the collate function return a list."
            )
        if self.network is None or not _wanted(trainer):
            return
        exemplars = self.exemplars and isinstance(batch, dict) and "replay_image" in batch
        if isinstance(batch, dict) and self._recorded is not None:
            self._add(batch, self._recorded(batch["index"]))
            if exemplars:
                inputs = inputs_of(pl_module, batch, "replay_")
                batch["replay_teacher_logits"] = self._logits_of(self.logits(trainer, *inputs))
        elif isinstance(batch, dict):
            parts = [inputs_of(pl_module, batch)]
            if exemplars:
                parts.append(inputs_of(pl_module, batch, "replay_"))
            together = [torch.cat(columns) for columns in zip(*parts, strict=True)]
            sizes = [len(part[0]) for part in parts]
            if self.outputs:
                for name, value in self._outputs_of(trainer, *together).items():
                    batch.update(
                        zip((f"teacher_{name}", f"replay_teacher_{name}"), torch.split(value, sizes), strict=False)
                    )
                return
            logits = torch.split(self.logits(trainer, *together), sizes)
            self._add(batch, logits[0])
            if len(parts) > 1:
                batch["replay_teacher_logits"] = self._logits_of(logits[1])
        else:
            batch.append(self._logits_of(self.logits(trainer, batch[0])))

    def logits(self, trainer: Trainer, *inputs: Tensor) -> Tensor:
        """The old model's logits `[B, old]`; with `features`, they follow as further columns."""
        assert self.network is not None
        with torch.no_grad(), trainer.precision_plugin.forward_context():
            out: Tensor = (self._with_features if self.features else self.network)(*inputs)
        return out

    def _outputs_of(self, trainer: Trainer, *inputs: Tensor) -> dict[str, Tensor]:
        network: Any = self.network
        with torch.no_grad(), trainer.precision_plugin.forward_context():
            found: dict[str, Tensor] = network.teacher_outputs(*inputs)
        return found

    def _with_features(self, *inputs: Tensor) -> Tensor:
        network: Any = self.network
        features = network.features(*inputs)
        return torch.cat([network.head(features), features], dim=1)

    def _logits_of(self, outputs: Tensor) -> Tensor:
        network: Any = self.network
        return outputs[:, : network.head.num_classes] if self.features else outputs

    def _add(self, batch: Any, outputs: Tensor) -> None:
        logits = batch["teacher_logits"] = self._logits_of(outputs)
        if self.features:
            batch["teacher_features"] = outputs[:, logits.shape[1] :]

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stock fit: the model of this fit teaches the next one."""
        if not in_stream(trainer):
            self.snapshot(pl_module)
            assert self.network is not None
            equalise_buffers(trainer, self.network)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Save the weights; a teacher that is about to be replaced is not worth it."""
        state = stream_state(trainer)
        weights = self._weights if self.network is None else dict(self.network.state_dict())
        if weights is not None and (state is None or state.phase == "stage"):
            checkpoint[CHECKPOINT_KEY] = weights
        if self._recorded_bytes:  # for the account of a task that is over when the run goes on
            checkpoint[RECORDED_KEY] = self._recorded_bytes

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Take the weights; the network is built when training starts."""
        self._weights = checkpoint.get(CHECKPOINT_KEY)
        self._recorded_bytes = int(checkpoint.get(RECORDED_KEY, 0))

    def footprint(self) -> dict[str, int]:
        """Bytes of the copy, and of the recorded logits."""
        recorded = {"transient_bytes": self._recorded_bytes} if self._recorded_bytes else {}
        return {"teacher_bytes": sum(module_bytes(self.network)), **recorded} if self.network is not None else recorded


def inputs_of(module: Any, batch: Any, prefix: str = "") -> tuple[Tensor, ...]:
    """What a module's `forward` takes of a dict batch: what its `inputs` says, else the images."""
    inputs = getattr(module, "inputs", None)
    return inputs(batch, prefix) if inputs is not None else (batch[f"{prefix}image"],)


def _wanted(trainer: Trainer) -> bool:
    """Whether the current stage uses the teacher."""
    state = stream_state(trainer)
    return state is None or state.current_stage is None or bool(state.current_stage.options.get("teacher", True))


def _frozen_copy(module: LightningModule) -> nn.Module:
    # What the parts refer to but do not own stays shared, such as an optimizer factory. Their own methods do not: DDP
    # leaves `forward` behind as an attribute, and through the original's the copy would answer as the trained model.
    memo = {
        id(value): value
        for part in module.modules()
        for value in vars(part).values()
        if (callable(value) and not isinstance(value, nn.Module) and getattr(value, "__self__", None) is not part)
        or isinstance(value, LightningDataModule)
    }
    network = copy_unsharded(module, memo)
    return network.eval().requires_grad_(False)
