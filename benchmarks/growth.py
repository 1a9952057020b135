"""What grows with the stream and what does not.

    python benchmarks/growth.py [--quick] [--json FILE]

1. 100 tasks of one class, ER, digits network: a step of the last task against the same step of the second (the first
   with exemplars), in turns; seconds between tasks and bytes of checkpoints, first ten tasks against last ten.
2. 1,000 classes in 10 tasks, 64-pixel images on disk: images a second of the training loader (decoding in two worker
   processes, batched augmentation) against torchvision's ImageFolder, DataLoader and transforms, an epoch each in turn;
   memory of the process after each task of a stream.
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import turns
from PIL import Image

BATCH, MEMORY = 32, 200


# ---------------------------------------------------------------------- many tasks


def stream(turn: turns.Turns, rounds: int, tasks: int, measured: int) -> dict[str, Any]:
    """A stream of tasks of one class up to the measured one, which is long enough for all turns."""
    from lightning.pytorch import Callback, seed_everything
    from synthetic import RandomTasks

    from lightning_cil import IncrementalTrainer
    from lightning_cil.callbacks import ReplayBuffer
    from lightning_cil.methods import ER
    from lightning_cil.networks import Backbone

    class Clock(Callback):
        def __init__(self) -> None:
            self.last = 0.0
            self.gaps: list[float] = []

        def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, index: int) -> None:
            if index == 0 and self.last:
                self.gaps.append(time.perf_counter() - self.last)

        def on_train_batch_end(self, trainer: Any, module: Any, *args: Any) -> None:
            self.last = time.perf_counter()
            if module.task.index == measured:
                turn.tick()

    seed_everything(0, verbose=False)
    images = [BATCH] * tasks
    images[measured] = turn.needed(rounds) * BATCH
    data = RandomTasks(classes=1, images=images, test_images=8, batch_size=BATCH, shape=(1, 8, 8), augmented=False)
    clock = Clock()
    module = ER(backbone=Backbone("small_cnn", in_channels=1), epochs=1, optimizer=_sgd)
    with tempfile.TemporaryDirectory() as root:
        trainer = IncrementalTrainer(
            accelerator="cpu",
            default_root_dir=root,
            callbacks=[ReplayBuffer(total=MEMORY), clock],
            evaluate_before_training=False,
            stop_after_task=measured,
        )
        trainer.fit(module, data)
        folder = Path(trainer.log_dir or "")
        sizes = [(folder / "checkpoints" / f"task_{k}.ckpt").stat().st_size for k in range(measured + 1)]
        times = json.loads((folder / "results.json").read_text())["seconds"]
    evaluations = [t["seconds"] for t in times if t["stage"] == "evaluation"]
    pure = [g - e for g, e in zip(clock.gaps, evaluations, strict=False)]
    return {"gaps": clock.gaps, "pure_gaps": pure, "evaluations": evaluations, "checkpoints": sizes}


def _sgd(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.01, momentum=0.9)


def many_tasks(tasks: int, size: dict[str, int], smoke: bool) -> dict[str, Any]:
    """The second task against the last."""
    places = [1, tasks - 1]
    if smoke:
        turned = [turns.Turns(size["steps"], size["warmup"]) for _ in places]
        facts = [stream(t, size["rounds"], tasks, k) for t, k in zip(turned, places, strict=True)]
        blocks = [t.blocks for t in turned]
    else:
        numbers = [str(size[n]) for n in ("steps", "warmup", "rounds")]
        command = [sys.executable, __file__, "--child", str(tasks)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        sides = [turns.Contestant(f"task {k}", [*command, str(k), *numbers], environment) for k in places]
        try:
            for s in sides:
                s.read()
            for number in range(size["rounds"]):
                for s in sides if number % 2 else reversed(sides):
                    s.turn()
            for s in sides:
                s.finish()
                s.close()
        except BaseException:
            for s in sides:
                s.kill()
            raise
        facts, blocks = [s.facts for s in sides], [s.blocks for s in sides]
    last = facts[1]
    few = max(1, min(10, tasks // 3))
    ends = {
        name: [statistics.median(last[name][1 : 1 + few]), statistics.median(last[name][-few:])]
        for name in ("pure_gaps", "evaluations", "checkpoints")
    }
    return {
        "ratio": turns.ratio(blocks[1], blocks[0]),
        "cpu": turns.ratio(blocks[1], blocks[0], "cpu"),
        "milliseconds": [1e3 * turns.seconds(b, size["steps"]) for b in blocks],
        "first_and_last": ends,
        "checkpoints": last["checkpoints"],
    }


# ---------------------------------------------------------------------- many classes


def write_folder(root: Path, classes: int, train: int, test: int, side: int) -> None:
    """JPEG files of coloured noise in the layout of `ImageFolder`."""
    generator = np.random.default_rng(0)
    for split, count in (("train", train), ("test", test)):
        for label in range(classes):
            folder = root / split / f"class_{label:04d}"
            folder.mkdir(parents=True)
            for i in range(count):
                coarse = generator.integers(0, 256, (8, 8, 3), dtype=np.uint8)
                Image.fromarray(coarse).resize((side, side), Image.Resampling.BILINEAR).save(folder / f"{i}.jpg")


def loaders(root: Path, tasks: int, workers: int, batch: int) -> tuple[Any, Any]:
    """Ours for the first task, and torchvision's for the same files."""
    from torch.utils.data import DataLoader, Subset
    from torchvision.datasets import ImageFolder
    from torchvision.transforms import v2

    from lightning_cil.data import ImageFolderTasks

    data = ImageFolderTasks(
        root,
        image_size=64,
        in_memory=False,
        num_tasks=tasks,
        class_order="sorted",
        batch_size=batch,
        num_workers=workers,
    )
    data.setup("fit")
    ours = data.train_dataloader()

    def theirs_transform() -> Any:
        return v2.Compose(
            [
                v2.Resize(64),
                v2.CenterCrop(64),
                v2.RandomCrop(64, padding=8),
                v2.RandomHorizontalFlip(),
                v2.PILToTensor(),
                v2.ToDtype(torch.float32, scale=True),
                v2.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
            ]
        )

    folder = ImageFolder(str(root / "train"), theirs_transform())
    subset = Subset(folder, data.train_indices([0]).tolist())
    theirs = DataLoader(
        subset, batch, shuffle=True, drop_last=True, num_workers=workers, persistent_workers=workers > 0
    )
    return (lambda: (data.on_after_batch_transfer(b, 0)["image"] for b in ours)), (lambda: (x for x, _ in theirs))


