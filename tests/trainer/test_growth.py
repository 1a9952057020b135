"""What happens between two tasks costs the same at the end of a long stream as at its start."""

import sys
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback

from lightning_cil.callbacks import ReplayBuffer
from lightning_cil.data.images import ImageSplit, TensorImages
from lightning_cil.methods import ER
from tests.callbacks.conftest import TinyTasks
from tests.streams import fit, make

TASKS = 20


class SingleClasses(TinyTasks):
    """Tasks of one class, four images each."""

    def __init__(self) -> None:
        super().__init__(class_names=[str(c) for c in range(TASKS)], num_tasks=TASKS)

    def load_split(self, train: bool) -> ImageSplit:
        images = torch.arange(4 * TASKS, dtype=torch.uint8).reshape(-1, 1, 1, 1).expand(-1, 1, 6, 6).contiguous()
        return TensorImages(images, torch.arange(4 * TASKS) % TASKS, TASKS, "single classes")


class CallCounter(Callback):
    """Counts the calls, Python's and C's, from the end of an evaluation to the next task's first batch."""

    def __init__(self) -> None:
        self.counts: list[int] = []

    def on_test_end(self, trainer: Any, pl_module: Any) -> None:
        self.counts.append(0)
        sys.setprofile(self.count)

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        sys.setprofile(None)

    def on_stream_end(self, trainer: Any, module: Any) -> None:
        sys.setprofile(None)

    def count(self, frame: Any, event: str, argument: Any) -> None:
        self.counts[-1] += event in ("call", "c_call")


def test_gap_and_checkpoint_grow_by_what_was_learned_only(tmp_path: Path) -> None:
    counter = CallCounter()
    options = {"evaluate_before_training": False, "limit_test_batches": 1}
    trainer = fit(tmp_path, make(ER), SingleClasses(), [ReplayBuffer(total=TASKS), counter], **options)
    assert counter.counts[-2] < 1.05 * counter.counts[1]
    sizes = [path.stat().st_size for path in (Path(trainer.log_dir) / f"checkpoints/task_{k}.ckpt" for k in (4, 18))]
    outputs = 4 * (make(ER).head.in_features + 1)
    assert sizes[1] - sizes[0] < 14 * (outputs + 256), "more than a class's outputs, what it took and its score"
