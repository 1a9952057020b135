"""Random weights in the published layouts load, and give what independent implementations give."""

import json
import re
import warnings
import zipfile

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from transformers import CLIPConfig, CLIPModel

from lightning_cil.networks.audioclip import (
    PUBLISHED,
    AudioCLIP,
    ESResNeXt,
    TextTower,
    VisionTransformer,
    checkpoints,
    create_audioclip,
    load_checkpoint,
    read_text_tower,
)
from lightning_cil.networks.weight_files import sha256

VOCAB, CONTEXT = 60, 12


def model(seed=0):
    """Sizes that no two parts share, so that a mix-up has another shape."""
    torch.manual_seed(seed)
    return AudioCLIP(
        VisionTransformer(24, image_size=16, patch_size=8, width=32, blocks=2, heads=4),
        TextTower(24, width=16, blocks=3, heads=2, context_length=CONTEXT, vocab_size=VOCAB),
        ESResNeXt(20, n_fft=64, win_length=50, hop_length=20, width=4, layers=(1, 1, 1, 1), groups=4),
        embed_dim=24,
        audio_dim=20,
    ).eval()


def same(first, second, prefix):
    states = [{n: v for n, v in m.state_dict().items() if n.startswith(prefix)} for m in (first, second)]
    return states[0].keys() == states[1].keys() and all(torch.equal(v, states[1][n]) for n, v in states[0].items())


def flat(source, towers=("image", "text", "audio")):
    """The names of OpenAI's and AudioCLIP's files."""
    state = {}
    for name, value in source.state_dict().items():
        tower, _, rest = name.partition(".")
        if name.startswith("logit_scale"):
            state[name] = value
        elif tower in towers:
            state[{"image": f"visual.{rest}", "text": rest, "audio": f"audio.{rest}"}[tower]] = value
    return state


