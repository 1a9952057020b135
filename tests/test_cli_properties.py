"""Configs with mistakes drawn at random: each builds what it says, or ends with one message that names the place."""

import copy
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lightning_cil.cli import StreamCLI
from tests.conftest import RunCli
from tests.test_bad_input import LONGEST, NOISE

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
METHODS = sorted(EXAMPLES.glob("*/methods/*.yaml"))
ALONE = [p for p in sorted(EXAMPLES.glob("*.yaml")) if p.name != "own_method.yaml"]
DATA = {"class_path": "SplitDigits", "init_args": {"num_tasks": 5, "class_order": "seed:1993", "val_fraction": 0.1}}
TRAINER = {"accelerator": "cpu", "devices": 1, "max_steps": -1, "log_every_n_steps": 10, "precision": "32-true"}

Path_ = tuple[Any, ...]


def whole(path: Path) -> dict[str, Any]:
    """A shipped config that can be built without any data on disk, and with a small network."""
    config = yaml.safe_load(path.read_text(encoding="utf-8"))
    config["data"] = copy.deepcopy(DATA)
    config["trainer"] = {**TRAINER, **config.get("trainer", {})}
    config.setdefault("seed_everything", 0)
    config["model"]["init_args"]["backbone"] = {"name": "small_cnn", "in_channels": 1}
    return config


CONFIGS = [whole(p) for p in (*ALONE, *METHODS)]


def places(value: Any, path: Path_ = ()) -> Iterator[Path_]:
    """Every place of a nested config."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, child in items:
        yield (*path, key)
        yield from places(child, (*path, key))


GARBAGE = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(10**30), 10**30),
    st.sampled_from([-1, 0, 10**9, 1e308, -0.5, float("inf"), float("nan"), 1e-320, "1e-3x", "", " ", "null"]),
    st.sampled_from(["os.path", "torch.nn.Linear", "nomod.Foo", "ERR", "Ér", "Split", ".", "a..b", "torch."]),
    st.text(st.characters(exclude_categories=("Cs", "Cc")), max_size=12),
    st.lists(st.one_of(st.integers(-3, 12), st.text("abc", max_size=3)), max_size=4),
    st.dictionaries(st.text("abcdef_", min_size=1, max_size=5), st.one_of(st.integers(), st.none()), max_size=2),
    st.recursive(st.integers(0, 3), lambda x: st.lists(x, max_size=2) | st.dictionaries(st.just("a"), x), max_leaves=6),
)


@st.composite
def mistakes(draw: st.DrawFn) -> tuple[dict[str, Any], list[Path_]]:
    """A shipped config with one to three mistakes, and where they are."""
    config = copy.deepcopy(draw(st.sampled_from(CONFIGS)))
    made: list[Path_] = []
    for _ in range(draw(st.integers(1, 3))):
        path = draw(st.sampled_from(list(places(config))))
        parent = config
        for key in path[:-1]:
            parent = parent[key]
        last = path[-1]
        kind = draw(st.sampled_from(["delete", "rename", "replace", "replace", "replace", "wrap", "add"]))
        if kind == "delete":
            del parent[last]
        elif kind == "rename" and isinstance(parent, dict) and isinstance(last, str):
            cut = draw(st.integers(0, len(last) - 1))
            parent[last[:cut] + last[cut + 1 :] + draw(st.sampled_from(["", "s", "_x"]))] = parent.pop(last)
        elif kind == "wrap":
            parent[last] = draw(st.sampled_from([[parent[last]], {"value": parent[last]}, str(parent[last])]))
        elif kind == "add" and isinstance(parent[last], dict):
            parent[last][draw(st.text("abcdefgh", min_size=1, max_size=6))] = draw(GARBAGE)
        else:
            parent[last] = draw(GARBAGE)
        made.append(path)
    return config, made


@pytest.fixture
def stopped(run_cli: RunCli, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The command line stops when everything is built; what was built is kept here."""
    built: list[Any] = []
    monkeypatch.setattr(StreamCLI, "_run_subcommand", lambda self, subcommand: built.append(self))
    return built


@pytest.mark.filterwarnings("ignore")
def test_a_config_with_mistakes_builds_or_ends_with_a_message(
    stopped: list[Any], run_cli: RunCli, tmp_path: Path
) -> None:
    file = tmp_path / "config.yaml"
    counts = {0: 0, 1: 0, 2: 0}

    @settings(max_examples=220, derandomize=True, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(mistakes())
    def check(drawn: tuple[dict[str, Any], list[Path_]]) -> None:
        config, made = drawn
        file.write_text(yaml.safe_dump(config, allow_unicode=True), encoding="utf-8")
        stopped.clear()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            code, _, err = run_cli("fit", "--config", file)
        counts[code] += 1
        if code == 0:
            assert isinstance(stopped[0].model, torch.nn.Module)
            return
        text = err[err.index("lightning-cil ") :]
        assert "Traceback" not in err
        assert [noise for noise in NOISE if noise in text and noise not in file.read_text()] == [], text
        assert len(text) <= LONGEST, text
        names = {str(part) for path in made for part in path} | {"trainer", "model", "data"}
        assert any(name in text for name in names), text

    check()
    assert sum(counts.values()) >= 200
    assert counts[0] > 5
    assert counts[1] > 5
    assert counts[2] > 50
