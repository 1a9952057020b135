"""What a run says of its data: every setting that changes what is trained or tested on, and no folder."""

import inspect
from pathlib import Path
from typing import Any

import pytest
import yaml

from lightning_cil import data
from lightning_cil.callbacks.run_config import ELSEWHERE, PLACES, data_settings
from lightning_cil.data import IncrementalDataModule, MultiLabelVOC, SplitDigits
from lightning_cil.report import load_runs
from tests.data import formats
from tests.report.hand_made import BASE, write_run
from tests.test_configs import TINY_DATA

CLASSES = [name for name in TINY_DATA if name != "SplitImageNet"]  # of a thousand classes; a file for each image


def built(name: str, root: Path, **options: Any) -> IncrementalDataModule:
    """A data set of tiny data, from the options that the command line gets."""
    found = {key: yaml.safe_load(v) if isinstance(v, str) else v for key, v in TINY_DATA[name](root).items()}
    tasks = {"num_tasks": 2} if name in ("ImageFolderTasks", "ManifestTasks") else {}
    module: IncrementalDataModule = getattr(data, name)(**{**found, **tasks, **options})
    return module


@pytest.mark.parametrize("name", CLASSES)
def test_every_argument_is_recorded_under_its_name(name: str, tmp_path: Path) -> None:
    module = built(name, tmp_path, batch_size=7)
    found = data_settings(module)
    wanted = set(inspect.signature(type(module)).parameters) - {*ELSEWHERE, *PLACES}
    assert set(found) == wanted
    assert found["batch_size"] == 7
    assert str(tmp_path) not in str(found)


def test_a_data_set_of_ones_own_is_recorded_with_its_own_arguments() -> None:
    class Sharper(SplitDigits):
        def __init__(self, sharpness: float = 2.0, **others: Any) -> None:
            super().__init__(**others)

    assert data_settings(Sharper(batch_size=8))["sharpness"] == 2.0
    assert data_settings(Sharper(0.5, batch_size=8)) == {**data_settings(SplitDigits(batch_size=8)), "sharpness": 0.5}


@pytest.mark.parametrize(
    ("name", "value"), [("image_size", 24), ("cutout", 0.0), ("randaugment", False), ("classes", ["cat", "dog", "cow"])]
)
def test_runs_that_differ_in_one_setting_of_their_data_are_not_averaged(tmp_path: Path, name: str, value: Any) -> None:
    formats.write_voc(tmp_path / "voc")
    for number, changed in enumerate(({}, {}, {name: value})):
        options = {"image_size": 16, "num_workers": number, "sizes": [1, 2] if "classes" in changed else [10, 10]}
        module = MultiLabelVOC(tmp_path / "voc", **{**options, **changed})
        write_run(tmp_path / f"runs/{number}", seed=number, config={**BASE["config"], "data": data_settings(module)})
    groups = load_runs(tmp_path / "runs").groups
    assert sorted(len(group.runs) for group in groups) == [1, 2]
    assert all(f"{name}=" in group.label for group in groups)
