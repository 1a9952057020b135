"""Fine-tuning and experience replay by us and by Avalanche, side by side: images a second, peak memory, accuracy.

    python benchmarks/peers.py PACK [--quick] [--python PYTHON_OF_AVALANCHE] [--json FILE]

PACK is a CIFAR-100 pack (`cifar100/unpack.py` says what is in it) or a folder that has `cifar-100-python`. The first
tasks of ten classes, ResNet-32 (the same code), the same epochs, batch, optimizer, class order, augmentation and
reservoir. Both sides run in processes of their own, an epoch at a time in turn. Without `--python`, an environment with
`avalanche-lib` 0.6.0 and this torch is made once in a temporary folder, with uv (several GB).
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
import turns

AVALANCHE = "avalanche-lib==0.6.0"
METHODS = ("FineTune", "ER")
NAMES = {"ours": "lightning-cil", "avalanche": "Avalanche 0.6.0"}


def ours(turn: turns.Turns, setting: dict[str, Any], data_root: Path) -> float:
    """Train the stream; the mean accuracy over the tasks learned."""
    from lightning.pytorch import Callback, seed_everything

    from lightning_cil import IncrementalTrainer, methods
    from lightning_cil.callbacks import ReplayBuffer
    from lightning_cil.data import SplitCIFAR100

    class Epochs(Callback):
        images = 0

        def on_train_epoch_start(self, *args: Any) -> None:
            turn.begin()
            self.images = 0

        def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, index: int) -> None:
            self.images += len(batch["image"]) + len(batch.get("replay_image", ()))

        def on_train_epoch_end(self, *args: Any) -> None:
            turn.end(images=self.images)

    seed_everything(setting["seed"], verbose=False)
    data = SplitCIFAR100(data_root, batch_size=setting["batch"])
    module = getattr(methods, setting["method"])(
        epochs=setting["epochs"],
        optimizer=lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, weight_decay=5e-4),
    )
    memory = [ReplayBuffer(total=setting["memory"])] if setting["method"] == "ER" else []
    with tempfile.TemporaryDirectory() as root:
        trainer = IncrementalTrainer(
            accelerator="cpu",
            default_root_dir=root,
            callbacks=[*memory, Epochs()],
            evaluate_before_training=False,
            stop_after_task=setting["tasks"] - 1,
        )
        trainer.fit(module, data)
        matrix = json.loads((Path(trainer.log_dir or "") / "results.json").read_text())["matrix"]["class_il"]
    row = matrix[setting["tasks"] - 1][: setting["tasks"]]
    return float(sum(row) / len(row))


def avalanche(turn: turns.Turns, setting: dict[str, Any], data_root: Path) -> float:
    """The same by Avalanche."""
    import pickle

    import peer_avalanche

    def split(name: str) -> tuple[Any, list[int]]:
        with (data_root / "cifar-100-python" / name).open("rb") as file:
            content = pickle.load(file)
        return content["data"].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1).copy(), list(content["fine_labels"])

    return peer_avalanche.run(turn, setting, split("train"), split("test"), setting["order"])


SIDES = {"ours": ours, "avalanche": avalanche}


def child(setting: dict[str, Any]) -> None:
    """A contestant's process."""
    turn = turns.child_turns(1, 1)
    torch.set_num_threads(setting["threads"])
    with turns.quiet():
        accuracy = SIDES[setting["side"]](turn, setting, Path(setting["data"]))
    turn.send({"accuracy": accuracy, "peak": turns.memory("VmHWM"), "epochs": len(turn.blocks)})


