"""Runs in processes of their own, and what they leave behind."""

import csv
import hashlib
import json
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).parents[2]


class Runs:
    """Starts runs in forks of a process that has imported everything."""

    def __init__(self) -> None:
        env = {k: v for k, v in os.environ.items() if not k.startswith(("PL_", "SLURM"))}
        env.update(OMP_NUM_THREADS="1", PYTHONPATH=str(ROOT))
        self._server = subprocess.Popen(
            [sys.executable, "-m", "tests.resume.server"], cwd=ROOT, env=env, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        )  # fmt: skip
        assert self._server.stdout is not None
        assert self._server.stdin is not None
        self._in, self._out = self._server.stdin, self._server.stdout
        assert self._out.readline() == "ready\n"

    def __call__(self, case: dict[str, Any], root: Path, **job: Any) -> int:
        """Exit status of a run, negative for a signal."""
        self._in.write(json.dumps({"case": case, "root": str(root), **job}) + "\n")
        self._in.flush()
        return int(self._out.readline())

    def straight(self, case: dict[str, Any], root: Path, **job: Any) -> list[str]:
        """An uninterrupted run; the events of it."""
        assert self(case, root, **job) == 0, output(root)
        return json.loads((root / "events.json").read_text())

    def close(self) -> None:
        self._in.write("stop\n")  # the end of the pipe may never come: forks of this process hold it open
        self._in.close()
        try:
            self._server.wait(30)
        except subprocess.TimeoutExpired:  # not what is tested here
            self._server.kill()
        self._out.close()


def output(root: Path) -> str:
    return (root / "output.txt").read_text()[-4000:]


def left_behind(root: Path) -> dict[str, Any]:
    """Everything that must be the same whether a run was interrupted or not."""
    folders = sorted((p for p in root.iterdir() if p.is_dir()), reverse=True)
    assert not [p for p in folders[1:] if (p / "checkpoints" / "last.ckpt").exists()], output(root)  # it went on in it
    saved = torch.load(folders[0] / "checkpoints" / "last.ckpt", weights_only=True)
    found = json.loads((folders[0] / "results.json").read_text())
    stages = [(s["task"], s["stage"]) for s in found.pop("seconds")]
    for name in ("versions", "hardware"):
        found.pop(name)
    with (folders[0] / "metrics.csv").open() as file:
        metrics = list(csv.reader(file))
    return {
        "weights": digest(saved["state_dict"]),
        "buffer": digest(saved.get("lightning_cil.ReplayBuffer")),
        "means": digest(saved.get("lightning_cil.NearestMean")),
        "scaler": saved.get("MixedPrecision"),
        "counts": digest(saved["callbacks"]["StreamState"]["counts"]),
        "results": found,
        "stages": stages,
        "metrics": metrics,
        "files": sorted(p.name for p in folders[0].rglob("*") if p.is_file()),
    }


def digest(value: Any) -> str:
    """SHA-256 of tensors and plain values, nested."""
    sha = hashlib.sha256()

    def add(part: Any) -> None:
        if isinstance(part, torch.Tensor):
            sha.update(f"{part.dtype}{tuple(part.shape)}".encode() + part.contiguous().numpy().tobytes())
        elif isinstance(part, dict):
            for key in sorted(part, key=str):
                sha.update(str(key).encode())
                add(part[key])
        elif isinstance(part, list | tuple):
            for item in part:
                add(item)
        else:
            sha.update(repr(part).encode())

    add(value)
    return sha.hexdigest()


def points(events: list[str], wanted: list[str], more: int, source: random.Random) -> list[int]:
    """For each beginning of a name one event at random, and so many others."""
    chosen = []
    for name in wanted:
        found = [i for i, event in enumerate(events) if event.startswith(name)]
        assert found, f"no event {name!r} in {sorted(set(events))}"
        chosen.append(source.choice(found))
    rest = [i for i in range(len(events)) if i not in chosen]
    return chosen + source.sample(rest, more)
