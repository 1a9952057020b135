"""The papers that `report --paper` knows: their cells are commands that run, and examples/<paper>/README.md lists them.

`python tests/test_papers.py --write` writes the lists. Each pair of a method's and a protocol's config learns two tasks
of tiny data in the official formats; cells that differ from them in options only are parsed.
"""

import dataclasses
import sys
from functools import cache
from pathlib import Path

import pytest
import torch
import yaml

from lightning_cil.data.splits import near_equal_sizes, parse_protocol, task_sizes
from lightning_cil.report.command import make_parser
from lightning_cil.report.groups import Group
from lightning_cil.report.paper import Cell, Paper, paper_names, read_paper
from lightning_cil.report.runs import read_run
from lightning_cil.schedulers import FractionStepLR
from tests.test_configs import TINY_DATA, shortened

ROOT = Path(__file__).resolve().parents[1]
PAPERS = {name: read_paper(name) for name in paper_names()}

Case = tuple[Paper, Cell]

NEARLY_EQUAL = ("AricLike", "ImageNetESC")
"""Data sets that divide their classes into tasks of nearly equal size."""

TINY_METHOD = {
    "NFLPlus": ["--model.init_args.holdout", 0.5],  # one of the two images of a class
    "KRT": ["--model.init_args.width", 32],
    "L2P": ["--model.init_args.backbone", "test_vit", "--data.init_args.image_size", 160],
}
"""Class of a method -> options with which it runs on tiny images."""


def readme(paper: Paper) -> str:
    """The list of a paper's cells."""
    lines = [
        f"# {paper.title}: every cell of its tables",
        "",
        f"Source: <{paper.source}>. Written by `python tests/test_papers.py --write`.",
        "",
        "Each command is one cell with one seed: add `--seed_everything 0`, `1` and so on. Two configs combine:",
        "`methods/` says how to learn, `protocols/` what. The options after them are the cell's own. Then",
        "",
        "```sh",
        f"lightning-cil report RUN… --paper {paper.name}",
        "```",
        "",
        "puts the printed numbers beside yours and draws the paper's figures.",
    ]
    for table in paper.tables.values():
        lines += ["", f"## {table.name.replace('table', 'Table ')}: {table.title}", ""]
        lines += [f"- {warning}" for warning in table.warnings]
        for protocol in table.protocols:
            lines += ["", f"### {protocol.title}", "", "```sh"]
            for cell in table.of(protocol):
                lines += [f"# {cell.name}", cell.command(paper.examples)]
            lines.append("```")
    return "\n".join(lines) + "\n"


def chosen() -> tuple[list[Case], list[Case]]:
    """Cells to run, one for each pair of configs, and those to parse: options that none of these has."""
    cells = list(dict.fromkeys((paper.name, repr(c)) for paper in PAPERS.values() for _, c in paper.cells))
    by_repr = {(paper.name, repr(c)): (paper, c) for paper in PAPERS.values() for _, c in paper.cells}
    runs: dict[tuple[str, ...], Case] = {}
    seen: set[str] = set()
    for fresh in (True, False):  # pairs take options that no other pair has, as long as there are any
        for key in cells:
            paper, cell = by_repr[key]
            pair, options = tuple(cell.configs(paper.examples)), f"{cell.config} {sorted(cell.options.items())}"
            if pair not in runs and (options not in seen or not fresh):
                runs[pair] = paper, cell
                seen.add(options)
    parsed: dict[str, Case] = {}
    for key in cells:
        paper, cell = by_repr[key]
        options = f"{cell.config} {sorted(cell.options.items())}"
        if options not in seen:
            parsed.setdefault(options, (paper, cell))
    return list(runs.values()), list(parsed.values())


RUN, PARSED = chosen()


def case_id(case: Case) -> str:
    paper, cell = case
    return f"{paper.name}-{cell.scenario}-{cell.config}-{cell.protocol.config}-{cell.memory or 0}"


def config(path: str) -> dict:
    return yaml.safe_load((ROOT / path).read_text(encoding="utf-8"))


def sizes(arguments: dict, num_classes: int, nearly: bool = False) -> list[int]:
    """Classes of each task, as a protocol's config describes them; `nearly`: of data that divide unevenly."""
    if nearly:
        return near_equal_sizes(num_classes, arguments["num_tasks"])
    if "protocol" in arguments:
        base, increment = parse_protocol(arguments["protocol"])
        return task_sizes(num_classes, base=base, increment=increment)
    names = ("num_tasks", "base", "increment", "sizes")
    return task_sizes(num_classes, **{name: arguments[name] for name in names if name in arguments})


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """`tiny(data)`: options that read tiny data of a data set's class, written once."""

    @cache
    def options(data: str) -> list[str]:
        found = TINY_DATA[data](tmp_path_factory.mktemp(data))
        return [str(part) for key, value in found.items() for part in (f"--data.{key}", value)]

    return options


@pytest.mark.parametrize("paper", PAPERS.values(), ids=lambda p: p.name)
def test_readme_lists_every_cell(paper):
    written = (ROOT / paper.examples / "README.md").read_text(encoding="utf-8")
    assert written == readme(paper), "Run `python tests/test_papers.py --write`"


