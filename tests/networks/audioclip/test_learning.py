"""The towers learn pictures and sounds from random values; what is frozen stays as it was, by hash."""

import hashlib

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits

from lightning_cil.networks.audioclip import TextPrototypes, Tokenizer, create_audioclip

NAMES = ["zero", "one", "two", "three"]


def digits():
    """Scanned digits 0 to 3 as colour pictures of 16 pixels: train and test."""
    data = load_digits(n_class=4)
    images = torch.tensor(data.images, dtype=torch.float32)[:, None] / 8 - 1
    images = F.interpolate(images, scale_factor=2, mode="nearest").expand(-1, 3, -1, -1)
    return (images[:500], images[500:]), (torch.tensor(data.target)[:500], torch.tensor(data.target)[500:])


def tones(target, generator):
    """A tenth of a second at 8 kHz: noise and a tone whose pitch is the class."""
    time = torch.arange(800) / 8_000
    pitch = 400.0 * (1 + target)[:, None] * (1 + 0.05 * torch.rand(len(target), 1, generator=generator))
    wave = 0.3 * torch.sin(2 * torch.pi * pitch * time) + 0.02 * torch.randn(len(target), 800, generator=generator)
    return wave[:, None]


def digest(module):
    state = hashlib.sha256()
    for name, value in module.state_dict().items():
        state.update(name.encode() + value.numpy().tobytes())
    return state.hexdigest()


def test_pictures_and_texts_train_while_the_audio_tower_stays():
    torch.manual_seed(0)
    model, (train, test), (train_target, test_target) = create_audioclip("tiny"), *digits()
    prototypes = TextPrototypes(Tokenizer(258, 96), sample=2)
    prototypes.set_classes(NAMES)
    frozen = digest(model.audio), digest(model.projection)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3)
    model.train()
    for step in range(120):
        batch = torch.randint(len(train), (64,))
        scores = model.match(prototypes(model, step=step), image=model.encode_image(train[batch]), by="image")
        loss = F.cross_entropy(scores, train_target[batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.eval()
    with torch.no_grad():
        found = model.match(prototypes(model), image=model.encode_image(test), by="image").argmax(dim=1)
    assert (found == test_target).float().mean() > 0.7  # chance is 0.25
    assert (digest(model.audio), digest(model.projection)) == frozen


def test_thawed_audio_tower_trains_with_its_front_end():
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    model = create_audioclip("tiny").requires_grad_(False)
    model.audio.requires_grad_(True)
    before = {name: value.clone() for name, value in model.audio.state_dict().items()}
    others = digest(model.image), digest(model.text), digest(model.projection)
    prototypes = TextPrototypes(Tokenizer(258, 96))
    prototypes.set_classes(NAMES)
    optimizer = torch.optim.AdamW(model.audio.parameters(), lr=3e-3)
    model.image.eval()
    model.text.eval()
    model.audio.train()
    for _ in range(40):
        target = torch.randint(4, (16,))
        audio = model.project_audio(model.encode_audio(tones(target, generator)))
        loss = F.cross_entropy(0.2 * model.match(prototypes(model), audio=audio, by="audio"), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert all(not torch.equal(p, before[name]) for name, p in model.audio.named_parameters())
    model.eval()
    target = torch.arange(4).repeat(10)
    with torch.no_grad():
        audio = model.project_audio(model.encode_audio(tones(target, generator)))
        found = model.match(prototypes(model), audio=audio, by="audio").argmax(dim=1)
    assert (found == target).float().mean() > 0.8
    assert (digest(model.image), digest(model.text), digest(model.projection)) == others
