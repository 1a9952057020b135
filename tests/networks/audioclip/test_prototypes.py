"""Templates, class prototypes, and when kept prototypes are computed anew."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lightning_cil.networks.audioclip import (
    TEMPLATES,
    TextPrototypes,
    Tokenizer,
    WeightState,
    create_audioclip,
    fill,
)

NAMES = ["dog", "sea_waves", "computer keyboard"]


@pytest.fixture
def model():
    torch.manual_seed(0)
    return create_audioclip("tiny").eval()


def prototypes(names=NAMES, **options):
    made = TextPrototypes(Tokenizer(258, 96), **options)
    made.set_classes(names)
    return made


class TestTemplates:
    def test_there_are_35_different_ones_with_one_place(self):
        assert len(TEMPLATES) == len(set(TEMPLATES)) == 35
        assert all(template.count("{}") == 1 for template in TEMPLATES)

    def test_are_short_enough_for_clip(self):
        # A byte is at most one token: 70 of them leave room for start and end.
        longest = max(len(text) for text in fill(["computer keyboard"]))
        assert longest <= 70
        Tokenizer(258, 77).encode(fill(["computer keyboard"]))

    def test_are_filled_class_by_class(self):
        assert fill(NAMES[:2], ["a {}.", "{} here"]) == ["a dog.", "dog here", "a sea waves.", "sea waves here"]

    @pytest.mark.parametrize("templates", [[], "a {}.", ["a dog"], ["{} and {}"]])
    def test_bad_templates(self, templates):
        with pytest.raises(ValueError, match=r"expected (a list of at least one text|one, as in)"):
            TextPrototypes(Tokenizer(258, 96), templates)

    def test_class_without_a_name(self):
        with pytest.raises(ValueError, match="A class has the name ' '"):
            prototypes(["dog", " "])


@torch.no_grad()
def literal(model, names, templates):
    rows = []
    for name in names:
        features = []
        for template in templates:
            tokens = Tokenizer(258, 96).encode([template.format(name.replace("_", " "))])
            features.append(F.normalize(model.text(tokens)[0], dim=0))
        rows.append(F.normalize(torch.stack(features).mean(dim=0), dim=0))
    return torch.stack(rows)


class TestValues:
    @pytest.mark.parametrize("templates", [TEMPLATES, TEMPLATES[:1]])
    @pytest.mark.parametrize("chunk_size", [None, 1, 7])
    def test_are_means_normalised_twice(self, model, templates, chunk_size):
        with torch.no_grad():
            found = prototypes(templates=templates, chunk_size=chunk_size)(model)
        torch.testing.assert_close(found, literal(model, NAMES, templates))
        assert found.shape == (3, 32)

    @pytest.mark.parametrize("options", [{"chunk_size": 8}, {"recompute": True}, {"chunk_size": 8, "recompute": True}])
    def test_gradients_in_parts_are_the_gradients(self, model, options):
        model.train()
        target = torch.randn(3, 32)

        def gradients(**options):
            model.zero_grad()
            (prototypes(templates=TEMPLATES[:5], **options)(model) * target).sum().backward()
            return [p.grad.clone() for p in model.text.parameters()]

        for found, expected in zip(gradients(**options), gradients(), strict=True):
            torch.testing.assert_close(found, expected)

    def test_more_classes_are_appended(self, model):
        growing = prototypes(NAMES[:1])
        with torch.no_grad():
            first = growing(model)
            growing.set_classes(NAMES)
            torch.testing.assert_close(growing(model), prototypes()(model))
            torch.testing.assert_close(growing(model)[:1], first)
            growing.set_classes(["cat", "dog"])  # another list
            torch.testing.assert_close(growing(model), prototypes(["cat", "dog"])(model))

    def test_classes_that_stay_are_not_tokenised_anew(self, monkeypatch):
        growing = prototypes(NAMES[:2])
        seen = []
        monkeypatch.setattr(growing.tokenizer, "encode", lambda texts: seen.extend(texts) or torch.ones(35, 96).long())
        growing.set_classes(NAMES)
        assert len(seen) == 35
        assert all("computer keyboard" in text for text in seen)


class TestSample:
    def test_draws_some_templates_of_each_class_by_step(self, model):
        model.text.train()
        sampled = prototypes(sample=2)
        with torch.no_grad():
            first, again, other = (sampled(model, step=step) for step in (0, 0, 1))
            assert torch.equal(first, again)
            assert not torch.allclose(first, other)
            # Each prototype is the mean of two of the 35.
            features = model.encode_text(Tokenizer(258, 96).encode(fill(NAMES))).view(3, 35, -1)
        pairs = [(i, j) for i in range(35) for j in range(i)]
        drawn = []
        for c in range(3):
            means = torch.stack([F.normalize(features[c, i] + features[c, j], dim=0) for i, j in pairs])
            distance = (means - first[c]).abs().amax(dim=1)
            assert distance.min() < 1e-5
            drawn.append(pairs[int(distance.argmin())])
        assert len(set(drawn)) > 1

    def test_every_template_is_drawn_as_often(self):
        sampled = prototypes(["dog"], sample=7)
        counts = torch.zeros(35)
        rows = {tuple(row.tolist()): i for i, row in enumerate(sampled._tokens[0])}
        for step in range(500):
            drawn = [rows[tuple(row.tolist())] for row in sampled._draw(step)[0]]
            assert len(set(drawn)) == 7
            counts[drawn] += 1
        # 500 draws with probability 1/5: standard deviation 9.
        assert counts.sub(100).abs().max() < 45

    def test_evaluation_uses_all_templates(self, model):
        with torch.no_grad():
            torch.testing.assert_close(prototypes(sample=2)(model), prototypes()(model))


class Counting(nn.Module):
    """An adapter that adds its weight and counts in a buffer, in train mode only."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(16))
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))

    def forward(self, h, gate):
        if self.training:
            self.calls += 1
        return self.weight * gate[:, None]


