"""`RunLogger`: Lightning's CSV logger, which a resumed run can go on with."""

import csv
import warnings
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.loggers.csv_logs import ExperimentWriter


class RunLogger(CSVLogger):
    """CSV logs in `root/version_<n>/metrics.csv`.

    The stock logger deletes the file of a folder that it opens again. After `resume` this one keeps the rows up to
    the checkpoint, so that the file of a resumed run reads as that of an uninterrupted one.

    Args:
        root: Where run folders are made.
    """

    METRICS_FILE = "metrics.csv"

    def __init__(self, root: str | Path) -> None:
        super().__init__(str(root), name=None)
        self._resume_step: int | None = None

    def resume(self, version: int, step: int) -> None:
        """Go on in a run folder from a checkpoint.

        Args:
            version: Number of the run folder.
            step: Global step of the checkpoint; rows after it are dropped.
        """
        self._version = version
        self._resume_step = step

    def choose_folder(self) -> None:
        """Fix the number of the run folder now, before this logger is copied to other processes."""
        self._version = self.version

    @property
    def experiment(self) -> Any:
        """The writer; on other ranks than 0 a dummy."""
        if self._experiment is not None or self._resume_step is None:
            return super().experiment
        path = Path(self.log_dir) / self.METRICS_FILE
        rows: list[dict[str, str]] = []
        if path.is_file():
            with path.open(newline="", encoding="utf-8") as file:
                rows = [row for row in csv.DictReader(file) if int(row["step"]) <= self._resume_step]
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Experiment logs directory .* exists and is not empty")
            writer = super().experiment
        if rows and isinstance(writer, ExperimentWriter):  # rank 0
            with path.open("w", newline="", encoding="utf-8") as file:
                table = csv.DictWriter(file, fieldnames=list(rows[0]))
                table.writeheader()
                table.writerows(rows)
            writer.metrics_keys = list(rows[0])
        return writer