def rate(batches: Iterable[torch.Tensor]) -> float:
    """Images a second of an epoch."""
    begin, count = time.perf_counter(), 0
    for image in batches:
        count += len(image)
    return count / (time.perf_counter() - begin)


def many_classes(root: Path, tasks: int, workers: int, rounds: int, batch: int) -> dict[str, Any]:
    """Loader rates in turn, then the memory of a stream."""
    from lightning.pytorch import Callback, seed_everything

    from lightning_cil import IncrementalTrainer
    from lightning_cil.callbacks import ReplayBuffer
    from lightning_cil.data import ImageFolderTasks
    from lightning_cil.methods import ER
    from lightning_cil.networks import Backbone

    ours, theirs = loaders(root, tasks, workers, batch)
    rates: list[tuple[float, float]] = []
    for number in range(rounds + 1):
        pair = (rate(ours()), rate(theirs())) if number % 2 else (rate(theirs()), rate(ours()))[::-1]
        if number:  # the first epoch starts the workers
            rates.append(pair)
    del ours, theirs

    class Memory(Callback):
        def __init__(self) -> None:
            self.bytes: list[int] = []

        def on_task_scored(self, *args: Any) -> None:
            self.bytes.append(turns.memory("VmRSS"))

    seed_everything(0, verbose=False)
    memory = Memory()
    data = ImageFolderTasks(root, image_size=64, in_memory=False, num_tasks=tasks, num_workers=workers)
    with tempfile.TemporaryDirectory() as out:
        trainer = IncrementalTrainer(
            accelerator="cpu",
            default_root_dir=out,
            callbacks=[ReplayBuffer(total=2000, storage="index"), memory],
            evaluate_before_training=False,
        )
        trainer.fit(ER(backbone=Backbone("small_cnn", in_channels=3), epochs=1, optimizer=_sgd), data)
    return {
        "ours": statistics.median(a for a, _ in rates),
        "theirs": statistics.median(b for _, b in rates),
        "ratio": statistics.median(a / b for a, b in rates),
        "memory": memory.bytes,
        "images": len(data.split("train")),
    }


