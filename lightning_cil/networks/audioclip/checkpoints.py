"""Published weights for the towers of `AudioCLIP`, from local files.

Nothing is downloaded. Where the files are: AudioCLIP's at https://github.com/AndreyGuzhov/AudioCLIP/releases/tag/v0.1
(in a clone they are pointers of Git LFS), OpenAI's at the addresses of `PUBLISHED` (TorchScript archives, to be
converted once), Hugging Face's as `model.safetensors` of https://huggingface.co/openai/clip-vit-base-patch16.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import torch
from torch import Tensor

from lightning_cil.networks.audioclip.layouts import unify
from lightning_cil.networks.audioclip.model import AudioCLIP
from lightning_cil.networks.audioclip.text import TextTower
from lightning_cil.networks.audioclip.transformer import QuickGELU
from lightning_cil.networks.weight_files import read_state_dict, sha256, some

TowerName = Literal["image", "text", "audio"]

_RELEASE = "https://github.com/AndreyGuzhov/AudioCLIP/releases/download/v0.1/"
_OPENAI = "https://openaipublic.azureedge.net/clip/models/"


@dataclass(frozen=True)
class Published:
    """A file that its authors offer.

    Args:
        url: Where it is.
        sha256: Of its content.
    """

    url: str
    sha256: str


PUBLISHED: Mapping[str, Published] = {
    **{
        name: Published(_RELEASE + name, digest)
        for name, digest in {
            "AudioCLIP-Full-Training.pt": "2441d35b353352c8b1bbfb8f7c687f46314c3d2909e940eaf763b8c17f632c44",
            "AudioCLIP-Partial-Training.pt": "1921885b6c3b5de0619f2ef4a9700ecbade758a398b34eb064230c30baef0c75",
            "CLIP.pt": "124e6d59d54c0837c456c953b3147adf438a21570d5c5b01ad83f6ad3e78d15e",
            "ESRNXFBSP.pt": "acfcc6b0a0f07025cc660ed6dcf9b5a05fbd7c8ebf65edaa0a81d88a92ff6834",
        }.items()
    },
    **{
        name: Published(f"{_OPENAI}{digest}/{name}", digest)
        for name, digest in {
            "ViT-B-16.pt": "5806e77cd80f8b59890b7e101eabd078d9fb84e6937f9e85e4ecb61988df416f",
            "RN50.pt": "afeb0e10f9e5a86da6080e35cf09123aca3b358a0c3e3b6c78a7b63bc04b6762",
        }.items()
    },
}
"""By file name. AudioCLIP's hashes are those of its repository's LFS entries; OpenAI's are part of the address."""


@dataclass(frozen=True)
class LoadReport:
    """What a file gave.

    Args:
        path: The file.
        sha256: Of its content.
        layout: See `layouts`.
        loaded: Entries taken over, for each tower.
        missing: Entries that the file lacks; they keep their values.
        unexpected: Entries of the wanted towers that the model has no place for.
        left_out: Towers of the file that were not wanted, and the classifier of `ESRNXFBSP.pt`.
    """

    path: str
    sha256: str
    layout: str
    loaded: Mapping[str, int]
    missing: Sequence[str]
    unexpected: Sequence[str]
    left_out: Sequence[str]

    def __str__(self) -> str:
        """One line."""
        counts = ", ".join(f"{count} entries of {tower}" for tower, count in self.loaded.items())
        notes = {"missing": self.missing, "unexpected": self.unexpected, "left out": self.left_out}
        details = "".join(f"; {len(names)} {what}: {some(names)}" for what, names in notes.items() if names)
        return f"{self.path} ({self.layout}, SHA-256 {self.sha256[:12]}…): {counts}{details}"


