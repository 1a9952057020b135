"""Two gloo processes train the quickstart to what one process with the same global batch gives."""

import json
import os
import subprocess
import sys
from pathlib import Path

import torch

ROOT = Path(__file__).parents[2]


def quickstart(root: Path, devices: int, batch_size: int) -> Path:
    command = [
        sys.executable, "-m", "lightning_cil", "fit", "--config", str(ROOT / "examples" / "quickstart.yaml"),
        "--trainer.devices", str(devices), "--trainer.strategy", "ddp" if devices > 1 else "auto",
        "--trainer.default_root_dir", str(root), "--data.init_args.batch_size", str(batch_size),
    ]  # fmt: skip
    env = {k: v for k, v in os.environ.items() if not k.startswith("PL_")} | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=env, cwd=root.parent, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stdout + done.stderr
    return root / "version_0"


def test_two_processes_train_the_quickstart_to_the_same_matrix(tmp_path: Path) -> None:
    one, two = quickstart(tmp_path / "one", 1, 32), quickstart(tmp_path / "two", 2, 16)
    ours, theirs = (json.loads((run / "results.json").read_text()) for run in (one, two))
    assert (ours["world_size"], theirs["world_size"]) == (1, 2)
    assert ours["matrix"] == theirs["matrix"]
    assert ours["before_training"] == theirs["before_training"]
    assert [p.name for p in sorted(tmp_path.glob("two/*"))] == ["version_0"]  # one run folder for both ranks
    for k in range(5):
        a, b = (torch.load(run / "checkpoints" / f"task_{k}.ckpt", weights_only=True) for run in (one, two))
        for name, value in a["state_dict"].items():
            assert torch.allclose(value, b["state_dict"][name], atol=1e-4), (k, name)
        stores = [c["lightning_cil.ReplayBuffer"]["store"] for c in (a, b)]
        assert all(stores[0][column].equal(stores[1][column]) for column in stores[0])  # one global buffer
        assert len(stores[0]["target"]) <= 200
