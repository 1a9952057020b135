"""ER on a GPU: images a second of a step of ours against a bare compiled loop and against the loader alone.

    python benchmarks/gpu.py [--quick] [--json FILE]

ResNet-18 with the CIFAR stem, bfloat16, batch 256 and as many exemplars, 3x32x32, channels-last. The bare loop has the
data on the GPU, the same augmentation there and `torch.compile`; ours runs with the backbone as it is and compiled.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import turns
from torch import nn
from torch.nn import functional as F

BATCH, CLASSES, MEMORY = 256, 50, 2000


def bare(steps: int, compiled: bool) -> float:
    """Images a second of a loop by hand."""
    from synthetic import MEAN, STD, random_images

    from lightning_cil.data.augment import BatchAugment
    from lightning_cil.networks import Backbone

    body: Any = Backbone("resnet18", cifar_stem=True).build()
    model = nn.Sequential(body, nn.Linear(512, 2 * CLASSES)).cuda().to(memory_format=torch.channels_last)
    forward: Callable[..., Any] = torch.compile(model) if compiled else model
    augment = BatchAugment(MEAN, STD, 4, True, 63 / 255)
    images, memory = random_images(50_000, (3, 32, 32)).cuda(), random_images(MEMORY, (3, 32, 32)).cuda()
    targets, old = torch.randint(CLASSES, 2 * CLASSES, (50_000,)).cuda(), torch.randint(0, CLASSES, (MEMORY,)).cuda()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4)

    def step() -> None:
        index = torch.randint(0, 50_000, (BATCH,), device="cuda")
        rows = torch.randint(0, MEMORY, (BATCH,), device="cuda")
        key = torch.randint(0, 2**62, (2 * BATCH,), device="cuda")
        x = augment(torch.cat([images[index], memory[rows]]), key)
        y = torch.cat([targets[index], old[rows]])
        with torch.autocast("cuda", torch.bfloat16):
            loss = F.cross_entropy(forward(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return _rate(step, steps)


def _rate(step: Callable[[], None], steps: int) -> float:
    rates = []
    for _ in range(20):
        step()
    for _ in range(5):
        torch.cuda.synchronize()
        begin = time.perf_counter()
        for _ in range(steps):
            step()
        torch.cuda.synchronize()
        rates.append(2 * BATCH * steps / (time.perf_counter() - begin))
    return statistics.median(rates)


def ours(steps: int, compiled: bool) -> float:
    """Images a second, exemplars included, of the second task of a stream."""
    from lightning.pytorch import Callback, seed_everything
    from synthetic import RandomTasks

    from lightning_cil import IncrementalTrainer
    from lightning_cil.callbacks import ReplayBuffer
    from lightning_cil.methods import ER
    from lightning_cil.networks import Backbone

    class Clock(Callback):
        marks: list[float]

        def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, index: int) -> None:
            if module.task.index == 1 and index >= 20 and (index - 20) % steps == 0:
                torch.cuda.synchronize()
                self.marks.append(time.perf_counter())

    seed_everything(0, verbose=False)
    clock = Clock()
    clock.marks = []
    data = RandomTasks(classes=CLASSES, images=[8 * BATCH, (21 + 5 * steps) * BATCH], test_images=100, batch_size=BATCH)
    backbone = Backbone("resnet18", cifar_stem=True, compile=compiled)
    module = ER(backbone=backbone, epochs=1, optimizer=lambda p: torch.optim.SGD(p, lr=0.01, momentum=0.9))
    with tempfile.TemporaryDirectory() as root:
        trainer = IncrementalTrainer(
            accelerator="gpu",
            devices=1,
            precision="bf16-mixed",
            default_root_dir=root,
            callbacks=[ReplayBuffer(total=MEMORY), clock],
            evaluate_before_training=False,
        )
        trainer.fit(module, data)
    spans = [b - a for a, b in zip(clock.marks, clock.marks[1:], strict=False)]
    return 2 * BATCH * steps / statistics.median(spans)


def loader(steps: int) -> float:
    """Images a second of loading, copying and augmenting alone, without exemplars."""
    from synthetic import RandomTasks

    data = RandomTasks(classes=CLASSES, images=[(steps + 20) * BATCH], test_images=100, batch_size=BATCH)
    data.setup("fit")
    batches = data.train_dataloader()
    batches.pin_memory = True
    device, rates = torch.device("cuda"), []
    for _ in range(5):
        torch.cuda.synchronize()
        begin, count = time.perf_counter(), 0
        for batch in batches:
            count += len(batch["image"])
            data.on_after_batch_transfer({k: v.to(device, non_blocking=True) for k, v in batch.items()}, 0)
        torch.cuda.synchronize()
        rates.append(count / (time.perf_counter() - begin))
    return statistics.median(rates)


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    """Run everything and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer steps")
    parser.add_argument("--smoke", action="store_true", help="no measurement: that it runs")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(arguments)
    if not torch.cuda.is_available():
        print("no CUDA device: nothing is measured")
        return {}
    torch.set_float32_matmul_precision("high")
    torch.backends.cudnn.benchmark = True
    steps = 5 if options.smoke else 50 if options.quick else 200
    results: dict[str, Any] = {"machine": f"{turns.machine(torch.get_num_threads())}; {torch.cuda.get_device_name()}"}
    with turns.quiet():
        results["images_per_second"] = {
            "loop by hand": bare(steps, compiled=False),
            "loop by hand, compiled": bare(steps, compiled=True),
            "ours": ours(steps, compiled=False),
            "ours, `Backbone(compile=True)`": ours(steps, compiled=True),
            "our loader and augmentation alone": loader(steps),
        }
    print(results["machine"], end="\n\n")
    best = results["images_per_second"]["loop by hand, compiled"]
    rows = [[n, f"{r:,.0f}", f"{r / best:.2f}"] for n, r in results["images_per_second"].items()]
    print(turns.table(["ER, ResNet-18, bf16", "images/s", "of the compiled loop"], rows))
    if options.json:
        options.json.write_text(json.dumps(results, indent=1) + "\n")
    return results


if __name__ == "__main__":
    main()
