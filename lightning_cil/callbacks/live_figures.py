"""`LiveFigures`: the report's figures of the running run, given to its loggers after every task."""

from pathlib import Path
from typing import Any

import numpy as np
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.loggers import CometLogger, Logger, MLFlowLogger
from lightning.pytorch.utilities import rank_zero_warn
from numpy.typing import NDArray

from lightning_cil.callbacks.base import StreamCallback
from lightning_cil.callbacks.results import collect_results
from lightning_cil.metrics.plots import require_matplotlib
from lightning_cil.report.figures import pictures
from lightning_cil.report.files import STYLE
from lightning_cil.report.groups import Group
from lightning_cil.report.runs import FILE, Run
from lightning_cil.types import Task


class LiveFigures(StreamCallback):
    """Draws a run's figures after every task and logs them as images. Nothing is drawn in a step.

    | hook | effect |
    |---|---|
    | `on_stream_start` | warns when no logger takes images |
    | `on_task_scored` | draws on rank 0; `figures/<name>` at the global step in every logger that takes images |

    Loggers that take images: TensorBoard, Weights & Biases, MLflow, Comet, and any other with
    `log_image(key, images, step)` or an `experiment.add_image`. Needs matplotlib.

    Args:
        dpi: Dots per inch of the images; figures are about 5 inches wide.

    Raises:
        ModuleNotFoundError: Without matplotlib.
        ValueError: For fewer than 20 dots per inch, where no text is left.
    """

    def __init__(self, dpi: int = 120) -> None:
        if dpi < 20:
            raise ValueError(f"`dpi={dpi}`: expected at least 20.")
        require_matplotlib()
        self.dpi = dpi

    def on_stream_start(self, trainer: Trainer, module: LightningModule, resumed: bool) -> None:
        """Look for a logger that takes images."""
        if not any(takes_images(logger) for logger in trainer.loggers):
            names = ", ".join(type(logger).__name__ for logger in trainer.loggers) or "none"
            rank_zero_warn(
                f"`LiveFigures` has no logger that takes images (loggers: {names}), so that its figures go nowhere. "
                "Add one, for example `lightning.pytorch.loggers.TensorBoardLogger`."
            )

    def on_task_scored(self, trainer: Trainer, module: LightningModule, task: Task) -> None:
        """Draw and log."""
        log_dir = trainer.log_dir  # a collective: not on rank 0 alone
        loggers = [logger for logger in trainer.loggers if takes_images(logger)]
        if not trainer.is_global_zero or not loggers or trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        import matplotlib

        run = Run(Path(log_dir or ".") / FILE, collect_results(trainer, module))
        style: Any = {**matplotlib.rcParamsDefault, **STYLE}
        with matplotlib.rc_context(style):
            for picture in pictures([Group(run.method, (run,))]):
                image = pixels(picture.draw(), self.dpi)
                for logger in loggers:
                    log_image(logger, f"figures/{picture.name}", image, trainer.global_step)


def pixels(figure: Any, dpi: int) -> NDArray[np.uint8]:
    """A matplotlib figure as an image.

    Returns:
        uint8 `[height, width, 3]`.
    """
    figure.set_dpi(dpi)
    figure.canvas.draw()
    image: NDArray[np.uint8] = np.asarray(figure.canvas.buffer_rgba())[..., :3].copy()
    return image


def takes_images(logger: Logger) -> bool:
    """Whether `log_image` knows how to give the logger an image."""
    if isinstance(logger, MLFlowLogger | CometLogger) or hasattr(logger, "log_image"):
        return True
    return hasattr(getattr(logger, "experiment", None), "add_image")


def log_image(logger: Logger, name: str, image: NDArray[np.uint8], step: int) -> None:
    """Give a logger an image.

    Args:
        logger: One that `takes_images`.
        name: With slashes between group and name.
        image: uint8 `[height, width, 3]`.
        step: Global step.
    """
    target: Any = logger
    if isinstance(logger, MLFlowLogger):
        logger.experiment.log_image(logger.run_id, image, key=name.replace("/", "_"), step=step)
    elif isinstance(logger, CometLogger):
        logger.experiment.log_image(image, name=name, step=step)
    elif hasattr(logger, "log_image"):
        target.log_image(key=name, images=[image], step=step)
    else:
        target.experiment.add_image(name, image, step, dataformats="HWC")