def load_checkpoint(
    model: AudioCLIP,
    path: str | Path,
    *,
    towers: Sequence[TowerName] = ("image", "text", "audio"),
    verify: bool = True,
    strict: bool = True,
    argument: str = "weights",
) -> LoadReport:
    """Load towers from a file; half precision becomes single precision.

    The scales come with what they compare: `logit_scale` with image and text, the others with audio. From
    `ESRNXFBSP.pt`, the audio tower before it met the others, the classifier of 527 classes is left out: the model's
    `fc` keeps its values and must be trained.

    The published weights of CLIP and AudioCLIP use the towers' QuickGELU. Weights trained with another activation (some
    of open_clip's, `gelu` in a Hugging Face config) need `activation="gelu"` when the towers are made. A
    `config.json` of Hugging Face beside the file is compared; other files do not tell.

    Args:
        model: Takes the values; it is unchanged if the file does not fit.
        path: `.safetensors`, else a file of `torch.save`; it is read without running code in it.
        towers: Which to load. For a ViT-B/16 beside AudioCLIP's audio tower load `("image", "text")` from CLIP's file
            and `("audio",)` from AudioCLIP's.
        verify: Whether a file that has a published file's name must have its SHA-256.
        strict: Whether missing and unexpected entries are an error; else they are in the report. Shapes must fit
            anyway.
        argument: How the user gave the path, for messages.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is not what its name says, could run code, is damaged, or does not fit.
    """
    path = Path(path).expanduser()
    wanted = _check_towers(towers)
    given = f"`{argument}={str(path)!r}`"
    if not path.is_file():
        raise FileNotFoundError(f"{given} is no file, expected one with weights. {_where(path)}")
    digest = sha256(path)
    layout, state = _read(path, argument, digest, verify)
    left_out = _drop_classifier(state, layout)
    if layout == "huggingface":
        _check_activation(model, path, given)
    present = {tower: any(name.startswith(f"{tower}.") for name in state) for tower in get_args(TowerName)}
    if absent := [tower for tower in wanted if not present[tower]]:
        has = [tower for tower, there in present.items() if there]
        raise ValueError(
            f"{given} has no {' and no '.join(absent)} tower; it holds {', '.join(has)} (layout {layout}). Expected a "
            f"file with {', '.join(wanted)}: {_advice(wanted)}"
        )
    own = {name: value for name, value in model.state_dict().items() if _owner(name, wanted)}
    chosen = {name: value for name, value in state.items() if _owner(name, wanted)}
    left_out += [tower for tower, there in present.items() if there and tower not in wanted]
    missing = [name for name in own if name not in chosen and not _optional(name)]
    unexpected = [name for name in chosen if name not in own]
    shapes = [
        f"{name} {list(chosen[name].shape)}, expected {list(own[name].shape)}"
        for name in own
        if name in chosen and chosen[name].shape != own[name].shape
    ]
    needed = [name for name in missing if not (layout == "esresnext" and name.startswith("audio.fc."))]
    problems = {"of another shape": shapes} | ({"missing": needed, "unexpected": unexpected} if strict else {})
    if any(problems.values()):
        details = "; ".join(f"{len(names)} {what}: {some(names, 3)}" for what, names in problems.items() if names)
        raise ValueError(
            f"{given} (layout {layout}) does not fit the {', '.join(wanted)} of this model: {details}. Is it a file "
            f"for other towers? {_advice(wanted)}"
        )
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if name in own and name in chosen:
                tensor.copy_(chosen[name])
    loaded = {tower: sum(name.startswith(f"{tower}.") for name in own if name in chosen) for tower in wanted}
    return LoadReport(str(path), digest, layout, loaded, missing, unexpected, left_out)