def compare(setting: dict[str, Any], pythons: dict[str, str]) -> dict[str, Any]:
    """Both sides in turns, an epoch each."""
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": str(setting["threads"]),
        "PYTHONPATH": str(Path(__file__).parents[1]),
    }
    sides = list(pythons)
    contestants = [
        turns.Contestant(side, [python, __file__, "--child", json.dumps({**setting, "side": side})], environment)
        for side, python in pythons.items()
    ]
    images: dict[str, list[float]] = {side: [] for side in sides}
    try:
        for number in range(setting["tasks"] * setting["epochs"]):
            for c in contestants:  # up to the start of the epoch: evaluation, exemplars, checkpoints
                if number:
                    c.go()
                c.read()
            for c in contestants if number % 2 else reversed(contestants):
                c.go()
                message = c.read()
                c.blocks.append(turns.Block(message["wall"], message["cpu"]))
                images[c.name].append(message["images"])
        for c in contestants:
            c.finish()
            c.close()
    except BaseException:
        for c in contestants:
            c.kill()
        raise
    rates = {c.name: [n / b.wall for n, b in zip(images[c.name], c.blocks, strict=True)] for c in contestants}
    ratios = sorted(a / b for a, b in zip(*(rates[s] for s in sides), strict=True))
    return {
        "method": setting["method"],
        "images_per_second": {c.name: sum(images[c.name]) / sum(b.wall for b in c.blocks) for c in contestants},
        "rate_ratio": ratios[len(ratios) // 2],
        "accuracy": {c.name: c.facts["accuracy"] for c in contestants},
        "peak": {c.name: c.facts["peak"] for c in contestants},
    }


def environment_of_avalanche() -> str:
    """Python of an environment with Avalanche, made where there is none."""
    folder = Path(tempfile.gettempdir()) / "lightning-cil-avalanche-0.6.0"
    python = folder / "bin" / "python"
    if not (folder / "complete").exists():
        uv = [sys.executable, "-m", "uv"]
        versions = [f"{name}=={turns.version(name)}" for name in ("torch", "torchvision")]
        subprocess.run([*uv, "venv", "--clear", "--python", sys.executable, str(folder)], check=True)
        subprocess.run([*uv, "pip", "install", "--python", str(python), AVALANCHE, *versions], check=True)
        (folder / "complete").touch()
    return str(python)


def data_folder(pack: Path, scratch: Path) -> Path:
    """A folder with `cifar-100-python`, unpacked if need be."""
    if (pack / "cifar-100-python").is_dir():
        return pack
    sys.path.insert(0, str(Path(__file__).parent / "cifar100"))
    import unpack

    unpack.main(pack, scratch)
    return scratch


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    """Run everything and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pack", type=Path, nargs="?")
    parser.add_argument("--quick", action="store_true", help="two tasks of two epochs")
    parser.add_argument("--smoke", action="store_true", help="no measurement: that our side runs")
    parser.add_argument("--python", help="the Python of an environment with avalanche-lib")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--epochs", type=int, help="of each task")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.child:
        child(json.loads(options.child))
        return {}
    if options.pack is None:
        parser.error("give the CIFAR-100 pack, or a folder with cifar-100-python")
    from lightning_cil.data.splits import class_order

    setting: dict[str, Any] = {
        "tasks": 2 if options.quick or options.smoke else 3,
        "epochs": options.epochs or (1 if options.smoke else 2 if options.quick else 3),
        "batch": 64,
        "memory": 2000 if not options.smoke else 100,
        "seed": options.seed,
        "threads": options.threads,
        "order": class_order("seed:1993", 100),
    }
    with tempfile.TemporaryDirectory() as scratch:
        setting["data"] = str(data_folder(options.pack, Path(scratch)).resolve())
        if options.smoke:
            turn = turns.Turns(1, 1)
            with turns.quiet():
                accuracy = ours(turn, {**setting, "method": "ER"}, Path(setting["data"]))
            return {"accuracy": accuracy, "epochs": len(turn.blocks)}
        pythons = {"ours": sys.executable, "avalanche": options.python or environment_of_avalanche()}
        results: dict[str, Any] = {"machine": turns.machine(options.threads), "setting": setting}
        print(results["machine"], end="\n\n", flush=True)
        results["methods"] = [compare({**setting, "method": method}, pythons) for method in METHODS]
    rows = [
        [
            r["method"],
            NAMES[side],
            f"{r['images_per_second'][side]:.0f}",
            f"{r['peak'][side] / 1e6:.0f}",
            f"{100 * r['accuracy'][side]:.1f}",
            f"{r['rate_ratio']:.2f}" if side == "ours" else "",
        ]
        for r in results["methods"]
        for side in pythons
    ]
    print(turns.table(["method", "by", "images/s", "peak MB", "accuracy %", "rate ratio"], rows))
    if options.json:
        options.json.write_text(json.dumps(results, indent=1) + "\n")
    return results


if __name__ == "__main__":
    main()
