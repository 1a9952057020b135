"""The paper's methods and ablations on small real streams: every seed and method, one after the other, and their table.

    python benchmarks/mcil/run.py STREAM OUT --packs PACKS --weights FOLDER [--seeds 0 1 2] [--methods LwF Ours …]
    python benchmarks/mcil/run.py STREAM OUT --table

STREAM is `esc19_t3`, `esc19_t6` (folders `ESC-50` and `imagenet_esc` of PACKS) or `digits` (`fsdd`); FOLDER has what
`pretrain.py` wrote: `small.pt`, `audio_esc.pt` and `audio_digits.pt`, of which a stream takes the sounds of the other
one. A run that is already in OUT is not repeated; one that was cut off starts anew. `--table` prints what has finished.
"""

import argparse
import shutil
import statistics
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from runs import finished, spread

EXAMPLES = Path(__file__).parents[2] / "examples" / "mcil"

ESC = [
    "--data.image_size=32",
    "--data.sample_rate=16000",
    "--data.share_pictures=true",
    "--data.pair_by=clips",
    "--data.batch_size=16",
]
STREAMS: dict[str, tuple[list[str], int]] = {
    "esc19_t3": ([f"--config={EXAMPLES}/protocols/imagenet_esc19_t3.yaml", *ESC], 20),
    "esc19_t6": ([f"--config={EXAMPLES}/protocols/imagenet_esc19_t6.yaml", *ESC], 20),
    "digits": (
        [
            "--data=SpokenDigits",
            "--data.sizes=[4,3,3]",
            "--data.sample_rate=16000",
            "--data.test_takes=[0,1]",
            "--data.max_pairs=20",
            "--data.batch_size=16",
        ],
        15,
    ),
}
"""Options of the data, and the epochs of a task, for every method the same."""

TRAINING = ["--model.optimizer=torch.optim.AdamW", "--model.optimizer.lr=0.0005", "--model.optimizer.weight_decay=0.0"]
TRAINING += ["--model.lr_scheduler=lightning_cil.schedulers.FractionCosineLR", "--model.first_task_scope=all"]
DIVERSE = "--model.prompts.sample=2"
FUSION = "--model.fusion.threshold=quantile:0.3"
ONE = ["--data.sizes=null", "--data.num_tasks=1"]

METHODS: dict[str, tuple[str, list[str]]] = {
    "Zero-shot": ("zero_shot", []),
    "Partial fine-tuning": ("partial_finetune", TRAINING),
    "LwF": ("lwf", TRAINING),
    "iCaRL": ("icarl", TRAINING),
    "TOPIC": ("topic", TRAINING),
    "MoE-CLIP": ("moe_clip", TRAINING),
    "Ours": ("multimodal_cil", [*TRAINING, DIVERSE, FUSION]),
    "Baseline": ("ablation_baseline", TRAINING),
    "Baseline + text": ("ablation_text", [*TRAINING, DIVERSE]),
    "Baseline + AAVFM": ("ablation_aavfm", [*TRAINING, FUSION]),
    "Baseline + loss": ("ablation_loss", TRAINING),
    "Ours, threshold 0.8": ("multimodal_cil", [*TRAINING, DIVERSE]),
    "Ours, one task": (
        "multimodal_cil",
        [*TRAINING, DIVERSE, FUSION, *ONE],
    ),
}
"""The method's config and what is changed in it; the last one is no stream but what the classes give at once."""


def arguments(stream: str, method: str, seed: int, folder: Path, packs: Path, weights: Path) -> list[str]:
    """What follows `lightning-cil` in the command of a run."""
    config, changes = METHODS[method]
    data, epochs = STREAMS[stream]
    roots = {"root": "fsdd"} if stream == "digits" else {"esc_root": "ESC-50", "image_root": "imagenet_esc"}
    return [
        "fit",
        f"--config={EXAMPLES}/methods/{config}.yaml",
        *data,
        *(f"--data.{name}={packs / pack}" for name, pack in roots.items()),
        "--model.towers.preset=small",
        f"--model.towers.clip_weights={weights / 'small.pt'}",
        f"--model.towers.audio_weights={weights / ('audio_esc.pt' if stream == 'digits' else 'audio_digits.pt')}",
        *([f"--model.epochs={epochs}"] if changes else []),
        *changes,
        f"--seed_everything={seed}",
        f"--trainer.default_root_dir={folder}",
        "--trainer.accelerator=cpu",
        "--trainer.devices=1",
        "--trainer.log_every_n_steps=10",
        "--trainer.enable_checkpointing=false",
    ]


def table(out: Path, stream: str, seeds: Sequence[int]) -> Iterator[str]:
    """Lines of Markdown: mean and standard deviation over seeds; M2 is a fraction, the rest in percent."""
    head = ["method", "seeds", "avg", "last", "new", "M1", "M1 frozen", "M2", "fused", "s"]
    yield f"| {' | '.join(head)} |"
    yield "|---" * len(head) + "|"
    for method in METHODS:
        runs = {s: finished(out / stream / method / str(s)) for s in seeds}
        found = {s: r for s, r in runs.items() if r is not None}
        if not found:
            continue
        each = [r["multimodal"] for r in found.values()]
        cells = [spread([m[name] for m in each]) for name in ("average_accuracy", "last_accuracy")]
        cells.append(spread([statistics.mean(m["forward"]) for m in each]))
        cells += [spread([m[name] for m in each], 1) for name in ("M1", "M1_frozen")]
        cells += [spread([m["M2"] for m in each], 1, 2), spread([_fused(m) for m in each])]
        seconds = statistics.mean(sum(s["seconds"] for s in r["seconds"]) for r in found.values())
        yield f"| {method} | {', '.join(map(str, found))} | {' | '.join(cells)} | {seconds:.0f} |"


def _fused(scores: dict[str, Any]) -> float | None:
    """Share of the training samples that were fused, mean over tasks; `None` without AAVFM."""
    shares = [task["fused_fraction"] for task in scores["tasks"] if "fused_fraction" in task]
    return statistics.mean(shares) if shares else None


def main() -> None:
    """Make the missing runs, then print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stream", choices=STREAMS)
    parser.add_argument("out", type=Path)
    parser.add_argument("--packs", type=Path, default=Path("data"))
    parser.add_argument("--weights", type=Path, default=Path("weights"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--table", action="store_true")
    options = parser.parse_args()
    for seed in [] if options.table else options.seeds:
        for method in options.methods:
            folder = options.out / options.stream / method / str(seed)
            if finished(folder) is None:
                from lightning_cil.__main__ import main as lightning_cil

                shutil.rmtree(folder, ignore_errors=True)
                lightning_cil(arguments(options.stream, method, seed, folder, options.packs, options.weights))
    print("\n".join(table(options.out, options.stream, options.seeds)))


if __name__ == "__main__":
    main()
