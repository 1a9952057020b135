"""`RunLogger`: Lightning's CSV logger, which a resumed run can go on with."""

import csv
import io
import warnings
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger
from lightning.pytorch.loggers.csv_logs import ExperimentWriter

from lightning_cil._compat import version_of
from lightning_cil.callbacks.results import write_atomically


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
        self._rows = 0
        self._resumed = False
        self._made = False

    def resume(self, folder: Path, rows: int) -> None:
        """Go on in a run folder from a checkpoint.

        Args:
            folder: The run folder, of any name.
            rows: Rows that were logged when the checkpoint was written; later ones are dropped.
        """
        self._save_dir = self._root_dir = str(folder.parent)
        self._version = version_of(folder.name)
        self._rows = rows
        self._resumed = True

    def position(self) -> dict[str, Any]:
        """Write what was logged to the file; name of the run folder, number of rows. Empty where neither is known."""
        if self._experiment is not None:
            self.save()
        elif not self._made and not self._resumed:
            return {}
        return {"folder": Path(self.log_dir).name, "rows": self._rows}

    def save(self) -> None:
        """Write what was logged to the file."""
        if self._experiment is not None:
            self._rows += len(self._experiment.metrics)
        super().save()

    def choose_folder(self) -> None:
        """Make the run folder now: before this logger is copied to other processes, and before another run takes it."""
        while not self._resumed and not self._made:
            self._version = self.version
            try:
                Path(self.log_dir).mkdir(parents=True)
            except FileExistsError:  # another run was quicker
                self._version = None
            else:
                self._made = True

    @property
    def experiment(self) -> Any:
        """The writer; on other ranks than 0 a dummy."""
        if self._experiment is not None or not self._resumed:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", message="Experiment logs directory .* exists and is not empty")
                return super().experiment
        path = Path(self.log_dir) / self.METRICS_FILE
        rows: list[dict[str, str]] = []
        if path.is_file():
            with path.open(newline="", encoding="utf-8") as file:
                rows = list(csv.DictReader(file))[: self._rows]
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Experiment logs directory .* exists and is not empty")
            writer = super().experiment
        if rows and isinstance(writer, ExperimentWriter):  # rank 0
            names = [name for name in rows[0] if any(row[name] for row in rows)]  # a dropped row may have brought one
            text = io.StringIO(newline="")
            table = csv.DictWriter(text, fieldnames=names, extrasaction="ignore")
            table.writeheader()
            table.writerows(rows)
            write_atomically(path, text.getvalue())
            writer.metrics_keys = names
        self._rows = len(rows)
        return writer


def has_folder(logger: Logger | None) -> bool:
    """Whether a logger has a folder of its own for each run, which is then the run folder."""
    return isinstance(logger, CSVLogger | TensorBoardLogger)
