"""`ActivationMapRecords`: where the network sees each class in some test images, after every task.

`records/maps_task_<k>.npz` holds `index` (int32 `[N]`, position in the test split), `image` (uint8 `[N, channels,
height, width]`), `target` (bool `[N, classes seen]`), `scores` (float16 `[N, classes seen]`, probabilities) and `maps`
(float16 `[N, classes seen, h, w]`).
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn

from lightning_cil.callbacks.base import StreamCallback
from lightning_cil.callbacks.gather import gather_columns
from lightning_cil.callbacks.records import record_name
from lightning_cil.callbacks.results import replace_atomically
from lightning_cil.networks import MapBackbone
from lightning_cil.report.records import FOLDER


class ActivationMapRecords(StreamCallback):
    """Keeps class activation maps of the same test images at every evaluation of a multi-label stream.

    A map is the last feature map times the gradient of the class's logit, summed over channels: what each place adds to
    the logit. With average pooling and a linear classifier that is the class activation map of Zhou et al. 2016
    (https://arxiv.org/abs/1512.04150); with others it is HiResCAM (Draelos and Carin 2020,
    https://arxiv.org/abs/2011.08891).

    | hook | effect |
    |---|---|
    | `on_test_batch_end` | computes the maps of the batch's chosen images |
    | `on_test_end` | gathers all ranks' parts, sorts them by index, writes the file on rank 0 |

    Args:
        num_images: How many: the test images with classes of the most tasks, the first ones among equals. Default: 4,
            a figure's rows.

    Raises:
        ValueError: For fewer than one image, or single-label data.
        TypeError: For a backbone without feature maps.
    """

    def __init__(self, num_images: int = 4) -> None:
        if num_images < 1:
            raise ValueError(f"`num_images={num_images}`: expected at least 1. To keep none, take the callback out.")
        self.num_images = num_images
        self._chosen = torch.empty(0, dtype=torch.int64)
        self._parts: list[tuple[Tensor, ...]] = []

    def on_stream_start(self, trainer: Trainer, module: LightningModule, resumed: bool) -> None:
        """Refuse data and networks without such maps before anything is trained."""
        datamodule: Any = trainer.datamodule  # type: ignore[attr-defined]
        if getattr(datamodule, "label_kind", "single") != "multi":
            raise ValueError(
                f"`ActivationMapRecords` got {type(datamodule).__name__}, whose images have one label each; expected "
                "multi-label data. Take the callback out."
            )
        _with_maps(module)

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Choose the images."""
        self._parts = []
        if getattr(pl_module, "evaluation_row", None) is None:
            return
        datamodule: Any = trainer.datamodule  # type: ignore[attr-defined]
        labels = datamodule.labels("test")
        tasks = datamodule.task_of(torch.arange(labels.shape[1]))
        covered = torch.stack([labels[:, tasks == t].any(dim=1) for t in tasks.unique()], dim=1).sum(dim=1)
        self._chosen = covered.argsort(descending=True, stable=True)[: self.num_images]

    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Compute the chosen images' maps."""
        row = getattr(pl_module, "evaluation_row", None)
        if row is None or row < 0:
            return
        chosen = torch.isin(batch["index"], self._chosen.to(batch["index"].device))
        if not chosen.any():
            return
        scores, maps = activation_maps(pl_module, batch["image"][chosen])
        target = batch["target"][chosen][:, : scores.shape[1]] > 0
        self._parts.append((batch["index"][chosen].cpu(), target.cpu(), scores.cpu().half(), maps.cpu().half()))

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the evaluation's file."""
        row, log_dir = getattr(pl_module, "evaluation_row", None), trainer.log_dir
        if row is None or row < 0 or log_dir is None or trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        found = gather_columns(trainer, self._parts)
        self._parts = []
        if found and trainer.is_global_zero:  # none: no chosen image shows a class seen so far
            index, target, scores, maps = found
            path = Path(log_dir) / FOLDER / f"maps_{record_name(row)}"
            path.parent.mkdir(parents=True, exist_ok=True)
            image = trainer.datamodule.split("test").stored(index)  # type: ignore[attr-defined]
            with replace_atomically(path) as file:
                np.savez_compressed(
                    file,
                    index=index.to(torch.int32).numpy(),
                    image=image.numpy(),
                    target=target.numpy(),
                    scores=scores.numpy(),
                    maps=maps.numpy(),
                )


def activation_maps(module: Any, image: Tensor) -> tuple[Tensor, Tensor]:
    """Probabilities `[B, seen]` and maps `[B, seen, h, w]` of images `[B, C, H, W]`; no gradient is kept."""
    backbone = _with_maps(module)
    with torch.inference_mode(False), torch.enable_grad():
        features, stages = backbone(image.clone().requires_grad_(), stages=True)  # the network may be frozen
        logits = module.head(features)[:, : module.num_classes_seen]
        last = stages[-1]
        grads = [
            torch.autograd.grad(logits[:, c].sum(), last, retain_graph=c + 1 < logits.shape[1])[0]
            for c in range(logits.shape[1])
        ]
        maps = torch.stack([(last * grad).sum(dim=1) for grad in grads], dim=1).detach()
        return logits.detach().float().sigmoid(), maps.float()


def _with_maps(module: Any) -> MapBackbone:
    """The module's backbone with its maps.

    Raises:
        TypeError: Without a backbone and a head, or for a backbone without maps.
    """
    backbone = getattr(module, "backbone", None)
    if not isinstance(backbone, nn.Module) or not hasattr(module, "head"):
        raise TypeError(
            f"`ActivationMapRecords` needs a module with `backbone` and `head`, and {type(module).__name__} has not "
            "both. Add them, or take the callback out."
        )
    return backbone if isinstance(backbone, MapBackbone) else MapBackbone(backbone, "pooled")
