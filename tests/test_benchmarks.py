"""Every script in `benchmarks/` runs; what it measures is not looked at here."""

import importlib
import json
import os
import sys
from pathlib import Path

import pytest
import torch
import yaml

from lightning_cil.losses import negative_decay_bce, positive_decay_bce
from tests.data.formats import write_cifar100

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def script(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    threads = torch.get_num_threads()

    def load(name):
        for key, module in list(sys.modules.items()):  # folders have scripts of the same name
            file = Path(getattr(module, "__file__", None) or "/")
            # Only these: the parser looks for the modules of all classes that were ever made, and warns of one gone.
            if file.parent.parent == BENCHMARKS and len(list(BENCHMARKS.glob(f"*/{file.name}"))) > 1:
                del sys.modules[key]
        return importlib.import_module(name)

    yield load
    torch.set_num_threads(threads)


def test_step_overhead(script, capsys, tmp_path):
    path = tmp_path / "out.json"
    results = script("step_overhead").main(["--smoke", "--json", str(path)])
    assert [r["method"] for r in results["steps"]] == ["FineTune", "ER", "LwF"]
    assert {"forward", "backward", "optimizer", "loader", "teacher"} <= set(results["profile"]["LwF"])
    assert results["profile"]["ER"]["replay"] > 0
    assert set(results["gaps"]) >= {"between tasks, without evaluation", "between stages"}
    assert json.loads(path.read_text())["machine"] == results["machine"]
    assert capsys.readouterr().out.count("| --- | --- |") >= 3


def test_step_of_rebll(script, monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(str(BENCHMARKS / "rebll"))
    path = tmp_path / "out.json"
    results = script("step").main(["--smoke", "--json", str(path)])
    assert min(results["step"]["milliseconds"]) > 0
    assert results["relabelling"]["exemplars"] == 20
    assert set(json.loads(path.read_text())["relabelling"]["images_per_second"]) == {"ours", "plain"}


def test_step_of_rebll_is_the_same_arithmetic(script, monkeypatch):
    """What is written by hand is what the package computes."""
    monkeypatch.syspath_prepend(str(BENCHMARKS / "rebll"))
    step = script("step")
    torch.manual_seed(0)
    z, y = torch.randn(5, 4), torch.rand(5, 4)
    torch.testing.assert_close(step.hand_positive(z, y, 2.0), positive_decay_bce(z, y, 2.0))
    torch.testing.assert_close(step.hand_negative(z, y, 1.5), negative_decay_bce(z, y, 1.5))


def test_runs_of_rebll_and_their_table(script, monkeypatch, tmp_path, capsys):
    monkeypatch.syspath_prepend(str(BENCHMARKS / "rebll"))
    run = script("run")
    for seed, last in ((0, 0.5), (1, 0.6)):
        scores = {"mAP_last": last, "mAP_avg": 0.7, "CF1": 0.4, "OF1": 0.3, "FPR": 0.02}
        results = {"tasks_done": 2, "task_sizes": [3, 3], "seconds": [{"seconds": 2.0}, {"seconds": 3.0}]}
        folder = tmp_path / "voc" / "AKD+OR" / str(seed) / "version_0"
        folder.mkdir(parents=True)
        multi = {**scores, "after_task": [None, {"0.5": {"FPR": 0.1}}]}
        (folder / "results.json").write_text(json.dumps({**results, "multilabel": multi}))
    unfinished = tmp_path / "voc" / "KD" / "0" / "version_0"
    unfinished.mkdir(parents=True)
    (unfinished / "results.json").write_text(json.dumps({"tasks_done": 1, "task_sizes": [3, 3]}))
    lines = list(run.table(tmp_path, "voc", [0, 1, 2]))
    assert lines[2:] == [
        "| AKD+OR | 0, 1 | 55.0 ± 7.1 | 70.0 ± 0.0 | 40.0 ± 0.0 | 30.0 ± 0.0 | 2.0 ± 0.0 | 10.0 ± 0.0 | 5 |"
    ]


def test_losses_on_fixed_features(script, monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS / "rebll"))
    loop = script("fixed_features")
    torch.manual_seed(0)
    z, y = torch.randn(5, 4), torch.rand(5, 4)
    torch.testing.assert_close(loop.decayed(z, y, 2.0).mean(), positive_decay_bce(z, y, 2.0))
    split = torch.randn(60, 6), torch.rand(60, 9) < 0.4
    found = {name: loop.stream(split, split, 0, 2, **loop.VARIANTS[name]) for name in loop.VARIANTS}
    assert len({tuple(scores.values()) for scores in found.values()}) == len(found)  # each changes something
    assert all(0 <= value <= 100 for scores in found.values() for value in scores.values())


@pytest.mark.parametrize("protocol", ["voc", "coco"])
def test_configs_of_rebll_are_taken(script, monkeypatch, protocol, run_cli):
    monkeypatch.syspath_prepend(str(BENCHMARKS / "rebll"))
    run = script("run")
    (method,) = [m for m, changes in run.METHODS.items() if len(changes) > 1]
    arguments = run.arguments(protocol, method, 3, Path("out"), Path("data"), Path("w.pt"))
    code, stdout, stderr = run_cli(*arguments, "--print_config")
    assert code == 0, stderr
    config = yaml.safe_load(stdout)
    assert (config["model"]["init_args"]["memory"], config["seed_everything"]) == ("replay_bce", 3)
    assert config["model"]["init_args"]["backbone"]["weights"] == "w.pt"


def test_runs_of_mcil_and_their_table(script, monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(str(BENCHMARKS / "mcil"))
    run = script("run")
    for method, seed, last, tasks in (
        ("Ours", 0, 0.5, [{"fused_fraction": 0.2}, {"fused_fraction": 0.4}]),
        ("Ours", 1, 0.6, [{"fused_fraction": 0.2}, {"fused_fraction": 0.4}]),
        ("LwF", 1, 0.4, [{}, {}]),
    ):
        scores = {"average_accuracy": 0.7, "last_accuracy": last, "forward": [1.0, 0.5], "tasks": tasks}
        scores |= {"M1": 30.0, "M1_frozen": None, "M2": 0.625}
        seconds = [{"seconds": 2.0}, {"seconds": 3.0}]
        results = {"tasks_done": 2, "task_sizes": [3, 3], "seconds": seconds, "multimodal": scores}
        folder = tmp_path / "digits" / method / str(seed) / "version_0"
        folder.mkdir(parents=True)
        (folder / "results.json").write_text(json.dumps(results))
    assert list(run.table(tmp_path, "digits", [0, 1, 2]))[2:] == [
        "| LwF | 1 | 70.0 | 40.0 | 75.0 | 30.0 | - | 0.62 | - | 5 |",
        "| Ours | 0, 1 | 70.0 ± 0.0 | 55.0 ± 7.1 | 75.0 ± 0.0 | 30.0 ± 0.0 | - | 0.62 ± 0.00 | 30.0 ± 0.0 | 5 |",
    ]


@pytest.mark.parametrize(("stream", "method"), [("digits", "Ours"), ("esc19_t6", "Partial fine-tuning")])
def test_configs_of_mcil_are_taken(script, monkeypatch, stream, method, run_cli):
    monkeypatch.syspath_prepend(str(BENCHMARKS / "mcil"))
    run = script("run")
    arguments = run.arguments(stream, method, 3, Path("out"), Path("packs"), Path("w"))
    code, stdout, stderr = run_cli(*arguments, "--print_config")
    assert code == 0, stderr
    config = yaml.safe_load(stdout)
    model, data = config["model"]["init_args"], config["data"]["init_args"]
    assert Path(model["towers"]["clip_weights"]) == Path("w/small.pt")
    assert (model["first_task_scope"], model["optimizer"]["init_args"]["lr"]) == ("all", 0.0005)
    assert data["sample_rate"] == 16_000
    assert data.get("num_tasks") == {"digits": None, "esc19_t6": 6}[stream]


def test_audio_cache(script, tmp_path):
    path = tmp_path / "out.json"
    results = script("audio_cache").main(["--smoke", "--json", str(path)])
    assert [r["label"] for r in results["cache"]] == ["1", "3"]
    assert len(results["templates"]) == 5
    tower = json.loads(path.read_text())["tower"]
    assert 0 < tower["cached"]["clips"] < tower["every step"]["clips"]


def test_contestants_take_turns_in_processes_of_their_own(script, tmp_path):
    """The second waits while the first runs, and a contestant whose referee is gone ends."""
    turns = script("turns")
    program = tmp_path / "contestant.py"
    program.write_text(
        f"import sys; sys.path.insert(0, {str(BENCHMARKS)!r}); import turns\n"
        "turn = turns.child_turns(steps=3, warmup=2)\n"
        "for step in range(turn.needed(2)):\n"
        "    open(sys.argv[1], 'a').write(sys.argv[2])\n"
        "    turn.tick()\n"
        "turn.send({'steps': step + 1})\n"
    )
    log = tmp_path / "log"
    pair = [turns.Contestant(n, [sys.executable, str(program), str(log), n], dict(os.environ)) for n in "ab"]
    for contestant in pair:
        assert contestant.read() == {"ready": True}
    for _ in range(2):
        for contestant in pair:
            assert contestant.turn().wall >= 0
    for contestant in pair:
        contestant.finish()
        contestant.close()
    assert sorted(log.read_text()[:4]) == list("aabb")
    assert log.read_text()[4:] == "aaabbb" * 2
    assert pair[0].facts == {"steps": 8}
    orphan = turns.Contestant("c", [sys.executable, str(program), str(log), "c"], dict(os.environ))
    orphan.read()
    orphan.close()
    assert log.read_text().count("c") == 2


def test_ratio_is_the_median_over_rounds(script):
    turns = script("turns")
    ours, theirs = ([turns.Block(w, 1.0) for w in walls] for walls in ([2, 30, 3, 4, 5], [2, 3, 3, 2, 4]))
    assert str(turns.ratio(ours, theirs)) == "1.250 (1.000 to 2.000)"
    assert turns.ratio(ours, theirs, "cpu").median == 1


def test_growth(script, capsys):
    results = script("growth").main(["--smoke", "--workers", "0"])
    assert len(results["tasks"]["checkpoints"]) == 4
    assert len(results["classes"]["memory"]) == 2
    assert results["classes"]["ours"] > 0
    assert capsys.readouterr().out.count("| --- | --- |") >= 2


def test_replay(script):
    results = script("replay").main(["--smoke"])
    assert [(r["rule"], r["stored"]) for r in results["rules"]] == [
        ("reservoir", 200),
        ("balanced", 200),
        ("herding", 200),
    ]
    assert all(r["checkpoint_bytes"] >= r["raw_bytes"] for r in results["rules"])


def test_herding(script, capsys):
    results = script("herding").main(["--smoke"])
    assert [(name, r["same"]) for name, r in results["rules"].items()] == [
        ("PyCIL's form", True),
        ("one candidate at a time", True),
    ]
    assert "| --- | --- |" in capsys.readouterr().out


def test_targets(script, tmp_path):
    path = tmp_path / "out.json"
    results = script("targets").main(["--smoke", "--json", str(path)])
    assert all(min(r["seconds"]) > 0 for r in results["methods"].values())
    assert list(json.loads(path.read_text())["methods"]) == ["LwF", "NFL"]


def test_peers_runs_our_side(script, tmp_path):
    write_cifar100(tmp_path)
    results = script("peers").main([str(tmp_path), "--smoke"])
    assert 0 <= results["accuracy"] <= 1
    assert results["epochs"] == 2


def test_gpu_measures_or_says_that_there_is_none(script, capsys):
    results = script("gpu").main(["--smoke"])
    if not torch.cuda.is_available():
        assert capsys.readouterr().out == "no CUDA device: nothing is measured\n"
    else:
        assert min(results["images_per_second"].values()) > 0


COMMANDS = """
import json, pathlib
from lightning_cil.__main__ import main
for command in json.loads(pathlib.Path("commands.json").read_text()):
    assert main(command) == 0, command
"""


def test_cells_of_nfl_s_benchmark_are_commands(script, runs, monkeypatch, tmp_path):
    """Every method's file is there; one cell runs with the options of all cells of the ablation."""
    monkeypatch.syspath_prepend(str(BENCHMARKS / "nfl"))
    cells, table = script("run"), script("table")
    assert all((cells.EXAMPLES / f"{method}.yaml").exists() for method, _ in cells.CELLS.values())
    assert cells.main([str(tmp_path), "--data", str(tmp_path), "--dry_run"]) == 0
    lines = [cells.command(name, 0, tmp_path, tmp_path, ablation=False) for name in cells.CELLS]
    commands = [[*line[3:], "--print_config"] for line in lines]
    write_cifar100(tmp_path / "data")
    every = [option for method, options in cells.ABLATION.values() if method == cells.NFL for option in options]
    line = cells.command("NFL", 0, tmp_path, tmp_path / "data", ablation=False)
    assert line[1:4] == ["-m", "lightning_cil", "fit"]
    tiny = ["--trainer.limit_train_batches=1", "--trainer.limit_test_batches=1", "--stop_after_task=0"]
    commands.append([*line[3:-2], *every, *tiny])
    (tmp_path / "commands.json").write_text(json.dumps([[str(word) for word in command] for command in commands]))
    (tmp_path / "commands.py").write_text(COMMANDS)
    code = runs(None, tmp_path, script=str(tmp_path / "commands.py"))
    assert code == 0, (tmp_path / "output.txt").read_text()
    assert table.finished(tmp_path / "cells" / "NFL", tasks=1)[0]["method"] == "NFL"
    assert table.cells(tmp_path) == []  # not over


def test_digits_of_nfl_s_benchmark(script, monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS / "nfl"))
    digits = script("digits")
    methods = {name: make() for name, make in digits.CELLS.items()}
    assert {type(method).__name__ for method in methods.values()} == {"LwF", "NFL"}
    found = digits.scores(digits.CELLS["NFL, without step 3"], 0, limit_train_batches=1, stop_after_task=1)
    assert 0 <= found[0] <= found[2] <= 100
