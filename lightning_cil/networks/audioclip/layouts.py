"""Names of entries in published checkpoints, put into the names of `AudioCLIP`.

| layout | where | image | text | audio |
|---|---|---|---|---|
| `openai` | OpenAI's CLIP, open_clip, AudioCLIP | `visual.*` | no prefix | `audio.*` |
| `open_clip` | open_clip's models with a text module | `visual.*` | `text.*` | |
| `huggingface` | transformers' `CLIPModel` | `vision_model.*` | `text_model.*` | |
| `esresnext` | AudioCLIP's `ESRNXFBSP.pt` | | | no prefix |
| `lightning_cil` | `AudioCLIP.state_dict()` | `image.*` | `text.*` | `audio.*` |
"""

import re
from collections.abc import Mapping

import torch
from torch import Tensor

_WRAPPERS = ("module.", "model.", "_orig_mod.")
"""What DDP, Lightning modules and `torch.compile` put before every name."""

_NO_WEIGHTS = {
    "input_resolution",
    "context_length",
    "vocab_size",
    "vision_model.embeddings.position_ids",
    "text_model.embeddings.position_ids",
    "attn_mask",
    "text.attn_mask",
    "logit_bias",
}
"""Sizes, indices and masks that some files hold beside the weights."""

_SCALES = ("logit_scale", "logit_scale_ai", "logit_scale_at")

_SIGNS = {
    "lightning_cil": "image.conv1.weight",
    "huggingface": "vision_model.embeddings.patch_embedding.weight",
    "open_clip": "text.token_embedding.weight",
    "openai": "visual.conv1.weight",
    "esresnext": "att1.conv_depth.weight",
}
"""An entry that a layout has and those below it lack."""


def unify(stored: Mapping[str, Tensor]) -> tuple[str, dict[str, Tensor]]:
    """Rename a state dict's entries.

    Returns:
        The layout, and the entries as `AudioCLIP` names them (`image.…`, `text.…`, `audio.…`, `logit_scale…`,
        `projection.weight`). Names that fit no rule stay as they are.

    Raises:
        ValueError: If the state dict has none of the layouts.
    """
    state = _unwrap(stored)
    layout = next((name for name, sign in _SIGNS.items() if sign in state), None)
    if layout is None and any(name.startswith("audio.att1.") for name in state):
        layout = "openai"  # the audio tower alone, with its prefix
    if layout is None:
        raise ValueError("none of the layouts " + ", ".join(f"{name} ({sign})" for name, sign in _SIGNS.items()))
    state = {name: value for name, value in state.items() if name not in _NO_WEIGHTS}
    if layout == "huggingface":
        return layout, _from_huggingface(state)
    rename = {
        "lightning_cil": lambda name: name,
        "esresnext": lambda name: f"audio.{name}",
        "open_clip": _openai_name,
        "openai": _openai_name,
    }[layout]
    return layout, {rename(name): value for name, value in state.items()}


def _unwrap(stored: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    for wrapper in _WRAPPERS:
        if all(name.startswith(wrapper) for name in stored):
            return _unwrap({name[len(wrapper) :]: value for name, value in stored.items()})
    return stored


def _openai_name(name: str) -> str:
    if name.startswith("visual."):
        return "image." + name.removeprefix("visual.")
    return name if name.startswith(("audio.", "text.")) or name in _SCALES else f"text.{name}"


_HUGGINGFACE: tuple[tuple[str, str], ...] = (
    (r"vision_model\.embeddings\.class_embedding", "image.class_embedding"),
    (r"vision_model\.embeddings\.patch_embedding\.weight", "image.conv1.weight"),
    (r"vision_model\.embeddings\.position_embedding\.weight", "image.positional_embedding"),
    (r"vision_model\.pre_layrnorm\.", "image.ln_pre."),
    (r"vision_model\.post_layernorm\.", "image.ln_post."),
    (r"vision_model\.encoder\.layers\.", "image.transformer.resblocks."),
    (r"visual_projection\.weight", "image.proj"),
    (r"text_model\.embeddings\.token_embedding\.", "text.token_embedding."),
    (r"text_model\.embeddings\.position_embedding\.weight", "text.positional_embedding"),
    (r"text_model\.final_layer_norm\.", "text.ln_final."),
    (r"text_model\.encoder\.layers\.", "text.transformer.resblocks."),
    (r"text_projection\.weight", "text.text_projection"),
)
"""How names begin, and what stands there in ours."""

_HUGGINGFACE_BLOCK = {
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
    "self_attn.out_proj": "attn.out_proj",
}

_QKV = re.compile(r"(.*)\.self_attn\.([qkv])_proj\.(weight|bias)")


def _from_huggingface(stored: Mapping[str, Tensor]) -> dict[str, Tensor]:
    state: dict[str, Tensor] = {}
    thirds: dict[str, dict[str, Tensor]] = {}
    for name, value in stored.items():
        for pattern, ours in _HUGGINGFACE:
            name = re.sub(f"^{pattern}", ours, name)
        if part := _QKV.fullmatch(name):
            thirds.setdefault(f"{part[1]}.attn.in_proj_{part[3]}", {})[part[2]] = value
            continue
        for theirs, ours in _HUGGINGFACE_BLOCK.items():
            name = name.replace(f".{theirs}.", f".{ours}.")
        state[name] = value.T if name in ("image.proj", "text.text_projection") else value
    whole = {name: torch.cat([part[k] for k in "qkv"]) for name, part in thirds.items() if len(part) == 3}
    rest = {f"{name}.{k}": value for name, part in thirds.items() if len(part) < 3 for k, value in part.items()}
    return state | whole | rest