# ---------------------------------------------------------------------- all


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    """Run everything and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="30 tasks; 200 classes")
    parser.add_argument("--smoke", action="store_true", help="no measurement: that it runs")
    parser.add_argument("--only", choices=["tasks", "classes"])
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--child", nargs=5, type=int, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    if options.child:
        tasks, measured, steps, warmup, rounds = options.child
        turn = turns.child_turns(steps, warmup)
        with turns.quiet():
            facts = stream(turn, rounds, tasks, measured)
        turn.send(facts)
        return {}
    results: dict[str, Any] = {"machine": turns.machine(1)}
    print(results["machine"], end="\n\n", flush=True)
    if options.only != "classes":
        tasks = 4 if options.smoke else 30 if options.quick else 100
        size = {"steps": 2, "warmup": 2, "rounds": 2} if options.smoke else {"steps": 30, "warmup": 30, "rounds": 15}
        with turns.quiet():
            r = results["tasks"] = many_tasks(tasks, size, options.smoke)
        ends = r["first_and_last"]
        rows = [
            ["ms of a step, second and last task", *(f"{ms:.2f}" for ms in r["milliseconds"]), r["ratio"]],
            ["the same, processor time", "", "", r["cpu"]],
            ["s between tasks without evaluation", *(f"{s:.3f}" for s in ends["pure_gaps"]), _over(ends["pure_gaps"])],
            ["s of an evaluation on all tasks", *(f"{s:.3f}" for s in ends["evaluations"]), _over(ends["evaluations"])],
            ["bytes of a checkpoint", *(f"{b:,.0f}" for b in ends["checkpoints"]), _over(ends["checkpoints"])],
        ]
        print(
            turns.table([f"{tasks} tasks of one class", "first", "last", "last / first"], rows), end="\n\n", flush=True
        )
    if options.only != "tasks":
        classes, train, rounds = (8, 4, 1) if options.smoke else (200, 20, 4) if options.quick else (1000, 20, 6)
        with tempfile.TemporaryDirectory() as scratch:
            root = Path(scratch) / "images"
            shape = (2, options.workers, rounds, 4) if options.smoke else (10, options.workers, rounds, 64)
            write_folder(root, classes, train, 1, 16 if options.smoke else 64)
            with turns.quiet():
                r = results["classes"] = many_classes(root, *shape)
        rows = [
            ["images on disk", f"{r['images']:,} in {classes:,} classes"],
            ["images/s, our loader", f"{r['ours']:.0f}"],
            ["images/s, torchvision", f"{r['theirs']:.0f}"],
            ["ratio", f"{r['ratio']:.2f}"],
            ["MB of the process after the first task", f"{r['memory'][0] / 1e6:.0f}"],
            ["MB of the process after the last task", f"{r['memory'][-1] / 1e6:.0f}"],
        ]
        print(turns.table(["many classes", ""], rows))
    if options.json:
        options.json.write_text(json.dumps(results, indent=1, default=vars) + "\n")
    return results


def _over(pair: list[float]) -> str:
    return f"{pair[1] / pair[0]:.2f}"


if __name__ == "__main__":
    main()
