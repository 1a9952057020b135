"""What a step of RebLL costs beside the same arithmetic by hand, and relabelling beside plain inference.

    python benchmarks/rebll/step.py [--quick] [--json FILE]

1. The second task of RebLL (AKD + OR) with ResNet-32, batch 64 and 40 exemplars, 3x32x32, against a loop written by
   hand with the same augmentation, one forward of images and exemplars, the teacher's forward, losses and Adam. Both
   sides run in processes of their own and take turns of a few steps each; the ratio is the median over the rounds.
2. Images a second of `OnlineRelabel` at the end of the task, against a loop of forward passes over the same images in
   batches of the same size, in turns in one process.
"""

import argparse
import json
import math
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

sys.path.insert(0, str(Path(__file__).parents[1]))

import step_overhead
import turns
from step_overhead import hand_augment

BATCH, CLASSES, MEMORY, DEPTH, EVAL_BATCH = 64, 10, 40, 32, 512
ALPHA, BETA, LAMBDA_AKD, LAMBDA_ER = 1.2, 0.7, 0.15, 0.30


# ---------------------------------------------------------------------- by hand


def hand_positive(z: Tensor, y: Tensor, exponent: float) -> Tensor:
    """L_cls and L_akd, mean over classes and batch."""
    log_p, log_not = F.logsigmoid(z), F.logsigmoid(-z)
    return -(y * (exponent * log_not).exp() * log_p + (1 - y) * log_not).mean()


def hand_negative(z: Tensor, y: Tensor, exponent: float) -> Tensor:
    """L_er, the same."""
    log_p, log_not = F.logsigmoid(z), F.logsigmoid(-z)
    return -(y * log_p + (1 - y) * (exponent * log_p).exp() * log_not).mean()


def by_hand(turn: turns.Turns, rounds: int, method: str) -> None:
    """The second task of a stream as one would write it without a library."""
    from lightning_cil.networks.resnet_cifar import CifarResNet

    torch.manual_seed(0)

    def network(outputs: int) -> nn.Module:
        return nn.Sequential(CifarResNet(DEPTH), nn.Linear(64, outputs)).to(memory_format=torch.channels_last)

    model, teacher = network(2 * CLASSES), network(CLASSES).eval().requires_grad_(False)
    steps = turn.needed(rounds)
    images = torch.randint(0, 256, (steps * BATCH, 3, 32, 32), dtype=torch.uint8)
    targets = F.one_hot(torch.randint(CLASSES, (len(images),)), CLASSES).float()
    memory = torch.randint(0, 256, (MEMORY, 3, 32, 32), dtype=torch.uint8)
    memory_targets = F.one_hot(torch.randint(CLASSES, (MEMORY,)), CLASSES).float()
    decayed = [p for p in model.parameters() if p.ndim > 1]
    plain = [p for p in model.parameters() if p.ndim < 2]
    optimizer = torch.optim.Adam([{"params": decayed, "weight_decay": 1e-4}, {"params": plain}], lr=4e-5)
    g, h = ALPHA * math.log(2 * CLASSES), BETA * math.log(2 * CLASSES)
    order = torch.randperm(len(images))
    for step in range(steps):
        index = order[step * BATCH : (step + 1) * BATCH]
        rows = torch.randperm(MEMORY)
        x, y = hand_augment(images[index]), targets[index]
        z = model(torch.cat([x, hand_augment(memory[rows])]))
        with torch.no_grad():
            q = teacher(x).sigmoid()
        loss = LAMBDA_AKD * hand_positive(z[:BATCH, CLASSES:], y, g)
        loss = loss + (1 - LAMBDA_AKD) * hand_positive(z[:BATCH, :CLASSES], q, g)
        loss = loss + LAMBDA_ER * hand_negative(z[BATCH:, :CLASSES], memory_targets[rows], h)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        turn.tick()


# ---------------------------------------------------------------------- ours


def fit(images: list[int], callbacks: list[Any], memory: int) -> None:
    """RebLL on a stream of two tasks of random images."""
    from lightning.pytorch import seed_everything
    from synthetic import RandomTasks

    from lightning_cil import IncrementalTrainer
    from lightning_cil.callbacks import ReplayBuffer
    from lightning_cil.data.images import ImageSplit, TensorImages
    from lightning_cil.methods import RebLL

    class MultiLabelTasks(RandomTasks):
        label_kind = "multi"

        def load_split(self, train: bool) -> ImageSplit:
            split: Any = super().load_split(train)
            labels = F.one_hot(split.targets, self.num_classes).bool()
            return TensorImages(split.images, labels, self.num_classes, "random")

    seed_everything(0, verbose=False)
    data = MultiLabelTasks(classes=CLASSES, images=images, test_images=CLASSES, batch_size=BATCH)
    module = RebLL(backbone=f"resnet{DEPTH}", epochs=1)
    with tempfile.TemporaryDirectory() as root:
        trainer = IncrementalTrainer(
            accelerator="cpu",
            default_root_dir=root,
            callbacks=[ReplayBuffer(total=memory, repeat=False, allow_missing_classes=True), *callbacks],
            evaluate_before_training=False,
        )
        trainer.fit(module, data)


