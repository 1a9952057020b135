"""What it saves that a frozen audio tower's features are computed once for each clip, and what the templates cost.

    python benchmarks/audio_cache.py [--quick] [--json FILE]

A step of `MultimodalCIL` with the preset `small`, batch 32, pictures of 32 pixels, sounds of 5 s at 16 kHz and 10
classes, with the features of the sounds kept (`cache_audio`) and computed in every step, for 1, 5, 15 and 35 templates;
and three cheaper ways to train with 35: 2 drawn templates of each class, chunks of texts, chunks computed twice. All
run in processes of their own and take turns of a few steps; a ratio is the median over the rounds.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import turns

BATCH, CLASSES, SECONDS, PRESET = 32, 10, 5.0, "small"
TEMPLATES = (1, 5, 15, 35)
CHEAPER: dict[str, dict[str, Any]] = {
    "sample 2": {"sample": 2},
    "chunks of 64": {"chunk_size": 64},
    "chunks of 64, twice": {"chunk_size": 64, "recompute": True},
}
"""Options of the prompts with the largest number of templates."""


def sides() -> dict[str, dict[str, Any]]:
    """Options of every contestant by name; `cached` is the method's, the others the prompts'."""
    both = {
        f"{n} templates, {'cached' if cached else 'every step'}": {"templates": n, "cached": cached}
        for n in TEMPLATES
        for cached in (True, False)
    }
    cheaper = {name: {"templates": TEMPLATES[-1], "cached": True, **more} for name, more in CHEAPER.items()}
    return {**both, **cheaper}


def stream(turn: turns.Turns, rounds: int, *, cached: bool, **prompts: Any) -> dict[str, float]:
    """One task whose steps are the turns; clips through the audio tower, and seconds of it before the first step."""
    import soundfile
    from lightning.pytorch import Callback, seed_everything
    from synthetic import RandomTasks

    from lightning_cil import IncrementalTrainer
    from lightning_cil.data.audio import AudioClips, AudioFormat, Sounds
    from lightning_cil.data.images import ImageSplit
    from lightning_cil.methods import MultimodalCIL
    from lightning_cil.networks.audioclip import Prompts

    facts = {"clips": 0.0, "seconds": 0.0}

    class RandomSounds(RandomTasks):
        def load_split(self, train: bool) -> ImageSplit:
            split: Any = super().load_split(train)
            split.sounds = Sounds(self.audio, torch.arange(len(split.targets)))
            return split

    class Tick(Callback):
        def on_train_batch_end(self, *args: Any) -> None:
            turn.tick()

    seed_everything(0, verbose=False)
    steps = 3
    epochs = -(-turn.needed(rounds) // steps)
    module = MultimodalCIL(
        towers=PRESET, prompts=Prompts(**prompts), epochs=epochs, cache_audio=cached, fusion=None, mife=_experts()
    )
    rate = module.backbone.sample_rate
    encode = module.backbone.encode_audio

    def counted(wave: torch.Tensor) -> torch.Tensor:
        start = time.perf_counter()
        features = encode(wave)
        facts["clips"] += len(wave)
        facts["seconds"] += time.perf_counter() - start
        return features

    module.backbone.encode_audio = counted  # type: ignore[method-assign]
    shape = (3, module.backbone.image_size, module.backbone.image_size)
    data = RandomSounds(
        classes=CLASSES, images=[steps * BATCH], test_images=CLASSES, batch_size=BATCH, shape=shape, augmented=False
    )
    with tempfile.TemporaryDirectory() as root:
        noise = torch.rand(steps * BATCH, int(SECONDS * rate), generator=torch.Generator().manual_seed(0)) - 0.5
        paths = [Path(root) / f"{number}.wav" for number in range(len(noise))]
        for path, wave in zip(paths, noise, strict=True):
            soundfile.write(path, wave.numpy(), rate, subtype="PCM_16")
        data.audio = AudioClips(paths, AudioFormat(rate, SECONDS))
        trainer = IncrementalTrainer(
            accelerator="cpu",
            devices=1,
            default_root_dir=root,
            callbacks=[Tick()],
            enable_checkpointing=False,
            evaluate_before_training=False,
            limit_test_batches=1,
        )
        trainer.fit(module, data)
    return facts


def _experts() -> Any:
    from lightning_cil.networks import MIFE

    return MIFE(num_experts=2, rank=4)


def race(rounds: int, steps: int, warmup: int) -> dict[str, dict[str, Any]]:
    """Blocks and facts of all sides, each in a process of its own."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    numbers = [str(n) for n in (rounds, steps, warmup)]
    contestants = [
        turns.Contestant(n, [sys.executable, __file__, "--child", n, *numbers], environment) for n in sides()
    ]
    try:
        for contestant in contestants:
            contestant.read()
        for number in range(rounds):
            for contestant in contestants if number % 2 else reversed(contestants):
                contestant.turn()
        for contestant in contestants:
            contestant.finish()
            contestant.close()
    except BaseException:
        for contestant in contestants:
            contestant.kill()
        raise
    return {c.name: {"blocks": c.blocks, **c.facts} for c in contestants}


