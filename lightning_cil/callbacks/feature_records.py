"""`FeatureRecords`: the features of some test images after every task, for pictures of how they move (t-SNE).

`records/features_task_<k>.npz` (`features_before.npz`: the untrained network) holds `index` (int32 `[N]`, position in
the test split), `target` (int32 `[N]`, incremental label) and `features` (float16 `[N, dim]`). Of a method with
modalities `features` are the fused ones, and there are `visual`, `audio` (where sounds matter) and `prototypes`
(float16 `[classes, dim]`), what they are compared with.
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor

from lightning_cil.callbacks.base import StreamCallback
from lightning_cil.callbacks.gather import gather_columns
from lightning_cil.callbacks.records import record_name
from lightning_cil.callbacks.results import replace_atomically
from lightning_cil.report.records import FOLDER
from lightning_cil.types import FeatureExtractor, ModalityFeatures

NAMES = ("features", "visual", "audio")
"""Arrays of features, in the order of the columns."""


class FeatureRecords(StreamCallback):
    """Keeps `module.features` (or `modality_features`) of the same test images at every evaluation of a stream.

    | hook | effect |
    |---|---|
    | `on_test_batch_end` | computes and keeps the features of the batch's chosen images |
    | `on_test_end` | gathers all ranks' parts, sorts them by index, writes the file on rank 0 |

    Args:
        num_images: How many, at even distances in the test split; all where it has fewer. Default: 1000, as many as
            a scatter plot can show.

    Raises:
        ValueError: For fewer than one image.
    """

    def __init__(self, num_images: int = 1000) -> None:
        if num_images < 1:
            raise ValueError(f"`num_images={num_images}`: expected at least 1. To keep none, take the callback out.")
        self.num_images = num_images
        self._chosen = torch.empty(0, dtype=torch.int64)
        self._parts: list[tuple[Tensor, ...]] = []

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Choose the images."""
        self._parts = []
        if getattr(pl_module, "evaluation_row", None) is None:
            return
        if not isinstance(pl_module, FeatureExtractor):
            raise TypeError(
                f"`FeatureRecords` needs a module with `features(image)`, and {type(pl_module).__name__} has none. "
                "Add it, or take the callback out."
            )
        if getattr(pl_module, "label_kind", "single") != "single":
            raise ValueError(
                f"`FeatureRecords` keeps one label for each image, and {type(pl_module).__name__} is for images with "
                "any number of labels; expected a single-label method. Take the callback out."
            )
        size = len(trainer.datamodule.labels("test"))  # type: ignore[attr-defined]
        count = min(self.num_images, size)
        self._chosen = torch.arange(count) * size // count

    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Compute the chosen images' features."""
        if getattr(pl_module, "evaluation_row", None) is None:
            return
        chosen = torch.isin(batch["index"], self._chosen.to(batch["index"].device))
        if not chosen.any():
            return
        part = {name: value[chosen] for name, value in batch.items() if isinstance(value, Tensor)}
        with torch.no_grad(), trainer.precision_plugin.forward_context():
            found = (
                pl_module.modality_features(part)  # type: ignore[arg-type]
                if isinstance(pl_module, ModalityFeatures)
                else {"features": pl_module.features(part["image"])}  # type: ignore[operator]
            )
        columns = [found[name].cpu().half() for name in NAMES if name in found]
        self._parts.append((part["index"].cpu(), part["target"].cpu(), *columns))

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the evaluation's file."""
        row, log_dir = getattr(pl_module, "evaluation_row", None), trainer.log_dir
        if row is None or log_dir is None or trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        index, target, *features = gather_columns(trainer, self._parts)
        self._parts = []
        if trainer.is_global_zero:
            arrays: dict[str, Any] = {name: column.numpy() for name, column in zip(NAMES, features, strict=False)}
            if isinstance(pl_module, ModalityFeatures):
                with torch.no_grad(), trainer.precision_plugin.forward_context():
                    arrays["prototypes"] = pl_module.class_prototypes().cpu().half().numpy()
            path = Path(log_dir) / FOLDER / f"features_{record_name(row)}"
            path.parent.mkdir(parents=True, exist_ok=True)
            with replace_atomically(path) as file:
                np.savez_compressed(
                    file,
                    index=index.to(torch.int32).numpy(),
                    target=target.to(torch.int32).numpy(),
                    **arrays,
                )
