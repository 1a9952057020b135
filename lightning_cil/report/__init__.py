"""Tables, figures and one HTML page from any number of runs.

Figures need matplotlib: `pip install lightning-cil[report]`. Loads neither Lightning nor torchvision.
"""

from lightning_cil.report.collection import Runs, load_runs
from lightning_cil.report.groups import Group, Stat
from lightning_cil.report.runs import Run
from lightning_cil.report.tables import Table

__all__ = ["Group", "Run", "Runs", "Stat", "Table", "load_runs"]
