"""What a step of ours costs beside the same arithmetic without us, where the time goes, and the gap between tasks.

    python benchmarks/step_overhead.py [--quick] [--json FILE]

1. FineTune, ER and LwF with ResNet-32, batch 64, 3x32x32, against a loop written by hand with the same network, memory
   format, augmentation, replay draw and teacher.
2. A step of about 2 ms (digits network, batch 32) against the same module in a stock Lightning Trainer with a
   DataLoader of the same tensors.
3. Where the time of 1 goes.
4. The time between the last step of a task (stage) and the first of the next.

Both sides run in processes of their own and take turns of a few steps each; a ratio is the median over the rounds.
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import turns
from torch import Tensor, nn
from torch.nn import functional as F

BATCH, CLASSES, MEMORY, DEPTH = 64, 50, 2000, 32
METHODS = ("FineTune", "ER", "LwF")
TINY_BATCH, TINY_CLASSES = 32, 10


# ---------------------------------------------------------------------- by hand


def hand_augment(image: Tensor) -> Tensor:
    """Random crop of a padded image, flip, brightness, normalise: uint8 to float32, by torch's own generator."""
    batch, channels, height, width = image.shape
    u = torch.rand(4, batch, 1)
    rows = torch.arange(height) + (u[0] * 9).long()
    columns = torch.arange(width).expand(batch, width)
    columns = torch.where(u[2] < 0.5, width - 1 - columns, columns) + (u[1] * 9).long()
    image = F.pad(image, (4, 4, 4, 4))
    flat = (rows.unsqueeze(2) * (width + 8) + columns.unsqueeze(1)).view(batch, 1, height * width)
    image = image.flatten(2).gather(2, flat.expand(batch, channels, -1)).view(batch, channels, height, width)
    scaled = (image * (1 + 63 / 255 * (2 * u[3] - 1)).view(-1, 1, 1, 1)).clamp_(max=255)
    return scaled.mul_(_SCALE).sub_(_SHIFT)


_MEAN, _STD = torch.tensor((0.5071, 0.4867, 0.4408)), torch.tensor((0.2675, 0.2565, 0.2761))
_SCALE, _SHIFT = (1 / (255 * _STD)).view(-1, 1, 1), (_MEAN / _STD).view(-1, 1, 1)


