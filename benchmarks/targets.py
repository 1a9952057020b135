"""Teacher targets recorded once a stage against computed in every step, in one run.

    python benchmarks/targets.py [--quick] [--json FILE]

A turn is the training of one later task, the recording included and the evaluation not: LwF with `Teacher(targets=…)`,
and a round of NFL with `targets: …`, where H is recorded once and H~ once. ResNet-32, batch 64, 3x32x32, without
checkpoints. What is saved depends on the epochs that a recording serves; they are in the table.
"""

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import turns

BATCH, CLASSES, DEPTH = 64, 10, 32
EPOCHS = {"LwF": 5, "NFL": 8}
"""Of a later task; NFL: 2 in each step, of which steps 3 to 5 use targets."""


def stream(turn: turns.Turns, rounds: int, method: str, targets: Any, batches: int, epochs: int) -> None:
    """Tasks of one turn each, after a first one."""
    from lightning.pytorch import Callback, seed_everything
    from synthetic import RandomTasks

    from lightning_cil import IncrementalTrainer, methods
    from lightning_cil.callbacks import Teacher

    class Clock(Callback):
        def on_task_start(self, trainer: Any, module: Any, task: Any) -> None:
            if not task.is_first:
                turn.begin()

        def on_task_end(self, trainer: Any, module: Any, task: Any) -> None:
            if not task.is_first:
                turn.end()

    seed_everything(0, verbose=False)
    data = RandomTasks(
        classes=CLASSES, images=[BATCH, *[batches * BATCH] * rounds], test_images=CLASSES, batch_size=BATCH
    )
    if method == "NFL":
        steps = {f"step{step}_epochs": epochs // 4 for step in (2, 3, 4, 5)}
        module = methods.NFL(backbone=f"resnet{DEPTH}", epochs=1, optimizer=_sgd, targets=targets, **steps)
        callbacks: list[Callback] = []
    else:
        module = methods.LwF(backbone=f"resnet{DEPTH}", epochs=epochs, optimizer=_sgd)
        callbacks = [Teacher(targets=targets)]
    with tempfile.TemporaryDirectory() as root:
        trainer = IncrementalTrainer(
            accelerator="cpu",
            default_root_dir=root,
            callbacks=[*callbacks, Clock()],
            enable_checkpointing=False,
            evaluate_before_training=False,
            limit_test_batches=1,
        )
        trainer.fit(module, data)


def _sgd(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.01, momentum=0.9, weight_decay=5e-4)


def duel(method: str, rounds: int, batches: int, epochs: int) -> list[list[turns.Block]]:
    """Blocks of `online` and of `recorded`, each in a process of its own."""
    command = [sys.executable, __file__, "--child", method]
    numbers = [str(rounds), str(batches), str(epochs)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    sides = [turns.Contestant(t, [*command, t, *numbers], environment) for t in ("online", "recorded")]
    try:
        for side in sides:
            side.read()
        for number in range(rounds):
            for side in sides if number % 2 else reversed(sides):
                side.turn()
                if number < rounds - 1:  # its evaluation, up to the next task
                    side.go()
                    side.read()
        for side in sides:
            side.go()
            side.close()
    except BaseException:
        for side in sides:
            side.kill()
        raise
    return [side.blocks for side in sides]


def in_process(method: str, rounds: int, batches: int, epochs: int) -> list[list[turns.Block]]:
    """Both one after the other: for the smoke test, no measurement."""
    sides = []
    for targets in ("online", "recorded"):
        turn = turns.Turns(1, 0)
        stream(turn, rounds, method, targets, batches, epochs)
        sides.append(turn.blocks)
    return sides


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    """Measure both methods and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer rounds")
    parser.add_argument("--smoke", action="store_true", help="no measurement: that it runs")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--child", nargs=5, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    if options.child:
        method, targets, *numbers = options.child
        with turns.quiet():
            rounds, batches, epochs = map(int, numbers)
            stream(turns.child_turns(1, 0), rounds, method, targets, batches, epochs)
        return {}
    global BATCH, DEPTH
    run: Callable[..., list[list[turns.Block]]] = duel
    rounds, batches, epochs = 5 if options.quick else 9, 4, EPOCHS
    if options.smoke:
        run, rounds, batches, BATCH, DEPTH = in_process, 1, 1, 10, 20
        epochs = {"LwF": 1, "NFL": 4}
    results: dict[str, Any] = {"machine": turns.machine(1), "methods": {}}
    print(results["machine"], end="\n\n", flush=True)
    for method, number in epochs.items():
        with turns.quiet():
            online, recorded = run(method, rounds, batches, number)
        results["methods"][method] = {
            "seconds": [turns.seconds(b, 1) for b in (online, recorded)],
            "ratio": turns.ratio(recorded, online),
            "cpu": turns.ratio(recorded, online, "cpu"),
        }
    rows = [
        [name, epochs[name], *(f"{s:.2f}" for s in r["seconds"]), r["ratio"], r["cpu"]]
        for name, r in results["methods"].items()
    ]
    head = ["method", "epochs", "s online", "s recorded", "recorded / online (quartiles)", "processor time"]
    print(turns.table(head, rows))
    if options.json:
        options.json.write_text(json.dumps(results, indent=1, default=vars) + "\n")
    return results


if __name__ == "__main__":
    main()
