"""Towers that know other things, in place of CLIP's and AudioCLIP's weights, for the runs of `run.py`.

    python benchmarks/mcil/pretrain.py pictures CIFAR small.pt
    python benchmarks/mcil/pretrain.py esc PACKS audio_esc.pt --texts small.pt
    python benchmarks/mcil/pretrain.py digits PACKS audio_digits.pt --texts small.pt

CIFAR has the official files of CIFAR-100, or those that `benchmarks/cifar100/unpack.py` wrote; PACKS has the folders
`ESC-50` and `imagenet_esc`, or `fsdd`. `pictures`: the text tower of the preset `small` learns to tell the names of the
classes apart whatever the template, then the image tower learns the pictures by cross-entropy with the texts. `esc`
and `digits`: an audio tower learns to match sounds with the texts of that text tower. Plain loops: nothing here is
class-incremental.
"""

import argparse
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from lightning_cil.data import ImageNetESC, SplitCIFAR100, SpokenDigits
from lightning_cil.networks.audioclip import AudioCLIP, Prompts, TextPrototypes, create_audioclip, load_checkpoint
from lightning_cil.networks.audioclip.tokenizer import Tokenizer

LR, DECAY = 1e-3, 0.05
PICTURES, SOUNDS = 64, 16
"""In a batch."""


def prototypes_of(model: AudioCLIP, names: list[str]) -> TextPrototypes:
    """Of our 35 templates; in training one of them, drawn afresh."""
    prototypes = Prompts(templates=35, sample=1).build(Tokenizer(model.text.vocab_size, model.text.context_length))
    prototypes.set_classes(names)
    return prototypes


def texts_of(model: AudioCLIP, prototypes: TextPrototypes) -> Tensor:
    """Prototypes `[C, dim]` of a text tower that is not trained any more."""
    model.text.eval()
    with torch.no_grad():
        return prototypes(model)


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


def pictures(root: Path, model: AudioCLIP, epochs: int, text_steps: int) -> None:
    """Train text and image tower on CIFAR-100."""
    data = SplitCIFAR100(root, num_tasks=1, class_order="sorted")
    data.setup("fit")
    labels = data.labels("train")
    images = data.split("train").stored(torch.arange(len(labels)))
    prototypes = prototypes_of(model, data.class_names)
    tell_names_apart(model, prototypes, text_steps)
    texts = texts_of(model, prototypes)
    optimizer = torch.optim.AdamW(model.image.parameters(), lr=LR, weight_decay=DECAY)
    steps = len(images) // PICTURES
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LR, total_steps=epochs * steps, pct_start=0.1)
    for epoch in range(epochs):
        order, right, total = torch.randperm(len(images)), 0.0, 0.0
        for number in range(steps):
            index = order[number * PICTURES : (number + 1) * PICTURES]
            picture = data.transform(images[index], torch.randint(2**62, (PICTURES,)))
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


def sounds(packs: Path, model: AudioCLIP, epochs: int, digits: bool) -> None:
    """Train the audio tower on the training sounds of one of the two packs."""
    rate = model.sample_rate
    data: SpokenDigits | ImageNetESC
    if digits:
        data = SpokenDigits(packs / "fsdd", sample_rate=rate, test_takes=[0], pair_by="clips", num_tasks=1)
    else:
        data = ImageNetESC(
            packs / "ESC-50",
            packs / "imagenet_esc",
            sample_rate=rate,
            share_pictures=True,
            pair_by="clips",
            image_size=model.image_size,
            num_tasks=1,
        )
    data.setup("fit")
    labels = data.labels("train")
    waves = data.load_audio(torch.arange(len(labels)))
    texts = texts_of(model, prototypes_of(model, data.class_names))
    model.audio.requires_grad_(True)
    model.audio.train()
    optimizer = torch.optim.AdamW(model.audio.parameters(), lr=LR, weight_decay=DECAY)
    for epoch in range(epochs):
        right = 0.0
        for index in torch.randperm(len(labels)).split(SOUNDS):
            features = model.project_audio(model.encode_audio(data.transform_audio(waves[index])))
            logits = model.scale() * features @ texts.T
            loss = F.cross_entropy(logits, labels[index])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            right += float((logits.argmax(1) == labels[index]).float().sum())
        print(f"epoch {epoch}: loss {loss.item():.3f}, accuracy {right / len(labels):.3f}", flush=True)
    for scale in (model.logit_scale_at, model.logit_scale_ai):
        scale.data.copy_(model.logit_scale)  # what it was trained with, not AudioCLIP's 100


def main(arguments: list[str] | None = None) -> None:
    """Train and write the towers."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("pictures", "esc", "digits"))
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--texts", type=Path, help="what `pictures` wrote")
    parser.add_argument("--epochs", type=int, help="default: 2 for pictures, 8 for sounds")
    parser.add_argument("--text-steps", type=int, default=80)
    parser.add_argument("--preset", default="small")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    if options.what != "pictures" and options.texts is None:
        parser.error("sounds are matched with texts: give --texts, the file that `pictures` wrote")
    torch.manual_seed(options.seed)
    model = create_audioclip(options.preset)
    if options.what == "pictures":
        pictures(options.data, model, options.epochs or 2, options.text_steps)
        kept: tuple[str, ...] = ("image.", "text.", "logit_scale")
    else:
        load_checkpoint(model, options.texts, towers=("image", "text"))
        sounds(options.data, model, options.epochs or 8, options.what == "digits")
        kept = ("audio.", "logit_scale_a")
    torch.save({n: v.detach().clone() for n, v in model.state_dict().items() if n.startswith(kept)}, options.out)


if __name__ == "__main__":
    main()