@pytest.mark.parametrize("paper", PAPERS.values(), ids=lambda p: p.name)
def test_users_are_told_of_it(paper):
    assert f"ours: {', '.join(PAPERS)}, or" in " ".join(make_parser().format_help().split())
    assert f"{paper.examples}/README.md" in (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("paper", PAPERS.values(), ids=lambda p: p.name)
def test_cells_are_what_their_configs_say(paper):
    for _, cell in paper.cells:
        method, protocol = map(config, cell.configs(paper.examples))
        assert method["model"]["class_path"].rpartition(".")[2] == cell.method
        assert protocol["data"]["class_path"].rpartition(".")[2] == cell.protocol.data
        arguments, known = protocol["data"]["init_args"], cell.protocol.task_sizes
        nearly = cell.protocol.data in NEARLY_EQUAL
        assert sizes(arguments, sum(known) or cell.protocol.num_tasks, nearly) == list(
            known or [1] * cell.protocol.num_tasks
        )
        callbacks = method.get("trainer", {}).get("callbacks", [])
        memories = [c["class_path"] == "ReplayBuffer" for c in callbacks]
        assert any(memories) == bool(cell.memory or any("ReplayBuffer" in name for name in cell.where))
        assert not cell.memory or memories[-1], f"{cell.config}: the last callback is the memory"
        assert cell.options.get(cell.memory_option) == cell.memory


@pytest.mark.parametrize(
    ("name", "prefix", "milestones"),
    [
        ("finetune", "", [80, 120]),
        ("icarl", "", [80, 120]),
        ("lwf", "", [60, 120, 180, 220]),
        ("lwf_task_il", "", [60, 120, 180, 220]),
        ("icarl", "first_", [60, 120, 170]),
        ("lwf", "first_", [60, 120, 160]),
        ("lwf_task_il", "first_", [60, 120, 160]),
        ("coil", "", [80, 120]),
        ("memo", "", [80, 120, 150]),
        ("memo", "first_", [60, 120, 170]),
        ("joint", "", [60, 120, 170]),
        ("derpp", "", [35, 45]),
    ],
)
def test_schedules_of_nfls_baselines_are_their_authors(name, prefix, milestones):
    arguments = config(f"examples/nfl/methods/{name}.yaml")["model"]["init_args"]
    epochs, schedule = arguments[f"{prefix}epochs"], arguments[f"{prefix}lr_scheduler"]["init_args"]
    rate = FractionStepLR(torch.optim.SGD([torch.zeros(1)], lr=1.0), **schedule).multiplier
    assert [e for e in range(1, epochs) if rate(e, epochs) < rate(e - 1, epochs)] == milestones


@pytest.mark.parametrize("case", RUN, ids=case_id)
def test_a_pair_of_configs_runs(case, tiny, run_cli, tmp_path):
    paper, cell = case
    arguments = [*cell.arguments(paper.examples), *tiny(cell.protocol.data)]
    arguments += shortened(tuple(ROOT / path for path in cell.configs(paper.examples)))
    arguments += TINY_METHOD.get(cell.method, [])
    arguments += ["--trainer.default_root_dir", tmp_path / "runs", "--trainer.accelerator", "cpu"]
    arguments += ["--trainer.devices", 1, "--trainer.enable_progress_bar", "false"]
    if cell.method != "MLJoint":  # it learns in the last task
        arguments += ["--stop_after_task", 1]
    code, _, stderr = run_cli(*arguments)
    assert code == 0, stderr
    (file,) = (tmp_path / "runs").glob("*/results.json")
    run = read_run(file)
    assert run.tasks_done == (run.num_tasks if cell.method == "MLJoint" else 2)
    if not run.is_multilabel:  # a known task leaves fewer classes to choose from
        scenarios = [[v for row in run.matrix(s) for v in row if v is not None] for s in ("task_il", "class_il")]
        assert all(known >= unknown for known, unknown in zip(*scenarios, strict=True))
    if cell.protocol.data == "SplitImageNet":  # tiny data of 10 classes
        assert run.task_sizes == (1,) * len(cell.protocol.task_sizes)
        cell = dataclasses.replace(cell, protocol=dataclasses.replace(cell.protocol, task_sizes=run.task_sizes))
    assert cell.fits(Group(cell.label, (run,)))
    if cell.protocol.data == "SplitCIFAR100":  # tiny data have two images of a class
        kept = min(cell.memory or 0, 2 * sum(run.task_sizes[:2]))
        assert run.bytes["images"] == kept * 3 * 32 * 32
    else:
        assert bool(run.bytes["images"]) == bool(cell.memory or cell.method == "TOPIC")  # a sample for each node


@pytest.mark.parametrize("case", PARSED, ids=case_id)
def test_other_options_are_taken(case, run_cli):
    paper, cell = case
    code, stdout, stderr = run_cli(*cell.arguments(paper.examples), "--print_config")
    assert code == 0, stderr
    found = yaml.safe_load(stdout)
    assert found["model"]["init_args"].get("scenario", cell.scenario) == cell.scenario
    if cell.memory:
        assert found["trainer"]["callbacks"][-1]["init_args"][cell.budget] == cell.memory


if __name__ == "__main__" and "--write" in sys.argv:
    for paper in PAPERS.values():
        (ROOT / paper.examples / "README.md").write_text(readme(paper), encoding="utf-8")
