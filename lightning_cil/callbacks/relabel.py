"""`OnlineRelabel`: exemplars of a multi-label stream get the labels that no task annotated in them."""

from collections.abc import Iterator
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn

from lightning_cil.callbacks.base import StreamCallback, refuse_processes_that_end
from lightning_cil.callbacks.features import run_over
from lightning_cil.callbacks.replay import ReplayBuffer
from lightning_cil.callbacks.stream_state import in_stream
from lightning_cil.callbacks.teacher import Teacher
from lightning_cil.replay import ExemplarStore, fill_unknown, label_blocks, quota_cutoff
from lightning_cil.types import Task

BATCH_SIZE = 256


class OnlineRelabel(StreamCallback):
    """Fills in the unknown labels of all exemplars when a task ends (RebLL, https://arxiv.org/abs/2408.12161, "OR").

    At the end of task t, after `ReplayBuffer` has offered the task's images to its reservoir:

    1. labels of the task's classes in older exemplars: by the model just trained;
    2. labels of old classes in the task's own exemplars: by the model before the task, which `Teacher` still holds;
    3. every exemplar has a label for every class seen so far, or the run ends with an error.

    What is known is never overwritten, so that ground truth stays and each class is filled in once. Images are looked
    at as in an evaluation, by networks in eval mode; the ranks share them.

    | hook | effect |
    |---|---|
    | `on_task_end` | fills in the labels in the buffer |
    | `on_train_end` | stock fit: the same, where y is NaN; the fit is a task. Needs the order `[ReplayBuffer, OnlineRelabel, Teacher]` and processes that outlive the fit; rank 0's labels are those of all ranks |
    | `extra_results` | `results.json` has `relabelling`: how many labels, how many positive |
    | checkpoint | these numbers, the classes seen; the labels are the buffer's |

    Args:
        threshold: n, the probability above which a label counts as present. The paper does not say; 0.5 costs an error
            of either kind alike.
        quota: In place of `threshold`: share of positives, so that the most likely ones are taken. For example labels
            of an image / number of classes, 1.4 / 20 for VOC 2007.
        diagnostics: Compare the labels with the hidden ones of the data set; nothing else ever reads these. For
            studies only.

    Raises:
        ValueError: For numbers outside of (0, 1).
    """  # noqa: E501

    part_of_method = True

    def __init__(self, threshold: float = 0.5, quota: float | None = None, diagnostics: bool = False) -> None:
        for name, value in (("threshold", threshold), ("quota", quota)):
            if value is not None and not 0 < value < 1:
                raise ValueError(f"`{name}={value}`: expected a number between 0 and 1.")
        self.threshold = threshold
        self.quota = quota
        self.diagnostics = diagnostics
        self.tasks: list[dict[str, Any]] = []
        self._seen: Tensor | None = None
        self._annotated: Tensor | None = None

    @property
    def state_key(self) -> str:
        """One per trainer."""
        return "OnlineRelabel"

    def on_stream_start(self, trainer: Trainer, module: LightningModule, resumed: bool) -> None:
        """A new stream has relabelled nothing.

        Raises:
            ValueError: Without a buffer or a teacher, or for single-label data.
        """
        _needed(trainer)
        if getattr(trainer.datamodule, "label_kind", "single") != "multi":  # type: ignore[attr-defined]
            raise ValueError(
                f"`OnlineRelabel` got {type(trainer.datamodule).__name__}, whose images have one label each, so that "  # type: ignore[attr-defined]
                "none is missing; expected multi-label data. Take the callback out."
            )
        if not resumed:
            self.tasks = []

    # ------------------------------------------------------------------ stream

    def on_task_end(self, trainer: Trainer, module: LightningModule, task: Task) -> None:
        """Fill in what is unknown of the classes seen."""
        memory, teacher = _needed(trainer)
        store, datamodule = memory.store, trainer.datamodule  # type: ignore[attr-defined]
        if not len(store):
            return
        index, known = store.column("index"), store.column("known")
        before = known.clone()
        column = torch.arange(known.shape[1])
        old, new = column < task.first_class, (column >= task.first_class) & (column < task.num_seen)
        for network, classes in ((module, new), (teacher.network, old)):
            where = ~known & classes
            rows = where.any(dim=1).nonzero().flatten()
            if not len(rows):
                continue
            if network is None:
                raise RuntimeError("`OnlineRelabel` needs the old model, and `Teacher` has none for this task.")
            network.to(module.device)
            wanted = torch.unique(index[rows])
            outputs, found = run_over(trainer, network, network, datamodule.eval_loader(wanted))
            logits = _wide(outputs, known.shape[1])[torch.searchsorted(found, index[rows])]
            self._fill(store, rows, where[rows], logits)
        if not known[:, : task.num_seen].all():
            missing = int((~known[:, : task.num_seen]).sum())
            raise RuntimeError(f"`OnlineRelabel` left {missing} labels of exemplars unknown, expected none.")
        self._note(datamodule, store, before, task)

    def _fill(self, store: ExemplarStore, rows: Tensor, where: Tensor, logits: Tensor) -> None:
        target, known = store.column("target"), store.column("known")
        cutoff = self._cutoff(logits[where])
        target[rows], known[rows] = fill_unknown(target[rows], known[rows], logits, where, cutoff)

    def _cutoff(self, logits: Tensor) -> float:
        if self.quota is not None:
            return quota_cutoff(logits, self.quota)
        return float(torch.logit(torch.tensor(self.threshold, dtype=torch.float64)))

    def _note(self, datamodule: Any, store: ExemplarStore, before: Tensor, task: Task) -> None:
        target, known, row_task = (store.column(name) for name in ("target", "known", "task"))
        task_of = datamodule.task_of(torch.arange(known.shape[1]))
        filled = known & ~before
        entry: dict[str, Any] = {
            "task": task.index,
            "exemplars": len(store),
            "labels": int(filled.sum()),
            "positives": int(target[filled].sum()),
            "known_before": label_blocks(before, row_task, task_of, task.num_tasks).tolist(),
            "known_after": label_blocks(known, row_task, task_of, task.num_tasks).tolist(),
        }
        if self.diagnostics:
            truth, guess = datamodule.hidden_labels(store.column("index"))[filled], target[filled] > 0
            hits = int((truth & guess).sum())
            entry["precision"] = hits / int(guess.sum()) if guess.any() else None
            entry["recall"] = hits / int(truth.sum()) if truth.any() else None
        self.tasks = [e for e in self.tasks if e["task"] < task.index] + [entry]

    # ------------------------------------------------------------------ stock fit

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stock fit: check the order of the callbacks.

        Raises:
            ValueError: For another order, or processes that end with the fit.
        """
        if in_stream(trainer):
            return
        callbacks: list[Any] = trainer.callbacks  # type: ignore[attr-defined]
        memory, teacher = _needed(trainer)
        refuse_processes_that_end(trainer, "OnlineRelabel", "exemplars, labels and the old model")
        if not callbacks.index(memory) < callbacks.index(self) < callbacks.index(teacher):
            raise ValueError(
                "`OnlineRelabel` must stand between `ReplayBuffer`, which stores the fit's samples, and `Teacher`, "
                "which forgets the old model when the fit ends; expected `callbacks=[ReplayBuffer(…), "
                "OnlineRelabel(…), Teacher()]`."
            )
        self._annotated = None

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Stock fit: learn which classes it annotates."""
        if isinstance(batch, list) and not in_stream(trainer):
            if batch[1].ndim != 2 or not batch[1].is_floating_point():
                raise TypeError(
                    f"`OnlineRelabel` got labels of shape {list(batch[1].shape)} and type {batch[1].dtype}; expected "
                    "floats [samples, classes] with 0, 1, and NaN where a label is not known."
                )
            known = ~batch[1].isnan().all(dim=0)
            self._annotated = known if self._annotated is None else self._annotated | known

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stock fit: fill in the exemplars' labels that are NaN."""
        memory, teacher = _needed(trainer)
        store = memory.store
        if in_stream(trainer) or self._annotated is None or not len(store):
            return
        annotated = trainer.strategy.reduce(self._annotated.to(pl_module.device).long(), reduce_op="sum").cpu() > 0
        old = torch.zeros_like(annotated) if self._seen is None else self._seen
        target = store.column("target")
        for network, classes in ((pl_module, annotated & ~old), (teacher.network, old)):
            where = target.isnan() & classes
            rows = where.any(dim=1).nonzero().flatten()
            if not len(rows):
                continue
            if network is None:
                raise RuntimeError("`OnlineRelabel` needs the old model, and `Teacher` has none for this fit.")
            network.to(pl_module.device)
            outputs, _ = run_over(trainer, network, network, _batches(store.column("image"), rows))
            logits = _wide(outputs, target.shape[1])
            target[rows], _ = fill_unknown(
                target[rows], ~target[rows].isnan(), logits, where[rows], self._cutoff(logits[where[rows]])
            )
        target.copy_(trainer.strategy.broadcast(target))  # statistics of BatchNorm may differ between ranks
        self._seen = old | annotated
        if target[:, self._seen].isnan().any():
            raise RuntimeError("`OnlineRelabel` left labels of exemplars unknown, expected none.")

    # ------------------------------------------------------------------ state

    def extra_results(self, done: int) -> dict[str, Any]:
        """`relabelling`: for every task so far the number of labels filled in, and of all known ones by task."""
        return {"relabelling": {"threshold": self.threshold, "quota": self.quota, "tasks": self.tasks}}

    def state_dict(self) -> dict[str, Any]:
        """Numbers of the tasks so far; the classes of earlier fits."""
        return {"tasks": self.tasks, "seen": self._seen}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take them back."""
        self.tasks, self._seen = list(state_dict["tasks"]), state_dict["seen"]


def _needed(trainer: Trainer) -> tuple[ReplayBuffer, Teacher]:
    """The callbacks that hold the exemplars and the old model.

    Raises:
        ValueError: Without one of them.
    """
    callbacks: list[Any] = trainer.callbacks  # type: ignore[attr-defined]
    memory = next((c for c in callbacks if isinstance(c, ReplayBuffer)), None)
    teacher = next((c for c in callbacks if isinstance(c, Teacher)), None)
    if memory is None or teacher is None:
        raise ValueError(
            "`OnlineRelabel` labels the exemplars of a `ReplayBuffer` with the trained and the old model; expected "
            "`ReplayBuffer` and `Teacher` among the callbacks. Add them, or take it out."
        )
    return memory, teacher


def _wide(logits: Tensor, classes: int) -> Tensor:
    """Logits of all classes of the stream; columns that a model has not yet are never asked for."""
    return nn.functional.pad(logits, (0, classes - logits.shape[1]))


def _batches(images: Tensor, rows: Tensor) -> Iterator[list[Tensor]]:
    for part in torch.split(rows, BATCH_SIZE):
        yield [images[part], part]
