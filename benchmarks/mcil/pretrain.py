"""Image and text towers that know some pictures and their names, in place of CLIP's weights, for the runs of `run.py`.

    python benchmarks/mcil/pretrain.py CIFAR OUT.pt [--epochs 2] [--seed 0]

CIFAR has the official files of CIFAR-100, or those that `benchmarks/cifar100/unpack.py` wrote. The text tower of the
preset `small` learns to tell the names of the classes apart whatever the template; then the image tower learns the
pictures of all classes by cross-entropy with the texts. There is no audio tower in OUT.pt, which is for
`towers: {preset: small, clip_weights: OUT.pt}`. Plain loops: nothing here is class-incremental.
"""

import argparse
from pathlib import Path

import torch
from torch.nn import functional as F

from lightning_cil.data import SplitCIFAR100
from lightning_cil.networks.audioclip import AudioCLIP, Prompts, TextPrototypes, create_audioclip
from lightning_cil.networks.audioclip.tokenizer import Tokenizer

BATCH, LR, DECAY = 64, 1e-3, 0.05


def tell_names_apart(model: AudioCLIP, prototypes: TextPrototypes, steps: int) -> None:
    """Train the text tower so that two templates with the same name are closer than those with different names."""
    optimizer = torch.optim.AdamW(model.text.parameters(), lr=LR, weight_decay=DECAY)
    for step in range(steps):
        first, second = prototypes(model, step=2 * step), prototypes(model, step=2 * step + 1)
        loss = F.cross_entropy(model.scale() * first @ second.T, torch.arange(len(first)))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    print(f"texts: loss {loss.item() if steps else 0:.3f}", flush=True)


def main(arguments: list[str] | None = None) -> None:
    """Train and write the two towers."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cifar", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--text-steps", type=int, default=80)
    parser.add_argument("--preset", default="small")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    torch.manual_seed(options.seed)
    data = SplitCIFAR100(options.cifar, num_tasks=1, class_order="sorted")
    data.setup("fit")
    images, labels = data.split("train").stored(torch.arange(len(data.labels("train")))), data.labels("train")
    model = create_audioclip(options.preset)
    prototypes = Prompts(templates=35, sample=1).build(Tokenizer(model.text.vocab_size, model.text.context_length))
    prototypes.set_classes(data.class_names)
    tell_names_apart(model, prototypes, options.text_steps)
    model.text.eval()
    with torch.no_grad():
        texts = prototypes(model)
    optimizer = torch.optim.AdamW(model.image.parameters(), lr=LR, weight_decay=DECAY)
    steps = options.epochs * (len(images) // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LR, total_steps=steps, pct_start=0.1)
    for epoch in range(options.epochs):
        order, right, total = torch.randperm(len(images)), 0.0, 0.0
        for number in range(len(images) // BATCH):
            index = order[number * BATCH : (number + 1) * BATCH]
            picture = data.transform(images[index], torch.randint(2**62, (BATCH,)))
            picture = F.interpolate(picture, (model.image_size,) * 2)
            logits = model.scale() * model.encode_image(picture) @ texts.T
            loss = F.cross_entropy(logits, labels[index])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            right, total = right + float((logits.argmax(1) == labels[index]).float().mean()), total + loss.item()
            if number % 50 == 49:
                print(f"epoch {epoch}, step {number + 1}: loss {total / 50:.3f}, accuracy {right / 50:.3f}", flush=True)
                right = total = 0.0
        kept = ("image.", "text.", "logit_scale")
        torch.save({n: v.clone() for n, v in model.state_dict().items() if n.startswith(kept)}, options.out)


if __name__ == "__main__":
    main()