def changes():
    def optimizer(model):
        for parameter in model.text.parameters():
            parameter.grad = torch.ones_like(parameter)
        torch.optim.AdamW(model.text.parameters(), lr=0.1).step()

    def fused(model):
        for parameter in model.text.parameters():
            parameter.grad = torch.ones_like(parameter)
        torch.optim.AdamW(model.text.parameters(), lr=0.1, fused=True).step()

    def load(model):
        model.load_state_dict({n: v + 1 for n, v in model.state_dict().items()})

    def one_entry(model):
        with torch.no_grad():
            model.text.ln_final.weight[3] += 1.0

    def another_parameter(model):
        model.text.text_projection = nn.Parameter(torch.randn_like(model.text.text_projection))

    def adapter(model):
        model.text.transformer.blocks()[0].adapter = Counting()

    def other_data(model):
        model.text.text_projection.data = torch.randn_like(model.text.text_projection)

    return {f.__name__: f for f in (optimizer, fused, load, one_entry, another_parameter, adapter, other_data)}


class TestKept:
    @pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
    def test_while_nothing_changes(self, model, mode):
        made = prototypes()
        with mode():
            kept = made(model)
            model.encode_text(torch.tensor([[256, 1, 257]]))
            assert made(model) is kept
        assert not kept.is_inference()

    @pytest.mark.parametrize("change", list(changes()))
    def test_until_a_weight_changes(self, model, change):
        made = prototypes()
        with torch.no_grad():
            before = made(model).clone()
        changes()[change](model)
        with torch.no_grad():
            found = made(model)
            assert not torch.allclose(found, before)
            assert torch.equal(found, prototypes()(model))

    def test_also_a_weight_of_an_adapter(self, model):
        made = prototypes()
        adapter = model.text.transformer.blocks()[0].adapter = Counting()
        with torch.no_grad():
            before = made(model).clone()
            adapter.weight.mul_(2)
            assert not torch.allclose(made(model), before)

    def test_other_towers_do_not_matter(self, model):
        made = prototypes()
        with torch.no_grad():
            kept = made(model)
            model.image.proj.add_(1)
            assert made(model) is kept

    def test_weights_behind_the_counters_back(self, model):
        """`.data` raises no version counter: only the content tells, or `clear`."""
        with torch.no_grad():
            by_content, cleared = prototypes(check="content"), prototypes()
            before = by_content(model).clone(), cleared(model)
            model.text.text_projection.data[0, 0] += 5
            expected = prototypes()(model)
            assert torch.equal(by_content(model), expected)
            cleared.clear()
            assert torch.equal(cleared(model), expected)
            assert not torch.allclose(before[0], expected)
            assert by_content(model) is by_content(model)

    def test_after_a_round_trip_of_training(self, model):
        made = prototypes()
        with torch.no_grad():
            kept = made(model)
            model.train()
            model.eval()
            assert made(model) is kept

    def test_of_another_model(self, model):
        made, other = prototypes(), create_audioclip("tiny").eval()
        with torch.no_grad():
            assert not torch.allclose(made(model), made(other))

    def test_key_and_autocast_tell_results_apart(self, model):
        made = prototypes()
        with torch.no_grad():
            first = made(model, key="router 1")
            assert made(model, key="router 1") is first
            assert made(model, key="router 2") is not first
            with torch.autocast("cpu", dtype=torch.bfloat16):
                half = made(model, key="router 2")
            assert made(model, key="router 2") is not half

    def test_frozen_text_tower_is_computed_once_in_training_steps_too(self, model):
        model.text.requires_grad_(False)
        made = prototypes()
        kept = made(model)
        assert made(model, step=1) is kept

    def test_training_is_never_kept(self, model):
        made = prototypes()
        assert made(model) is not made(model)  # gradients asked for
        model.train()
        with torch.no_grad():
            assert made(model) is not made(model)

    def test_a_copy_keeps_nothing(self, model):
        made = prototypes()
        with torch.no_grad():
            made(model)
        assert copy.deepcopy(made)._kept is None


class TestWeightState:
    def test_content_notices_an_exchange_of_two_values(self):
        weight = torch.tensor([1.0, 2.0, 3.0])
        state = WeightState([weight], content=True)
        assert state.matches([weight])
        weight.data.copy_(torch.tensor([2.0, 1.0, 3.0]))
        assert not state.matches([weight])

    @pytest.mark.parametrize("options", [{"fused": True}, {"foreach": True}, {"foreach": False}])
    def test_steps_of_optimizers(self, options):
        """Fused ones raise no version counter."""
        weight, frozen = nn.Parameter(torch.ones(3)), torch.ones(3)
        states = WeightState([weight]), WeightState([frozen])
        weight.grad = torch.ones(3)
        torch.optim.SGD([weight], lr=0.1, **options).step()
        assert not states[0].matches([weight])
        assert states[1].matches([frozen])
        assert WeightState([weight]).matches([weight])

    def test_other_tensors_never_match(self):
        weight = torch.ones(3)
        assert not WeightState([weight]).matches([weight.clone()])
        assert not WeightState([weight]).matches([weight, weight])
        with torch.inference_mode():
            made = torch.ones(3)
        assert not WeightState([made]).matches([made])  # has no counter

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64, torch.bool, torch.int64])
    def test_content_of_any_type(self, dtype):
        weight = torch.ones(5, dtype=dtype)
        state = WeightState([weight], content=True)
        assert state.matches([weight])
        weight.data[4] = 0
        assert not state.matches([weight])
