"""`Towers`: what a config says of an AudioCLIP, `build` to make it and `tokenizer` to feed it."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F

from lightning_cil.networks.audioclip.checkpoints import TowerName, load_checkpoint, read_text_tower
from lightning_cil.networks.audioclip.front_ends import FrontEndKind
from lightning_cil.networks.audioclip.model import AudioCLIP
from lightning_cil.networks.audioclip.presets import create_audioclip
from lightning_cil.networks.audioclip.projection import procrustes
from lightning_cil.networks.audioclip.templates import TEMPLATES, fill
from lightning_cil.networks.audioclip.tokenizer import Tokenizer, cut_padding
from lightning_cil.networks.weight_files import read_state_dict

_IMAGE_AND_TEXT: tuple[TowerName, ...] = ("image", "text")


@dataclass(frozen=True)
class Towers:
    """The towers by name, with their weights and options.

    Without weights the towers start from random values; with `clip_weights` alone only the audio tower does.

    Args:
        preset: `vit_b16` (Chen et al. 2025), `rn50` (AudioCLIP as published), `small` (learns small data on a CPU) or
            `tiny` (for tests).
        clip_weights: A local file with image and text tower: of CLIP ViT-B/16 for `vit_b16`, of AudioCLIP for `rn50`.
        audio_weights: A local file with the audio tower: of AudioCLIP, or ESRNXFBSP.pt, whose last layer is left out.
        verify: Whether a file with a published file's name must have its SHA-256.
        front_end: What the audio tower reads: `fbsp` (published), `stft` or `mfcc` (16 kHz).
        batch_norm: Of the audio tower in eval mode: `running` statistics, or the `batch`'s, for comparisons.
        normalize_gradients: Whether the gradients of `fbsp` are divided by their largest magnitude, as AudioCLIP does.
        activation: Of the transformers: `quick_gelu` (OpenAI, AudioCLIP) or `gelu` (some of open_clip's weights).
        projection: P, frozen: `semi_orthogonal`; `procrustes`, from `audio_weights`' text tower to this one on
            prompts with the names of the first task's classes, without data, which methods fit before they train; or a
            local file with one matrix [embed_dim, audio_dim]. `rn50` has the identity unless a file is given.
        projection_seed: Of the semi-orthogonal P.
        vocabulary: OpenAI's `bpe_simple_vocab_16e6.txt.gz`, where no installed package has it, see `Tokenizer`.
        truncate: Whether prompts that are too long lose their last tokens, with a warning; else they are an error.
    """

    preset: str = "vit_b16"
    clip_weights: str | None = None
    audio_weights: str | None = None
    verify: bool = True
    front_end: FrontEndKind = "fbsp"
    batch_norm: Literal["running", "batch"] = "running"
    normalize_gradients: bool = True
    activation: Literal["quick_gelu", "gelu"] = "quick_gelu"
    projection: str = "semi_orthogonal"
    projection_seed: int = 0
    vocabulary: str | None = None
    truncate: bool = False

    def build(self) -> AudioCLIP:
        """Make the towers and load their weights; `load_reports` says what each file gave.

        Raises:
            ValueError: If options do not go together, or a file does not fit.
            FileNotFoundError: If there is no such file.
        """
        self._check()
        model = create_audioclip(
            self.preset,
            front_end=self.front_end,
            batch_norm=self.batch_norm,
            normalize_gradients=self.normalize_gradients,
            activation=self.activation,
            projection_seed=self.projection_seed,
        )
        wanted: list[tuple[str, str | None, tuple[TowerName, ...]]] = [
            ("clip_weights", self.clip_weights, _IMAGE_AND_TEXT),
            ("audio_weights", self.audio_weights, ("audio",)),
        ]
        model.load_reports = [
            load_checkpoint(model, path, towers=towers, verify=self.verify, argument=argument)
            for argument, path, towers in wanted
            if path is not None
        ]
        if self.projection not in ("semi_orthogonal", "procrustes"):
            self._read_projection(model)
        return model

    def tokenizer(self, model: AudioCLIP) -> Tokenizer:
        """The tokenizer for a model's text tower; see `Tokenizer` for where its vocabulary comes from."""
        return Tokenizer(
            model.text.vocab_size,
            model.text.context_length,
            path=self.vocabulary,
            truncate=self.truncate,
            verify=self.verify,
        )

    @torch.no_grad()
    def fit_projection(self, model: AudioCLIP, names: Sequence[str], templates: Sequence[str] = TEMPLATES) -> None:
        """Set P by `procrustes`, if that is the projection asked for; else do nothing.

        Args:
            model: From `build`, its text tower not trained yet.
            names: Of the classes.
            templates: Every name in each is one text.
        """
        if self.projection != "procrustes":
            return
        assert self.audio_weights is not None
        tokens = cut_padding(self.tokenizer(model).encode(fill(names, templates)))
        source = read_text_tower(self.audio_weights, verify=self.verify, argument="audio_weights")
        of_source = F.normalize(torch.cat([source(part) for part in torch.split(tokens, _TEXTS)]), dim=-1)
        device = model.logit_scale.device
        of_model = torch.cat([model.encode_text(part) for part in torch.split(tokens.to(device), _TEXTS)])
        if of_source.shape[1] != model.audio_dim:
            raise ValueError(
                f"`audio_weights={self.audio_weights!r}` has text features of width {of_source.shape[1]}, expected "
                f"{model.audio_dim}, the audio features' width: `projection: procrustes` needs AudioCLIP's own text "
                "tower."
            )
        model.set_projection(procrustes(of_source, of_model))

    def _check(self) -> None:
        if self.audio_weights is not None and self.front_end != "fbsp":
            raise ValueError(
                f"Towers got `audio_weights={self.audio_weights!r}` and `front_end={self.front_end!r}`, but published "
                "weights are for `fbsp`: leave one of them out."
            )
        if self.projection == "procrustes" and self.audio_weights is None:
            raise ValueError(
                "Towers got `projection='procrustes'` without `audio_weights`, expected AudioCLIP-Full-Training.pt or "
                "AudioCLIP-Partial-Training.pt, whose text tower it compares with."
            )

    def _read_projection(self, model: AudioCLIP) -> None:
        path = Path(self.projection).expanduser()
        if not path.is_file():
            raise FileNotFoundError(
                f"`projection={self.projection!r}` is neither 'semi_orthogonal' nor 'procrustes' nor a file, expected "
                f"one of them. The path is relative to {str(Path.cwd())!r}."
            )
        state = read_state_dict(path, "projection")
        matrices = [state[name] for name in ("projection.weight", "weight") if name in state] or list(state.values())
        if len(matrices) != 1:
            raise ValueError(
                f"`projection={self.projection!r}` holds {len(state)} tensors, expected one matrix, best under the "
                "name 'projection.weight'."
            )
        model.set_projection(matrices[0])


_TEXTS = 256
"""Texts that go through a text tower at once."""