@pytest.fixture(scope="module")
def huggingface():
    """transformers' CLIP with random weights that are not small."""
    torch.manual_seed(0)
    sizes = {"hidden_act": "quick_gelu", "projection_dim": 24}
    text = {"hidden_size": 16, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 2}
    text |= {"vocab_size": VOCAB, "max_position_embeddings": CONTEXT, "eos_token_id": VOCAB - 1, "bos_token_id": 0}
    vision = {"hidden_size": 32, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
    vision |= {"image_size": 16, "patch_size": 8}
    config = CLIPConfig(text_config=text | sizes, vision_config=vision | sizes, projection_dim=24)
    clip = CLIPModel(config).eval()
    for parameter in clip.parameters():
        nn.init.normal_(parameter, std=0.2)
    return clip


def openai_names(state):
    """From transformers' names to OpenAI's, written down from the two repositories."""
    renamed = {}
    for name, value in state.items():
        name = name.replace("vision_model.encoder.layers.", "visual.transformer.resblocks.")
        name = name.replace("text_model.encoder.layers.", "transformer.resblocks.")
        name = name.replace("mlp.fc1", "mlp.c_fc").replace("mlp.fc2", "mlp.c_proj").replace("self_attn", "attn")
        name = name.replace("layer_norm1", "ln_1").replace("layer_norm2", "ln_2")
        renamed[name] = value
    for old, new in {
        "vision_model.embeddings.class_embedding": "visual.class_embedding",
        "vision_model.embeddings.patch_embedding.weight": "visual.conv1.weight",
        "vision_model.embeddings.position_embedding.weight": "visual.positional_embedding",
        "vision_model.pre_layrnorm.weight": "visual.ln_pre.weight",
        "vision_model.pre_layrnorm.bias": "visual.ln_pre.bias",
        "vision_model.post_layernorm.weight": "visual.ln_post.weight",
        "vision_model.post_layernorm.bias": "visual.ln_post.bias",
        "text_model.embeddings.token_embedding.weight": "token_embedding.weight",
        "text_model.embeddings.position_embedding.weight": "positional_embedding",
        "text_model.final_layer_norm.weight": "ln_final.weight",
        "text_model.final_layer_norm.bias": "ln_final.bias",
    }.items():
        renamed[new] = renamed.pop(old)
    renamed["visual.proj"] = renamed.pop("visual_projection.weight").T.contiguous()
    renamed["text_projection"] = renamed.pop("text_projection.weight").T.contiguous()
    for prefix in ("visual.transformer.resblocks.", "transformer.resblocks."):
        for block in {n.split(".")[-4] for n in renamed if n.startswith(prefix) and "q_proj" in n}:
            for kind in ("weight", "bias"):
                thirds = [renamed.pop(f"{prefix}{block}.attn.{k}_proj.{kind}") for k in "qkv"]
                renamed[f"{prefix}{block}.attn.in_proj_{kind}"] = torch.cat(thirds)
    return renamed


def write(clip, folder, layout):
    state = {name: value.detach().clone() for name, value in clip.state_dict().items()}
    if layout == "huggingface":
        state |= {"text_model.embeddings.position_ids": torch.arange(CONTEXT)[None]}  # as older files have it
        save_file(state, folder / "model.safetensors")
        return folder / "model.safetensors"
    state = openai_names(state)
    if layout == "openai":
        state |= {"input_resolution": torch.tensor(16), "context_length": torch.tensor(CONTEXT)}
    if layout == "open_clip":
        state = {n if n.startswith(("visual.", "logit")) else f"text.{n}": v for n, v in state.items()}
        state = {"state_dict": {f"module.{n}": v for n, v in state.items()}}
    torch.save(state, folder / "clip.pt")
    return folder / "clip.pt"


@pytest.mark.parametrize("layout", ["huggingface", "openai", "open_clip"])
@torch.no_grad()
def test_same_features_as_transformers(huggingface, tmp_path, layout):
    ours, image = model(), torch.randn(3, 3, 16, 16)
    tokens = torch.randint(1, VOCAB - 1, (4, CONTEXT))
    for row, end in enumerate((3, 7, 11, 1)):
        tokens[row, end] = VOCAB - 1
        tokens[row, end + 1 :] = 0
    report = load_checkpoint(ours, write(huggingface, tmp_path, layout), towers=["image", "text"])
    assert report.layout == layout
    assert [*report.missing, *report.unexpected, *report.left_out] == []
    assert report.loaded == {"image": len(ours.image.state_dict()), "text": len(ours.text.state_dict())}
    vision = huggingface.get_image_features(pixel_values=image)
    text = huggingface.get_text_features(input_ids=tokens)
    vision, text = (getattr(found, "pooler_output", found) for found in (vision, text))  # a tensor in transformers 4
    torch.testing.assert_close(ours.encode_image(image, normalize=False), vision, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(ours.encode_text(tokens, normalize=False), text, rtol=1e-4, atol=1e-4)
    assert ours.logit_scale.item() == pytest.approx(huggingface.logit_scale.item())


@pytest.mark.parametrize(("named", "fits"), [("quick_gelu", True), ("gelu", False)])
def test_activation_of_the_config_beside_it(huggingface, tmp_path, named, fits):
    path = write(huggingface, tmp_path, "huggingface")
    config = {"text_config": {"hidden_act": named}, "vision_config": {"hidden_act": named}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    if fits:
        load_checkpoint(model(), path, towers=["image", "text"])
    else:
        with pytest.raises(ValueError, match=r"the activation gelu .*, but the towers have quick_gelu"):
            load_checkpoint(model(), path, towers=["image", "text"])


class TestAudioCLIPFiles:
    def test_all_three_towers(self, tmp_path):
        source, ours = model(1), model(2)
        with torch.no_grad():
            source.logit_scale_at.fill_(1.5)
        torch.save(flat(source), tmp_path / "all.pt")
        report = load_checkpoint(ours, tmp_path / "all.pt")
        assert all(same(source, ours, tower) for tower in ("image", "text", "audio"))
        assert ours.logit_scale_at.item() == 1.5
        assert report.sha256 == sha256(tmp_path / "all.pt")
        assert "layout" not in str(report)
        assert f"{len(source.audio.state_dict())} entries of audio" in str(report)

    def test_audio_tower_alone(self, tmp_path):
        source, ours, untouched = model(1), model(2), model(2)
        torch.save(flat(source), tmp_path / "all.pt")
        report = load_checkpoint(ours, tmp_path / "all.pt", towers=["audio"])
        assert same(source, ours, "audio")
        assert same(untouched, ours, "image")
        assert same(untouched, ours, "text")
        assert report.left_out == ["image", "text"]

    def test_audio_tower_with_its_prefix_and_nothing_else(self, tmp_path):
        source, ours = model(1), model(2)
        torch.save({n: v for n, v in flat(source).items() if n.startswith("audio.")}, tmp_path / "audio.pt")
        load_checkpoint(ours, tmp_path / "audio.pt", towers=["audio"])
        assert same(source, ours, "audio")

    def test_tower_before_it_met_the_others(self, tmp_path):
        """ESRNXFBSP.pt: no prefix, and a classifier of 527 classes, which is left out."""
        source, ours, untouched = model(1), model(2), model(2)
        state = source.audio.state_dict() | {"fc.weight": torch.zeros(527, 128), "fc.bias": torch.zeros(527)}
        torch.save(state, tmp_path / "esresnext.pt")
        report = load_checkpoint(ours, tmp_path / "esresnext.pt", towers=["audio"])
        assert report.layout == "esresnext"
        assert report.left_out == report.missing == ["audio.fc.weight", "audio.fc.bias"]
        assert torch.equal(ours.audio.fc.weight, untouched.audio.fc.weight)
        assert all(
            torch.equal(v, source.audio.state_dict()[n])
            for n, v in ours.audio.state_dict().items()
            if not n.startswith("fc.")
        )

    def test_own_state_dict(self, tmp_path):
        source, ours = model(1), model(2)
        torch.save(source.state_dict(), tmp_path / "own.pt")
        load_checkpoint(ours, tmp_path / "own.pt")
        assert same(source, ours, "")

    def test_half_precision_becomes_single(self, tmp_path):
        source, ours = model(1), model(2)
        torch.save({n: v.half() for n, v in flat(source).items()}, tmp_path / "half.pt")
        load_checkpoint(ours, tmp_path / "half.pt", towers=["image", "text"])
        assert {p.dtype for p in ours.parameters()} == {torch.float32}
        torch.testing.assert_close(ours.image.proj, source.image.proj, rtol=1e-3, atol=1e-4)


class TestRefusals:
    def saved(self, tmp_path, change=lambda state: None, towers=("image", "text", "audio")):
        state = flat(model(1), towers)
        change(state)
        torch.save(state, tmp_path / "weights.pt")
        return tmp_path / "weights.pt"

    def refused(self, path, message, **options):
        ours, untouched = model(2), model(2)
        with pytest.raises(ValueError, match=message):
            load_checkpoint(ours, path, **options)
        assert same(untouched, ours, "")

    def test_other_image_tower(self, tmp_path):
        torch.save(flat(create_audioclip("tiny")), tmp_path / "weights.pt")
        self.refused(
            tmp_path / "weights.pt",
            r"does not fit the image, text of this model: \d+ of another shape: image\.class_embedding \[16\], "
            r"expected \[32\].*Is it a file for other towers\?.*take a ViT-B/16 file",
            towers=["image", "text"],
        )

    def test_tower_that_is_not_there(self, tmp_path):
        path = self.saved(tmp_path, towers=("image", "text"))
        self.refused(
            path, r"has no audio tower; it holds image, text \(layout openai\).*AudioCLIP-Full", towers=["audio"]
        )
        path = self.saved(tmp_path, towers=("audio",))
        self.refused(path, r"has no image and no text tower; it holds audio", towers=["image", "text"])

    def test_missing_entry(self, tmp_path):
        path = self.saved(tmp_path, lambda state: state.pop("ln_final.weight"))
        self.refused(path, r"1 missing: text\.ln_final\.weight")

    def test_missing_classifier_of_a_full_file(self, tmp_path):
        path = self.saved(tmp_path, lambda state: state.pop("audio.fc.bias"))
        self.refused(path, r"1 missing: audio\.fc\.bias")

    def test_unexpected_entry(self, tmp_path):
        path = self.saved(tmp_path, lambda state: state.update({"visual.extra": torch.zeros(1)}))
        self.refused(path, r"1 unexpected: image\.extra")

    def test_report_instead(self, tmp_path):
        def change(state):
            state["visual.extra"] = torch.zeros(1)
            del state["ln_final.weight"]

        report = load_checkpoint(model(2), self.saved(tmp_path, change), strict=False)
        assert report.missing == ["text.ln_final.weight"]
        assert report.unexpected == ["image.extra"]
        assert "1 missing: text.ln_final.weight; 1 unexpected: image.extra" in str(report)

    def test_no_clip_at_all(self, tmp_path):
        torch.save({"conv1.weight": torch.zeros(1), "fc.weight": torch.zeros(1)}, tmp_path / "weights.pt")
        self.refused(tmp_path / "weights.pt", "is no checkpoint of CLIP or AudioCLIP: its names .*conv1.weight")

    @pytest.mark.parametrize("towers", ["image", [], ["vision"]])
    def test_unknown_towers(self, tmp_path, towers):
        self.refused(self.saved(tmp_path), "expected a list of some of image, text, audio", towers=towers)

    @pytest.mark.parametrize("name", list(PUBLISHED))
    def test_offline(self, name):
        with pytest.raises(FileNotFoundError, match=r"is no file.*Nothing is downloaded: fetch it from https://"):
            load_checkpoint(model(), name)

    def test_offline_and_unknown(self):
        with pytest.raises(FileNotFoundError, match=r"AudioCLIP's files are at https://github\.com/AndreyGuzhov"):
            load_checkpoint(model(), "weights.pt")

    def test_git_lfs_pointer(self, tmp_path):
        (tmp_path / "CLIP.pt").write_text(
            "version https://git-lfs.github.com/spec/v1\noid sha256:124e\nsize 408415159\n"
        )
        self.refused(tmp_path / "CLIP.pt", "is a pointer of Git LFS and holds no weights")

    def test_torchscript_and_the_way_out(self, tmp_path):
        source, path = model(1), tmp_path / "jit.pt"
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # TorchScript is deprecated, but OpenAI's files are what they are
            torch.jit.trace(source.text, torch.tensor([[1, VOCAB - 1]])).save(str(path))
        assert zipfile.is_zipfile(path)
        with pytest.raises(ValueError, match="it is a TorchScript archive, and loading it would run code") as caught:
            load_checkpoint(model(2), path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            exec(re.search('-c "(.*)"$', str(caught.value))[1])
        state = torch.load(tmp_path / "jit_state_dict.pt", weights_only=True)
        assert state.keys() == source.text.state_dict().keys()


class TestHashes:
    def test_published(self):
        assert {name: entry.sha256[:8] for name, entry in PUBLISHED.items()} == {
            "AudioCLIP-Full-Training.pt": "2441d35b",
            "AudioCLIP-Partial-Training.pt": "1921885b",
            "CLIP.pt": "124e6d59",
            "ESRNXFBSP.pt": "acfcc6b0",
            "ViT-B-16.pt": "5806e77c",
            "RN50.pt": "afeb0e10",
        }
        assert all(re.fullmatch("[0-9a-f]{64}", entry.sha256) for entry in PUBLISHED.values())
        assert all(entry.url.endswith("/" + name) for name, entry in PUBLISHED.items())

    def test_a_published_name_must_have_its_hash(self, tmp_path):
        source = model(1)
        torch.save(flat(source), tmp_path / "CLIP.pt")
        with pytest.raises(
            ValueError, match=r"SHA-256 [0-9a-f]{64}, expected 124e6d59\w+.*download it again from https"
        ):
            load_checkpoint(model(2), tmp_path / "CLIP.pt")
        ours = model(2)
        load_checkpoint(ours, tmp_path / "CLIP.pt", verify=False)
        assert same(source, ours, "image")

    def test_with_its_hash_it_loads(self, tmp_path, monkeypatch):
        torch.save(flat(model(1)), tmp_path / "CLIP.pt")
        entry = checkpoints.Published("https://example.org/CLIP.pt", sha256(tmp_path / "CLIP.pt"))
        monkeypatch.setitem(PUBLISHED, "CLIP.pt", entry)
        assert load_checkpoint(model(2), tmp_path / "CLIP.pt").sha256 == entry.sha256


class TestTextTowerFromAFile:
    def test_has_the_sizes_of_the_file(self, tmp_path):
        torch.manual_seed(0)
        source = TextTower(40, width=128, blocks=2, heads=2, context_length=9, vocab_size=30)
        torch.save(source.state_dict() | {"visual.conv1.weight": torch.zeros(1)}, tmp_path / "text.pt")
        tower = read_text_tower(tmp_path / "text.pt")
        tokens = torch.tensor([[28, 3, 29]])
        torch.testing.assert_close(tower(tokens), source.eval()(tokens))
        assert not any(p.requires_grad for p in tower.parameters())

    def test_file_without_one(self, tmp_path):
        torch.save(model().audio.state_dict(), tmp_path / "audio.pt")
        with pytest.raises(ValueError, match="has no text tower of CLIP"):
            read_text_tower(tmp_path / "audio.pt")
