"""Features, or other outputs, of a set of images, computed on all ranks' shares, the same tensor on every rank."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn

from lightning_cil.callbacks.gather import gather_columns
from lightning_cil.networks.freezing import evaluating
from lightning_cil.types import FeatureExtractor


def extract_features(trainer: Trainer, module: LightningModule, loader: Iterable[Any]) -> tuple[Tensor, Tensor]:
    """Run `module.features` over a loader in eval mode, without grad, in the trainer's precision.

    Args:
        trainer: Gives device placement, precision and process group.
        module: A module with `features(image) -> [B, dim]`.
        loader: Dict batches with `image` and `index`, this rank's share of them, or all `(x, y)` batches.

    Returns:
        Features, float32 `[N, dim]`, and their indices, long `[N]`, both on the CPU, sorted by index, of all ranks.
        Batches without `index` are numbered as they come.

    Raises:
        TypeError: When the module has no `features`.
    """
    if not isinstance(module, FeatureExtractor):
        raise TypeError(
            f"{type(module).__name__} has no method `features(image)`, which herding needs; expected one that maps "
            "[B, channels, height, width] to [B, dim]. Add it, or use selection='balanced'."
        )
    return run_over(trainer, module, module.features, loader, getattr(module, "inputs", None))


def run_over(
    trainer: Trainer,
    module: nn.Module,
    function: Callable[..., Tensor],
    loader: Iterable[Any],
    inputs: Callable[[Any], tuple[Tensor, ...]] | None = None,
) -> tuple[Tensor, Tensor]:
    """Run a function of the images over a loader, `module` in eval mode, without grad, in the trainer's precision.

    Args:
        trainer: As in `extract_features`.
        module: Whose mode matters to the function.
        function: Maps `[B, channels, height, width]` to `[B, dim]`.
        loader: As in `extract_features`.
        inputs: What the function is given of a dict batch, the image by default.

    Returns:
        The outputs and their indices, as `extract_features` returns them.
    """
    parts: list[tuple[Tensor, Tensor]] = []
    count, shared = 0, True
    with evaluating(module), trainer.precision_plugin.forward_context():
        for batch in loader:
            batch = trainer.strategy.batch_to_device(batch)  # with the batch transforms of datamodule or module
            shared = isinstance(batch, dict)
            image = batch["image"] if isinstance(batch, dict) else batch[0]
            index = batch["index"] if isinstance(batch, dict) else torch.arange(count, count + len(image))
            count += len(image)
            given = inputs(batch) if inputs is not None and shared else (image,)
            parts.append((index.cpu(), function(*given).float().cpu()))
    index, outputs = gather_columns(trainer, parts, shared)
    return outputs, index
