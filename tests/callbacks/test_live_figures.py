"""Figures reach every kind of logger after each task, and no step draws."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import pytest
from lightning.pytorch.loggers import CSVLogger, Logger, MLFlowLogger

from lightning_cil.callbacks import FeatureRecords
from lightning_cil.callbacks.live_figures import LiveFigures, log_image, takes_images
from lightning_cil.data import SplitDigits
from lightning_cil.methods import FineTune
from tests.streams import fit, make


class Silent(Logger):
    """Takes numbers only."""

    name = version = "silent"

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        pass

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        pass


class WithLogImage(Silent):
    """Takes images as Weights & Biases does."""

    def __init__(self) -> None:
        self.images: list[tuple[str, np.ndarray, int]] = []

    def log_image(self, key: str, images: list[Any], step: int | None = None, **kwargs: Any) -> None:
        self.images += [(key, image, step) for image in images]


class WithWriter(Silent):
    """Takes images as TensorBoard does."""

    def __init__(self) -> None:
        self.images: list[tuple[str, np.ndarray, int]] = []

    @property
    def experiment(self) -> Any:
        return SimpleNamespace(add_image=self._add)

    def _add(self, tag: str, image: np.ndarray, step: int, dataformats: str) -> None:
        assert dataformats == "HWC"
        self.images.append((tag, image, step))


def test_every_task_is_drawn_once_for_every_logger(tmp_path: Path) -> None:
    first, second = WithLogImage(), WithWriter()
    loggers = [CSVLogger(tmp_path), first, second]
    trainer = fit(
        tmp_path, make(FineTune), SplitDigits(num_tasks=2), [LiveFigures(dpi=40), FeatureRecords(40)], logger=loggers
    )
    names = [name for name, _, _ in first.images]
    assert names == [name for name, _, _ in second.images]
    steps = [step for _, _, step in first.images]
    assert steps == sorted(steps)
    assert len(set(steps)) == 2  # one for each task
    assert steps[-1] == trainer.global_step
    last = {name for name, _, step in first.images if step == trainer.global_step}
    expected = {
        "figures/curves_class_il",
        "figures/forgetting_class_il",
        "figures/matrix_01_class_il",
        "figures/memory",
    }
    assert expected | {"figures/confusion_01", "figures/features_01"} <= last
    for _, image, _ in first.images:
        assert image.dtype == np.uint8
        assert image.ndim == 3
        assert image.shape[2] == 3
        assert image.std() > 5  # something is drawn


def test_no_logger_that_takes_images_is_said(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match=r"no logger that takes images \(loggers: CSVLogger\)"):
        fit(tmp_path, make(FineTune), SplitDigits(num_tasks=2), [LiveFigures()], logger=CSVLogger(tmp_path))


class FakeMLFlow(MLFlowLogger):
    """The real class without a server."""

    calls: ClassVar[list[Any]] = []
    run_id = "run"

    def __init__(self) -> None:
        pass

    @property
    def experiment(self) -> Any:
        return SimpleNamespace(log_image=lambda *args, **kwargs: self.calls.append((args, kwargs)))


def test_mlflow_gets_its_own_call() -> None:
    logger, image = FakeMLFlow(), np.zeros((4, 4, 3), dtype=np.uint8)
    assert takes_images(logger)
    log_image(logger, "figures/memory", image, 7)
    assert logger.calls == [(("run", image), {"key": "figures_memory", "step": 7})]


def test_unreadable_images_are_refused() -> None:
    with pytest.raises(ValueError, match="dpi=5"):
        LiveFigures(dpi=5)
