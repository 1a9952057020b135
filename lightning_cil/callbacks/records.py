"""`PredictionRecords`: what the network predicted for every test image, after every task.

Scores are sums; whoever wants another one later needs the predictions they were made of. A file of the run folder,
`records/task_<k>.npz` (`records/before.npz`: the untrained network), holds one entry for each test image:

| array | type | content |
|---|---|---|
| `index` | int32 | position in the test split |
| `target` | int16 (int32 above 32,767 classes) | incremental label |
| `class_il`, `task_il` | like `target` | predicted incremental label, -1: none (no class learned yet) |

`numpy.load` reads it. CIFAR-100's 10,000 test images take about 60 kB a task.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor

from lightning_cil.callbacks.base import StreamCallback
from lightning_cil.callbacks.gather import gather_columns
from lightning_cil.callbacks.results import replace_atomically
from lightning_cil.report.records import FOLDER
from lightning_cil.types import SCENARIOS

LARGEST_INT16 = 32767


class PredictionRecords(StreamCallback):
    """Keeps target and predictions of every evaluation of a stream, with the sample's index.

    | hook | effect |
    |---|---|
    | `on_test_batch_end` | keeps what `test_step` returned, on its device |
    | `on_test_end` | gathers all ranks' parts, sorts them by index, writes the file on rank 0 |

    Tests outside a stream (`trainer.test`) write nothing.
    """

    def __init__(self) -> None:
        self._parts: list[tuple[Tensor, ...]] = []

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Forget an evaluation that was cut off."""
        self._parts = []

    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Keep a batch's labels."""
        if getattr(pl_module, "evaluation_row", None) is None or not isinstance(outputs, Mapping):
            return
        self._parts.append((batch["index"], batch["target"], *(outputs[s] for s in SCENARIOS)))

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the evaluation's file."""
        row, log_dir = getattr(pl_module, "evaluation_row", None), trainer.log_dir
        if not self._parts:  # multi-label: no image has one predicted label
            return
        if row is None or log_dir is None or trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        columns = gather_columns(trainer, self._parts)
        self._parts = []
        if trainer.is_global_zero:
            write_predictions(Path(log_dir) / FOLDER / record_name(row), *columns)


def record_name(row: int) -> str:
    """The file of a row of the matrix; row -1 is before training."""
    return f"task_{row}.npz" if row >= 0 else "before.npz"


def write_predictions(path: Path, index: Tensor, target: Tensor, class_il: Tensor, task_il: Tensor) -> None:
    """Write one evaluation.

    Args:
        path: The file; its folder is made.
        index: long `[N]`, position in the test split.
        target: long `[N]`, incremental label.
        class_il: long `[N]`, predicted label, -1: none.
        task_il: long `[N]`, the same when the task is known.
    """
    largest = max(int(column.max()) for column in (target, class_il, task_il))
    kind = np.int16 if largest <= LARGEST_INT16 else np.int32
    path.parent.mkdir(parents=True, exist_ok=True)
    with replace_atomically(path) as file:
        np.savez_compressed(
            file,
            index=index.numpy().astype(np.int32),
            target=target.numpy().astype(kind),
            class_il=class_il.numpy().astype(kind),
            task_il=task_il.numpy().astype(kind),
        )
