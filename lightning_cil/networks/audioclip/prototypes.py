"""Class prototypes from texts: the mean feature of a class's prompts, kept until the text tower changes.

Source: Chen et al., Leveraging Pre-Trained Models for Multimodal Class-Incremental Learning under Adaptive Fusion,
2025, "textual diversity", https://arxiv.org/abs/2506.09999: `t_c = norm(mean_n norm(F_l(template_n(c))))`, the double
normalisation of CLIP (Radford et al. 2021, section 3.1.4, https://arxiv.org/abs/2103.00020).
"""

from collections.abc import Hashable, Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from lightning_cil._random import counter_uniform, fold_seed
from lightning_cil.networks.audioclip.model import AudioCLIP
from lightning_cil.networks.audioclip.templates import TEMPLATES, fill
from lightning_cil.networks.audioclip.tokenizer import Tokenizer, cut_padding
from lightning_cil.networks.audioclip.weight_state import WeightState


class TextPrototypes:
    """One feature of length 1 for each class.

    With many templates the text tower is the main cost of a step. `sample` takes some templates of each class in a
    training step, `recompute` lowers the memory of a step, `chunk_size` bounds both. In evaluation all templates count,
    and the result is kept until the text tower changes.

    No module: prototypes are neither trained nor saved; a resumed run computes them from the weights.

    Args:
        tokenizer: Fits the text tower.
        templates: Texts with one `{}`; one template is the ablation without textual diversity.
        sample: How many templates of each class, drawn afresh, a training step uses; `None` is all of them.
        chunk_size: Most prompts that go through the text tower at once; `None` is all of them.
        recompute: Whether to keep no activations of the text tower but compute them twice. Adapters that count what
            goes through them then count it twice, too.
        check: How to tell that the text tower has changed, see `WeightState`: `versions`, without a wait for the
            device, or `content`, which notices writes through `.data` as well.
        seed: Of the drawn templates.

    Raises:
        ValueError: If a number is out of its range or a template has no place for the name.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        templates: Sequence[str] = TEMPLATES,
        *,
        sample: int | None = None,
        chunk_size: int | None = None,
        recompute: bool = False,
        check: Literal["versions", "content"] = "versions",
        seed: int = 0,
    ) -> None:
        fill([], templates)
        if sample is not None and not 1 <= sample <= len(templates):
            raise ValueError(
                f"TextPrototypes got `sample={sample}` for {len(templates)} templates, expected 1 to {len(templates)}, "
                "or none for all."
            )
        if chunk_size is not None and chunk_size < 1:
            raise ValueError(f"TextPrototypes got `chunk_size={chunk_size}`, expected at least 1 prompt.")
        if check not in ("versions", "content"):
            raise ValueError(f"TextPrototypes got `check={check!r}`, expected 'versions' or 'content'.")
        self.tokenizer = tokenizer
        self.templates = tuple(templates)
        self.sample = sample
        self.chunk_size = chunk_size
        self.recompute = recompute
        self.check = check
        self.seed = seed
        self._names: tuple[str, ...] = ()
        self._tokens = torch.zeros(0, len(self.templates), 1, dtype=torch.int64)  # [C, templates, L]
        self._kept: tuple[WeightState, Hashable, Tensor] | None = None

    def set_classes(self, names: Sequence[str]) -> None:
        """Say which classes there are, in the order of the prototypes; classes that stay are not tokenised anew.

        Raises:
            ValueError: If a prompt has too many tokens, see `Tokenizer`, or a name is empty.
        """
        names = tuple(names)
        if names == self._names:
            return
        common = len(self._names) if names[: len(self._names)] == self._names else 0
        new = self.tokenizer.encode(fill(names[common:], self.templates))
        whole = torch.zeros(len(names), len(self.templates), new.shape[1], dtype=torch.int64)
        whole[:common, :, : self._tokens.shape[2]] = self._tokens[:common].cpu()
        whole[common:] = new.view(-1, *whole.shape[1:])
        self._tokens = cut_padding(whole.flatten(0, 1)).view(*whole.shape[:2], -1) if len(names) else whole
        self._names = names
        self._kept = None

    def clear(self) -> None:
        """Forget the prototypes that were kept."""
        self._kept = None

    def __call__(self, model: AudioCLIP, *, step: int = 0, key: Hashable = None) -> Tensor:
        """Prototypes of all classes, float `[C, embed_dim]`.

        While the text tower is in train mode they are computed anew from the drawn templates of this `step`, with
        gradients where these are on. In eval mode all templates count, and unless gradients are asked for the result is
        kept.

        Args:
            model: With the text tower.
            step: Which draw of templates; the same step draws the same templates, on every rank.
            key: Whatever else than weights and buffers decides what the text tower computes, such as the chosen router.

        Raises:
            ValueError: If there are no classes, or tokenizer and text tower have different vocabularies.
        """
        self._check_classes(model)
        device = model.logit_scale.device
        self._tokens = self._tokens.to(device)
        parameters = list(model.text.parameters())
        if model.text.training:
            return self._compute(model, self._draw(step))
        if torch.is_grad_enabled() and any(p.requires_grad for p in parameters):
            return self._compute(model, self._tokens)
        weights = [*parameters, *model.text.buffers()]
        now = (key, device, torch.is_autocast_enabled(device.type), torch.get_autocast_dtype(device.type))
        if self._kept is None or self._kept[1] != now or not self._kept[0].matches(weights):
            with torch.inference_mode(False), torch.no_grad():
                prototypes = self._compute(model, self._tokens)
            self._kept = WeightState(weights, content=self.check == "content"), now, prototypes
        return self._kept[2]

    def _check_classes(self, model: AudioCLIP) -> None:
        if not self._names:
            raise ValueError("TextPrototypes has no classes yet: call `set_classes(names)` first.")
        if model.text.vocab_size != self.tokenizer.vocab_size:
            raise ValueError(
                f"The text tower has a vocabulary of {model.text.vocab_size}, but the tokenizer one of "
                f"{self.tokenizer.vocab_size}: make it with `Tokenizer({model.text.vocab_size})`."
            )

    def _draw(self, step: int) -> Tensor:
        """The tokens of `sample` templates of each class, `[C, sample, L]`."""
        if self.sample is None or self.sample == len(self.templates):
            return self._tokens
        classes, templates, _ = self._tokens.shape
        number = torch.arange(classes * templates, device=self._tokens.device)
        order = counter_uniform(number, fold_seed(self.seed, step)).view(classes, templates).argsort(dim=1)
        return self._tokens.take_along_dim(order[:, : self.sample, None], dim=1)

    def _compute(self, model: AudioCLIP, tokens: Tensor) -> Tensor:
        """Prototypes from tokens `[C, n, L]`."""
        prompts = tokens.flatten(0, 1)
        chunks = torch.split(prompts, self.chunk_size or len(prompts))
        recompute = self.recompute and torch.is_grad_enabled()
        parts = [
            checkpoint(model.encode_text, chunk, use_reentrant=False) if recompute else model.encode_text(chunk)
            for chunk in chunks
        ]
        features = torch.cat(parts).view(*tokens.shape[:2], -1)
        return F.normalize(features.mean(dim=1), dim=-1)

    def __getstate__(self) -> dict[str, Any]:
        """Without the prototypes that were kept: they belong to one model."""
        return {**self.__dict__, "_kept": None}