def by_hand(turn: turns.Turns, rounds: int, method: str) -> None:
    """The second task of a stream as one would write it without a library."""
    from lightning_cil.networks.resnet_cifar import CifarResNet

    torch.manual_seed(0)

    def network(outputs: int) -> nn.Module:
        return nn.Sequential(CifarResNet(DEPTH), nn.Linear(64, outputs)).to(memory_format=torch.channels_last)

    model, teacher = network(2 * CLASSES), network(CLASSES).eval().requires_grad_(False)
    steps = turn.needed(rounds)
    images = torch.randint(0, 256, (steps * BATCH, 3, 32, 32), dtype=torch.uint8)
    targets = torch.randint(CLASSES, 2 * CLASSES, (len(images),))
    memory = torch.randint(0, 256, (MEMORY, 3, 32, 32), dtype=torch.uint8)
    memory_targets = torch.randint(0, CLASSES, (MEMORY,))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4)
    order = torch.randperm(len(images))
    for step in range(steps):
        index = order[step * BATCH : (step + 1) * BATCH]
        x, y = hand_augment(images[index]), targets[index]
        if method == "ER":
            rows = torch.randperm(MEMORY)[:BATCH]
            x, y = torch.cat([x, hand_augment(memory[rows])]), torch.cat([y, memory_targets[rows]])
        logits = model(x)
        if method == "LwF":
            with torch.no_grad():
                old = teacher(x)
            loss = F.cross_entropy(logits[:, CLASSES:], y - CLASSES)
            loss = loss + 4 * F.cross_entropy(logits[:, :CLASSES] / 2, (old / 2).softmax(1))
        else:
            loss = F.cross_entropy(logits, y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        turn.tick()


# ---------------------------------------------------------------------- ours


def ours(turn: turns.Turns, rounds: int, method: str, profile: "Profile | None" = None) -> None:
    """The same as a stream of two tasks; turns begin in the second."""
    from lightning.pytorch import Callback, seed_everything
    from synthetic import RandomTasks

    from lightning_cil import IncrementalTrainer, methods
    from lightning_cil.callbacks import ReplayBuffer

    class Tick(Callback):
        def on_train_batch_end(self, trainer: Any, *args: Any) -> None:
            if trainer.global_step > first_steps:
                turn.tick()

    seed_everything(0, verbose=False)
    first_steps = -(-MEMORY // BATCH) if method == "ER" and rounds > 2 else 2
    images = [first_steps * BATCH, turn.needed(rounds) * BATCH]
    data = RandomTasks(classes=CLASSES, images=images, test_images=CLASSES, batch_size=BATCH)
    module = getattr(methods, method)(backbone=f"resnet{DEPTH}", epochs=1, optimizer=_sgd)
    callbacks: list[Callback] = [ReplayBuffer(total=min(MEMORY, first_steps * BATCH), allow_missing_classes=True)]
    with tempfile.TemporaryDirectory() as root:
        trainer = IncrementalTrainer(
            accelerator="cpu",
            default_root_dir=root,
            callbacks=[*(callbacks if method == "ER" else []), Tick()],
            evaluate_before_training=False,
        )
        with profile.attached(trainer, module, data, first_steps) if profile else _nothing():
            trainer.fit(module, data)


def _sgd(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.01, momentum=0.9, weight_decay=5e-4)


@contextmanager
def _nothing() -> Iterator[None]:
    yield


# ---------------------------------------------------------------------- tiny step


def tiny_ours(turn: turns.Turns, rounds: int, method: str) -> None:
    """`FineTune` of ours on one task of digit-like images."""
    from lightning.pytorch import Callback, seed_everything
    from synthetic import RandomTasks

    from lightning_cil import IncrementalTrainer

    class Tick(Callback):
        def on_train_batch_end(self, *args: Any) -> None:
            turn.tick()

    seed_everything(0, verbose=False)
    images = turn.needed(rounds) * TINY_BATCH
    data = RandomTasks(
        classes=TINY_CLASSES, images=[images], test_images=20, batch_size=TINY_BATCH, shape=(1, 8, 8), augmented=False
    )
    with tempfile.TemporaryDirectory() as root:
        trainer = IncrementalTrainer(
            accelerator="cpu", default_root_dir=root, callbacks=[Tick()], evaluate_before_training=False
        )
        trainer.fit(_tiny_module(), data)


def tiny_stock(turn: turns.Turns, rounds: int, method: str) -> None:
    """The same module in a stock Trainer: a shuffled DataLoader of normalised images, CSV logs, a checkpoint."""
    from lightning.pytorch import Callback, Trainer, seed_everything
    from lightning.pytorch.loggers import CSVLogger
    from synthetic import MEAN, STD, random_images
    from torch.utils.data import DataLoader, Dataset

    class Tick(Callback):
        def on_train_batch_end(self, *args: Any) -> None:
            turn.tick()

    class Tensors(Dataset[dict[str, Tensor]]):
        def __init__(self, image: Tensor, target: Tensor) -> None:
            self.image, self.target = image, target

        def __len__(self) -> int:
            return len(self.target)

        def __getitem__(self, i: int) -> dict[str, Tensor]:
            return {"image": self.image[i], "target": self.target[i]}

    seed_everything(0, verbose=False)
    images = turn.needed(rounds) * TINY_BATCH
    image = (random_images(images, (1, 8, 8)).float() / 255 - MEAN[0]) / STD[0]
    module = _tiny_module()
    from lightning_cil.data.splits import make_tasks

    module.begin_stream(make_tasks([TINY_CLASSES]), 0)
    module.grow_to(module.tasks[0])
    loader = DataLoader(Tensors(image, torch.arange(images) % TINY_CLASSES), TINY_BATCH, shuffle=True, drop_last=True)
    with tempfile.TemporaryDirectory() as root:
        trainer = Trainer(
            accelerator="cpu",
            max_epochs=1,
            callbacks=[Tick()],
            logger=CSVLogger(root),
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.fit(module, loader)


def _tiny_module() -> Any:
    from lightning_cil.methods import FineTune
    from lightning_cil.networks import Backbone

    return FineTune(backbone=Backbone("small_cnn", in_channels=1), epochs=1, optimizer=_sgd)


# ---------------------------------------------------------------------- where the time goes


class Profile:
    """Seconds of each part of a step, nested parts not counted twice."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.steps = 0
        self._open: list[str] = []
        self._mark = 0.0

    def _charge(self) -> None:
        now = time.perf_counter()
        if self._open:
            name = self._open[-1]
            self.seconds[name] = self.seconds.get(name, 0.0) + now - self._mark
        self._mark = now

    def timed(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, its time booked under `name`."""

        def call(*args: Any, **kwargs: Any) -> Any:
            self._charge()
            self._open.append(name)
            try:
                return function(*args, **kwargs)
            finally:
                self._charge()
                self._open.pop()

        return call

    @contextmanager
    def attached(self, trainer: Any, module: Any, data: Any, first_steps: int) -> Iterator[None]:
        """Measure the steps of a trainer after the first ones."""
        from lightning.pytorch import Callback

        from lightning_cil.callbacks import ReplayBuffer, Teacher
        from lightning_cil.data.loader import StreamLoader

        profile = self

        class Clock(Callback):
            def on_train_batch_end(self, trainer: Any, *args: Any) -> None:
                profile._charge()
                if trainer.global_step == first_steps + 2:
                    profile.seconds.clear()
                    profile.steps = 0
                    profile._open = ["Lightning and the rest"]
                profile.steps += 1

            def on_train_end(self, trainer: Any, *args: Any) -> None:
                profile._charge()
                profile._open = []

        trainer.callbacks.append(Clock())

        def optimizer_step(epoch: int, index: int, optimizer: Any, closure: Any = None) -> None:
            inner = self.timed("Lightning and the rest", closure)
            self.timed("optimizer", type(module).optimizer_step)(module, epoch, index, optimizer, inner)

        def of_module(name: str, label: str) -> tuple[type, str, Callable[..., Any]]:
            function = getattr(type(module), name)
            timed = self.timed(label, function)  # the teacher is of the same class
            return type(module), name, lambda m, *a, **k: (timed if m is module else function)(m, *a, **k)

        module.optimizer_step = optimizer_step
        data.transform = self.timed("augmentation", data.transform)
        patches = [
            of_module("backward", "backward"),
            of_module("optimizer_zero_grad", "optimizer"),
            of_module("training_step", "loss"),
            of_module("forward", "forward"),
            (StreamLoader, "_batch", self.timed("loader", StreamLoader._batch)),
            (StreamLoader, "_load", self.timed("loader", StreamLoader._load)),
            (ReplayBuffer, "on_train_batch_start", self.timed("replay", ReplayBuffer.on_train_batch_start)),
            (Teacher, "on_train_batch_start", self.timed("teacher", Teacher.on_train_batch_start)),
        ]
        kept = [(owner, name, vars(owner).get(name)) for owner, name, _ in patches]
        for owner, name, function in patches:
            setattr(owner, name, lambda *a, __f=function, **k: __f(*a, **k))
        try:
            yield
        finally:
            for owner, name, function in kept:
                if function is None:
                    delattr(owner, name)
                else:
                    setattr(owner, name, function)


# ---------------------------------------------------------------------- gaps


def gaps(tasks: int, steps: int) -> dict[str, float]:
    """Median seconds between training steps at the end of a task and of a stage, ER with ResNet-32."""
    from lightning.pytorch import Callback, seed_everything
    from synthetic import RandomTasks

    from lightning_cil import IncrementalTrainer, Stage
    from lightning_cil.callbacks import ReplayBuffer, StagedFreezing
    from lightning_cil.methods import ER

    class Clock(Callback):
        def __init__(self) -> None:
            self.last = 0.0
            self.task = -1
            self.between: dict[str, list[float]] = {"task": [], "stage": []}

        def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, index: int) -> None:
            if index == 0 and self.last:
                kind = "stage" if module.task.index == self.task else "task"
                self.between[kind].append(time.perf_counter() - self.last)

        def on_train_batch_end(self, trainer: Any, module: Any, *args: Any) -> None:
            self.last, self.task = time.perf_counter(), module.task.index

    seed_everything(0, verbose=False)
    data = RandomTasks(classes=10, images=[steps * BATCH] * tasks, test_images=20 * steps, batch_size=BATCH)
    clock = Clock()
    stages = [Stage("body", 1), Stage("head", 1, ["head.*"])]
    replay = ReplayBuffer(total=min(MEMORY, steps * BATCH), allow_missing_classes=True)
    with tempfile.TemporaryDirectory() as root:
        trainer = IncrementalTrainer(
            accelerator="cpu",
            default_root_dir=root,
            callbacks=[clock, replay, StagedFreezing(stages)],
            evaluate_before_training=False,
        )
        trainer.fit(ER(backbone=f"resnet{DEPTH}", epochs=1, optimizer=_sgd), data)
        times = json.loads((Path(trainer.log_dir or "") / "results.json").read_text())["seconds"]
    phase = {n: [t["seconds"] for t in times if t["stage"] == n] for n in ("evaluation", "task end")}
    pure = [g - e for g, e in zip(clock.between["task"], phase["evaluation"], strict=False)]
    return {
        "between tasks, with evaluation": statistics.median(clock.between["task"]),
        "of it evaluation": statistics.median(phase["evaluation"]),
        "of it choosing exemplars": statistics.median(phase["task end"]),
        "between tasks, without evaluation": statistics.median(pure),
        "between stages": statistics.median(clock.between["stage"]),
    }


# ---------------------------------------------------------------------- referee

SIDES: dict[str, Callable[..., None]] = {
    "hand": by_hand,
    "ours": ours,
    "tiny_ours": tiny_ours,
    "tiny_stock": tiny_stock,
}


def child(side: str, method: str, steps: int, warmup: int, rounds: int) -> None:
    """A contestant's process."""
    turn = turns.child_turns(steps, warmup)
    base = turns.memory("VmRSS")
    turns.forget_peak()
    SIDES[side](turn, rounds, method)
    turn.send({"base": base, "peak": turns.memory("VmHWM")})


def duel(
    sides: tuple[str, str], method: str, size: dict[str, int], threads: int, program: str = __file__
) -> dict[str, Any]:
    """Both sides, of `program`'s children, in turns; ratios and memory."""
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    arguments = [str(size[n]) for n in ("steps", "warmup", "rounds")]
    command = [sys.executable, program, "--child"]
    contestants = [turns.Contestant(s, [*command, s, method, *arguments], environment) for s in sides]
    try:
        for c in contestants:
            c.read()
        for number in range(size["rounds"]):
            for c in contestants if number % 2 else reversed(contestants):
                c.turn()
        for c in contestants:
            c.finish()
            c.close()
    except BaseException:
        for c in contestants:
            c.kill()
        raise
    first, second = contestants
    return {
        "method": method,
        "wall": turns.ratio(first.blocks, second.blocks),
        "cpu": turns.ratio(first.blocks, second.blocks, "cpu"),
        "milliseconds": [1e3 * turns.seconds(c.blocks, size["steps"]) for c in contestants],
        "peak": [c.facts["peak"] for c in contestants],
        "base": [c.facts["base"] for c in contestants],
    }


def in_process(sides: tuple[str, str], method: str, size: dict[str, int]) -> dict[str, Any]:
    """Both sides one after the other in this process: for the smoke test, no measurement."""
    blocks = []
    for side in sides:
        turn = turns.Turns(size["steps"], size["warmup"])
        SIDES[side](turn, size["rounds"], method)
        blocks.append(turn.blocks)
    wall, cpu = turns.ratio(*blocks), turns.ratio(*blocks, kind="cpu")
    times = [1e3 * turns.seconds(b, size["steps"]) for b in blocks]
    return {"method": method, "wall": wall, "cpu": cpu, "milliseconds": times, "peak": [0, 0], "base": [0, 0]}


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    """Run everything and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer rounds")
    parser.add_argument("--smoke", action="store_true", help="no measurement: that it runs")
    parser.add_argument("--only", nargs="*", choices=["steps", "tiny", "profile", "gaps"])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--child", nargs=5, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    if options.child:
        side, method, *numbers = options.child
        with turns.quiet():
            child(side, method, *map(int, numbers))
        return {}
    if options.smoke:
        global BATCH, CLASSES, DEPTH
        BATCH, CLASSES, DEPTH = 10, 5, 20
    rounds = 2 if options.smoke else 9 if options.quick else 21
    size = {"steps": 1 if options.smoke else 3, "warmup": 1 if options.smoke else 3, "rounds": rounds}
    tiny = {"steps": 2 if options.smoke else 50, "warmup": 2 if options.smoke else 60, "rounds": rounds}
    parts = options.only or ["steps", "tiny", "profile", "gaps"]

    def compare(sides: tuple[str, str], method: str, size: dict[str, int]) -> dict[str, Any]:
        if options.smoke:
            return in_process(sides, method, size)
        return duel(sides, method, size, options.threads)

    results: dict[str, Any] = {"machine": turns.machine(options.threads)}
    print(results["machine"], end="\n\n", flush=True)
    with turns.quiet():
        if "steps" in parts:
            results["steps"] = [compare(("ours", "hand"), method, size) for method in METHODS]
        if "tiny" in parts:
            results["tiny"] = compare(("tiny_ours", "tiny_stock"), "FineTune", tiny)
        if "profile" in parts:
            results["profile"] = {method: _profiled(method, size) for method in METHODS}
        if "gaps" in parts:
            results["gaps"] = gaps(tasks=2, steps=1) if options.smoke else gaps(tasks=8, steps=4)
    _print(results)
    if options.json:
        options.json.write_text(json.dumps(results, indent=1, default=vars) + "\n")
    return results


def _profiled(method: str, size: dict[str, int]) -> dict[str, float]:
    profile = Profile()
    ours(turns.Turns(size["steps"], size["warmup"]), max(2, size["rounds"] // 3), method, profile)
    return {name: 1e3 * s / profile.steps for name, s in profile.seconds.items()}


def _print(results: dict[str, Any]) -> None:
    duels = [(r, "loop by hand") for r in results.get("steps", [])]
    duels += [(results["tiny"], "stock Lightning")] if "tiny" in results else []
    if duels:
        head = ["step", "against", "ms ours", "ms theirs", "ratio (quartiles)", "processor time", "peak MB", "theirs"]
        rows = [
            [
                r["method"] + (", tiny" if against == "stock Lightning" else ""),
                against,
                *(f"{ms:.2f}" for ms in r["milliseconds"]),
                r["wall"],
                r["cpu"],
                *(f"{p / 1e6:.0f} ({(p - b) / 1e6:+.0f})" for p, b in zip(r["peak"], r["base"], strict=True)),
            ]
            for r, against in duels
        ]
        print(turns.table(head, rows), end="\n\n")
    if "profile" in results:
        names = list(dict.fromkeys(n for p in results["profile"].values() for n in p))
        rows = [[m, *(f"{p.get(n, 0):.2f}" for n in names)] for m, p in results["profile"].items()]
        print(turns.table(["ms of a step", *names], rows), end="\n\n")
    if "gaps" in results:
        print(turns.table(["gap", "seconds"], [[n, f"{s:.3f}"] for n, s in results["gaps"].items()]), end="\n\n")


if __name__ == "__main__":
    main()