def read_text_tower(path: str | Path, *, verify: bool = True, argument: str = "weights") -> TextTower:
    """The text tower in a file, of whatever size, to compare with another one (`projection.procrustes`).

    Args:
        path: As for `load_checkpoint`.
        verify: As for `load_checkpoint`.
        argument: How the user gave the path, for messages.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it has no text tower of CLIP.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f"`{argument}={str(path)!r}` is no file, expected one with weights. {_where(path)}")
    layout, state = _read(path, argument, sha256(path), verify)
    state = {name.removeprefix("text."): value for name, value in state.items() if name.startswith("text.")}
    if not {"token_embedding.weight", "positional_embedding", "text_projection"} <= state.keys():
        raise ValueError(
            f"`{argument}={str(path)!r}` (layout {layout}) has no text tower of CLIP, expected one: take "
            "AudioCLIP-Full-Training.pt or AudioCLIP-Partial-Training.pt."
        )
    vocab_size, width = state["token_embedding.weight"].shape
    tower = TextTower(
        state["text_projection"].shape[1],
        width=width,
        blocks=len({name.split(".")[2] for name in state if name.startswith("transformer.resblocks.")}),
        heads=max(width // 64, 1),
        context_length=len(state["positional_embedding"]),
        vocab_size=vocab_size,
    )
    tower.load_state_dict(state)
    return tower.eval().requires_grad_(False)


def _read(path: Path, argument: str, digest: str, verify: bool) -> tuple[str, dict[str, Tensor]]:
    stored = read_state_dict(path, argument)
    published = PUBLISHED.get(path.name)
    if verify and published is not None and digest != published.sha256:
        raise ValueError(
            f"`{argument}={str(path)!r}` has the SHA-256 {digest}, expected {published.sha256}, that of the published "
            f"{path.name}: download it again from {published.url}, or, if it is your own, rename it or set "
            "`verify: false`."
        )
    try:
        return unify(stored)
    except ValueError as error:
        raise ValueError(
            f"`{argument}={str(path)!r}` is no checkpoint of CLIP or AudioCLIP: its names ({some(stored, 3)}) are of "
            f"{error}."
        ) from None


def _check_towers(towers: Sequence[str]) -> tuple[str, ...]:
    known = get_args(TowerName)
    if isinstance(towers, str) or not towers or any(tower not in known for tower in towers):
        raise ValueError(f"load_checkpoint got `towers={towers!r}`, expected a list of some of {', '.join(known)}.")
    return tuple(tower for tower in known if tower in towers)


def _owner(name: str, wanted: Iterable[str]) -> bool:
    """Whether an entry belongs to a wanted tower."""
    if name == "logit_scale":
        return "image" in wanted and "text" in wanted
    if name.startswith("logit_scale_"):
        return "audio" in wanted
    return name.partition(".")[0] in wanted


def _optional(name: str) -> bool:
    """What older or partial files may lack."""
    return name.startswith("logit_scale") or name.endswith("num_batches_tracked")


def _drop_classifier(state: dict[str, Tensor], layout: str) -> list[str]:
    """Take out the last layer of an audio tower that was trained to classify; the names left out."""
    if layout != "esresnext":
        return []
    names: list[str] = [name for name in ("audio.fc.weight", "audio.fc.bias") if name in state]
    for name in names:
        del state[name]
    return names


def _check_activation(model: AudioCLIP, path: Path, given: str) -> None:
    """Refuse weights whose config, beside them, names another activation than the towers have."""
    config = path.with_name("config.json")
    if not config.is_file():
        return
    parts = json.loads(config.read_text(encoding="utf-8"))
    named = {parts.get(f"{part}_config", {}).get("hidden_act", "quick_gelu") for part in ("text", "vision")}
    have = {"quick_gelu" if isinstance(block.mlp.gelu, QuickGELU) else "gelu" for block in model.blocks().values()}
    if named != have:
        raise ValueError(
            f"{given} was trained with the activation {', '.join(sorted(named))} ({config}), but the towers have "
            f"{', '.join(sorted(have))}, expected the same: set `activation` of the towers to that of the weights."
        )


def _advice(wanted: Sequence[str]) -> str:
    if "audio" in wanted:
        return (
            "AudioCLIP-Full-Training.pt has all three towers with an RN50 (preset `rn50`); beside a ViT-B/16 take its "
            "audio tower alone and image and text from a ViT-B/16 file of CLIP."
        )
    return "take a ViT-B/16 file of CLIP for the preset `vit_b16`, an RN50 file for `rn50`."


def _where(path: Path) -> str:
    published = PUBLISHED.get(path.name)
    if published is not None:
        return f"Nothing is downloaded: fetch it from {published.url} first."
    return (
        f"The path is relative to {str(Path.cwd())!r}. Nothing is downloaded: AudioCLIP's files are at "
        "https://github.com/AndreyGuzhov/AudioCLIP/releases/tag/v0.1, CLIP's at "
        "https://huggingface.co/openai/clip-vit-base-patch16."
    )