def in_process(rounds: int) -> dict[str, dict[str, Any]]:
    """One after the other: for the smoke test, no measurement."""
    found = {}
    for name, options in sides().items():
        turn = turns.Turns(1, 1)
        facts = stream(turn, rounds, **options)
        found[name] = {"blocks": turn.blocks, **facts}
    return found


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    """Measure all sides and print the two tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer rounds")
    parser.add_argument("--smoke", action="store_true", help="no measurement: that it runs")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--child", nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    if options.child:
        name, *numbers = options.child
        rounds, steps, warmup = map(int, numbers)
        with turns.quiet():
            turn = turns.child_turns(steps, warmup)
            turn.send(stream(turn, rounds, **sides()[name]))
        return {}
    if options.smoke:
        global BATCH, CLASSES, SECONDS, PRESET, TEMPLATES
        BATCH, CLASSES, SECONDS, PRESET, TEMPLATES = 2, 2, 0.1, "tiny", (1, 3)
    rounds, steps = (2, 1) if options.smoke else (7, 2) if options.quick else (21, 2)
    results: dict[str, Any] = {"machine": turns.machine(1)}
    print(results["machine"], end="\n\n", flush=True)
    with turns.quiet():
        found = in_process(rounds) if options.smoke else race(rounds, steps, warmup=3)
    first = found[f"{TEMPLATES[0]} templates, cached"]
    results["cache"] = [
        _compared(str(n), *(found[f"{n} templates, {side}"] for side in ("every step", "cached")), steps)
        for n in TEMPLATES
    ]
    most = f"{TEMPLATES[-1]} templates, cached"
    cached = {str(n): f"{n} templates, cached" for n in TEMPLATES} | {f"{TEMPLATES[-1]}, {n}": n for n in CHEAPER}
    results["templates"] = [_compared(label, found[name], first, steps) for label, name in cached.items()]
    results["tower"] = {
        side: {k: found[name][k] for k in ("clips", "seconds")}
        for side, name in (("cached", most), ("every step", most.replace("cached", "every step")))
    }
    _print(results)
    if options.json:
        options.json.write_text(json.dumps(results, indent=1, default=vars) + "\n")
    return results


def _compared(label: str, ours: dict[str, Any], theirs: dict[str, Any], steps: int) -> dict[str, Any]:
    return {
        "label": label,
        "milliseconds": [1e3 * turns.seconds(side["blocks"], steps) for side in (ours, theirs)],
        "wall": turns.ratio(ours["blocks"], theirs["blocks"]),
        "cpu": turns.ratio(ours["blocks"], theirs["blocks"], "cpu"),
    }


def _print(results: dict[str, Any]) -> None:
    head = ["templates", "ms every step", "ms cached", "every step / cached (quartiles)", "processor time"]
    rows = [[r["label"], *(f"{ms:.0f}" for ms in r["milliseconds"]), r["wall"], r["cpu"]] for r in results["cache"]]
    print(turns.table(head, rows), end="\n\n")
    head = ["templates", "ms cached", "ratio to 1 template (quartiles)", "processor time"]
    rows = [[r["label"], f"{r['milliseconds'][0]:.0f}", r["wall"], r["cpu"]] for r in results["templates"]]
    print(turns.table(head, rows), end="\n\n")
    for side, tower in results["tower"].items():
        print(f"{side}: {tower['clips']:.0f} clips through the audio tower, {tower['seconds']:.1f} s")


if __name__ == "__main__":
    main()
