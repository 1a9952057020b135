"""Which term of AKD changes the order of KD and AKD: a loop of its own on features that are computed once.

    python benchmarks/rebll/fixed_features.py --root DATA --weights FILE [--epochs 5] [--seeds 5]

The stream of `voc.yaml`: pooled features of the frozen backbone, no augmentation, a hidden layer of 256, a linear head
that grows, Adam with 1e-3, batches of 8. Losses, teacher and loop are written out here, nothing of the package trains.
"""

import argparse
import copy
import math
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from sklearn.metrics import average_precision_score
from torch import Tensor, nn
from torch.nn.functional import softplus

HERE = Path(__file__).parent
ADAPTIVE = -1.0
VARIANTS: dict[str, dict[str, float]] = {
    "FT": {"cls": 0.0, "weight": 0.0},
    "L_cls alone, α = 0.2": {"cls": ADAPTIVE, "weight": 0.0, "alpha": 0.2},
    "L_cls alone, α = 0.6": {"cls": ADAPTIVE, "weight": 0.0, "alpha": 0.6},
    "L_cls alone, α = 1.2": {"cls": ADAPTIVE, "weight": 0.0},
    "KD (L_bce + L_kd)": {"cls": 0.0, "kd": 0.0},
    "L_bce + L_akd": {"cls": 0.0, "kd": ADAPTIVE},
    "L_cls + L_kd": {"cls": ADAPTIVE, "kd": 0.0},
    "AKD (L_cls + L_akd)": {"cls": ADAPTIVE, "kd": ADAPTIVE},
    "AKD, α = 2.4": {"cls": ADAPTIVE, "kd": ADAPTIVE, "alpha": 2.4},
    "AKD, fixed exponent 2": {"cls": 2.0, "kd": 2.0},
    "AKD, factor detached": {"cls": ADAPTIVE, "kd": ADAPTIVE, "detach": 1.0},
    "AKD, sums over classes": {"cls": ADAPTIVE, "kd": ADAPTIVE, "total": 1.0},
    "AKD, weights 0.5 and 0.5": {"cls": ADAPTIVE, "kd": ADAPTIVE, "weight": 0.5},
    "KD, weights 0.5 and 0.5": {"cls": 0.0, "kd": 0.0, "weight": 0.5},
}
"""Exponents of the two terms and whatever differs from Eq. 9."""

Split = tuple[Tensor, Tensor]
"""Features `[N, dim]`, labels bool `[N, C]`."""


def features(root: Path, weights: Path) -> tuple[Split, Split]:
    """Standardised features and all labels of training and test images."""
    from lightning_cil.data import MultiLabelVOC
    from lightning_cil.networks import create_backbone

    settings = yaml.safe_load((HERE / "voc.yaml").read_text())["data"]["init_args"]
    data = MultiLabelVOC(**{**settings, "root": root})
    data.setup("fit")
    network = create_backbone("tf_efficientnet_lite0", weights=str(weights)).eval()
    found = []
    for name in ("train", "test"):
        split = data.split(name)
        everything = torch.arange(len(split.targets))
        image = data.transform(split.stored(everything))
        with torch.no_grad():
            x = torch.cat([network(part) for part in image.split(64)])
        found.append((x, data.hidden_labels(everything) if name == "train" else data.labels("test")))
    mean, std = found[0][0].mean(0), found[0][0].std(0) + 1e-6
    (x, y), (test_x, test_y) = found
    return ((x - mean) / std, y), ((test_x - mean) / std, test_y)


def decayed(logits: Tensor, target: Tensor, exponent: float, detach: bool = False) -> Tensor:
    """-q (1 - p)^g ln p - (1 - q) ln(1 - p), `[B, C]`."""
    log_p, log_not_p = -softplus(-logits), -softplus(logits)
    factor = (exponent * log_not_p).exp()
    return -target * (factor.detach() if detach else factor) * log_p - (1 - target) * log_not_p


def stream(
    train: Split,
    test: Split,
    seed: int,
    epochs: int,
    *,
    step: int = 3,
    cls: float,
    kd: float = 0.0,
    weight: float = 0.15,
    alpha: float = 1.2,
    detach: float = 0,
    total: float = 0,
) -> dict[str, float]:
    """Train all tasks; percent after the last one, and the mean mAP of a task right after it."""
    torch.manual_seed(seed)
    (x, y), (test_x, test_y) = train, test
    body = nn.Sequential(nn.Linear(x.shape[1], 256), nn.ReLU(), nn.Dropout(0.2))
    teacher, own = nn.Sequential(body), []
    for old in range(0, y.shape[1], step):
        seen = old + step
        head = nn.Linear(256, seen)
        if old:
            with torch.no_grad():
                head.weight[:old], head.bias[:old] = teacher[1].weight, teacher[1].bias
        exponents = [alpha * math.log(seen) if e == ADAPTIVE else e for e in (cls, kd)]
        rows = y[:, old:seen].any(dim=1).nonzero().flatten()
        optimizer = torch.optim.Adam([*body.parameters(), *head.parameters()], lr=1e-3)
        body.train()
        for _ in range(epochs):
            for batch in rows[torch.randperm(len(rows))].split(8):
                logits = head(body(x[batch]))
                terms = [decayed(logits[:, old:], y[batch, old:seen].float(), exponents[0], detach > 0)]
                if old and weight:
                    with torch.no_grad():
                        q = teacher(x[batch]).sigmoid()
                    terms.append(decayed(logits[:, :old], q, exponents[1], detach > 0))
                scalars = [term.sum(1).mean() if total else term.mean() for term in terms]
                loss = scalars[0] if len(scalars) == 1 else weight * scalars[0] + (1 - weight) * scalars[1]
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
        teacher = copy.deepcopy(nn.Sequential(body, head)).eval()
        with torch.no_grad():
            logits = teacher(test_x)
        keep = test_y[:, :seen].any(dim=1)
        ap = [100 * average_precision_score(test_y[keep, c], logits[keep, c]) for c in range(seen)]
        own.append(statistics.mean(ap[old:]))
    absent = ~test_y
    wrong = {t: 100 * (logits.sigmoid() > t)[absent].double().mean().item() for t in (0.5, 0.8)}
    return {"mAP last": statistics.mean(ap), "mAP own": statistics.mean(own), "0.5": wrong[0.5], "0.8": wrong[0.8]}


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, default=Path("data/VOCdevkit"))
    parser.add_argument("--weights", type=Path, default=Path("efficientnet_lite0.pt"))
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--seeds", type=int, default=5)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    train, test = features(options.root, options.weights)
    found = {}
    print("| losses | mAP last | mAP right after a task | FPR at 0.5 | FPR at 0.8 |\n|---|---|---|---|---|")
    for name, settings in VARIANTS.items():
        runs = [stream(train, test, seed, options.epochs, **settings) for seed in range(options.seeds)]
        found[name] = {key: [run[key] for run in runs] for key in runs[0]}
        spread = [statistics.stdev(v) if len(v) > 1 else 0.0 for v in found[name].values()]
        cells = [f"{statistics.mean(v):.1f} ± {s:.1f}" for v, s in zip(found[name].values(), spread, strict=True)]
        print(f"| {name} | {' | '.join(cells)} |", flush=True)
    return found


if __name__ == "__main__":
    main()