def ours(turn: turns.Turns, rounds: int, method: str) -> None:
    """The same as a stream of two tasks; turns begin in the second."""
    from lightning.pytorch import Callback

    class Tick(Callback):
        def on_train_batch_end(self, trainer: Any, *args: Any) -> None:
            if trainer.global_step > first_steps:
                turn.tick()

    first_steps = 2
    fit([first_steps * BATCH, turn.needed(rounds) * BATCH], [Tick()], MEMORY)


# ---------------------------------------------------------------------- relabelling


def relabelling(exemplars: int, rounds: int) -> dict[str, Any]:
    """Images a second of `OnlineRelabel` and of plain inference, medians, and the median ratio of their times."""
    from lightning_cil.callbacks import OnlineRelabel
    from lightning_cil.callbacks.replay import ReplayBuffer

    blocks: dict[str, list[turns.Block]] = {"ours": [], "plain": []}

    class Measured(OnlineRelabel):
        def on_task_end(self, trainer: Any, module: Any, task: Any) -> None:
            memory = next(c for c in trainer.callbacks if isinstance(c, ReplayBuffer))
            before = {name: memory.store.column(name).clone() for name in ("target", "known")}
            if task.is_first:
                super().on_task_end(trainer, module, task)
                return
            images = trainer.datamodule.stored_images(memory.store.column("index").unique())
            network = module.backbone, module.head
            for _ in range(rounds):
                for name, column in before.items():
                    memory.store.column(name).copy_(column)
                with _clocked(blocks["ours"]):
                    super().on_task_end(trainer, module, task)
                for part in network:
                    part.eval()
                with _clocked(blocks["plain"]), torch.no_grad():
                    for batch in images.split(EVAL_BATCH):
                        network[1](network[0](trainer.datamodule.transform(batch)))

    fit([exemplars, exemplars], [Measured()], exemplars)
    return {
        "exemplars": exemplars,
        "wall": turns.ratio(blocks["ours"], blocks["plain"]),
        "cpu": turns.ratio(blocks["ours"], blocks["plain"], "cpu"),
        "images_per_second": {
            name: exemplars / statistics.median(b.wall for b in found) for name, found in blocks.items()
        },
    }


class _clocked:  # noqa: N801
    """Appends the block that it surrounds."""

    def __init__(self, blocks: list[turns.Block]) -> None:
        self.blocks = blocks

    def __enter__(self) -> None:
        self.start = time.perf_counter(), time.process_time()

    def __exit__(self, *error: object) -> None:
        self.blocks.append(turns.Block(time.perf_counter() - self.start[0], time.process_time() - self.start[1]))


# ---------------------------------------------------------------------- referee


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    """Run both and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer rounds")
    parser.add_argument("--smoke", action="store_true", help="no measurement: that it runs")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--child", nargs=5, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    step_overhead.SIDES |= {"rebll_hand": by_hand, "rebll_ours": ours}
    if options.child:
        side, method, *numbers = options.child
        with turns.quiet():
            step_overhead.child(side, method, *map(int, numbers))
        return {}
    if options.smoke:
        global BATCH, DEPTH, MEMORY
        BATCH, DEPTH, MEMORY = 10, 20, 10
    rounds = 2 if options.smoke else 9 if options.quick else 21
    size = {"steps": 1 if options.smoke else 3, "warmup": 1 if options.smoke else 3, "rounds": rounds}
    sides = ("rebll_ours", "rebll_hand")
    results: dict[str, Any] = {"machine": turns.machine(options.threads)}
    print(results["machine"], end="\n\n", flush=True)
    with turns.quiet():
        if options.smoke:
            results["step"] = step_overhead.in_process(sides, "RebLL", size)
        else:
            results["step"] = step_overhead.duel(sides, "RebLL", size, options.threads, program=__file__)
        results["relabelling"] = relabelling(20 if options.smoke else 2048, 2 if options.smoke else rounds)
    step, fill = results["step"], results["relabelling"]
    head = ["", "ours", "by hand", "ratio of wall time (quartiles)", "of processor time"]
    rates = [f"{fill['images_per_second'][name]:.0f} images/s" for name in ("ours", "plain")]
    rows = [
        ["step of RebLL", *(f"{ms:.1f} ms" for ms in step["milliseconds"]), step["wall"], step["cpu"]],
        [f"relabelling {fill['exemplars']} images", *rates, fill["wall"], fill["cpu"]],
    ]
    print(turns.table(head, rows))
    if options.json:
        options.json.write_text(json.dumps(results, indent=1, default=vars) + "\n")
    return results


if __name__ == "__main__":
    main()
