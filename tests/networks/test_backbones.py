import hashlib
import os
import pickle
import subprocess
import sys

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import nn

from lightning_cil.networks import CifarResNet, SmallConvNet, create_backbone, feature_width, load_weights


def count(module):
    return sum(p.numel() for p in module.parameters())


def same_weights(a, b):
    a, b = a.state_dict(), b.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.fixture
def source():
    """A backbone with values, BatchNorm statistics included, that no fresh one has."""
    net = create_backbone("resnet20")
    net(torch.randn(4, 3, 8, 8))
    return net


class TestByName:
    @pytest.mark.parametrize("depth", [20, 32, 44, 56, 110])
    def test_own_resnets(self, depth):
        net = create_backbone(f"resnet{depth}", in_channels=1)
        assert isinstance(net, CifarResNet)
        assert count(net) == count(CifarResNet(depth, in_channels=1))
        assert net.weights_sha256 is None

    def test_small_cnn(self):
        net = create_backbone("small_cnn", in_channels=1)
        assert isinstance(net, SmallConvNet)
        assert net(torch.zeros(2, 1, 8, 8)).shape == (2, net.num_features)

    # Families whose width behind the last layer is not timm's `num_features` are among them.
    @pytest.mark.parametrize(
        "name", ["resnet18", "mobilenetv3_small_050", "lcnet_035", "ghostnet_050", "test_vit", "test_convnext"]
    )
    def test_num_features_is_the_outputs_width(self, name):
        net = create_backbone(name).eval()
        size = net.pretrained_cfg["input_size"][1:]
        with torch.no_grad():
            features = net(torch.zeros(2, 3, *size))
        assert features.shape == (2, net.num_features)
        assert net.weights_sha256 is None

    def test_timm_takes_other_channels(self):
        net = create_backbone("resnet18", in_channels=5).eval()
        with torch.no_grad():
            assert net(torch.zeros(1, 5, 32, 32)).shape == (1, 512)

    @pytest.mark.parametrize(
        ("name", "close"),
        [
            ("resnet23", "'resnet32'"),
            ("ResNet18", "'resnet18'"),
            ("small_cn", "'small_cnn'"),
            ("vit_base_patch16_22", "'vit_base_patch16_224'"),
            ("resnet18.a1_in2k", "'resnet18.a1_in1k'"),
        ],
    )
    def test_unknown_name_says_what_is_close(self, name, close):
        with pytest.raises(ValueError, match=r"or a timm model\. Close to it: ") as caught:
            create_backbone(name)
        assert f"`name={name!r}`" in str(caught.value)
        assert close in str(caught.value)

    @pytest.mark.parametrize("name", ["", "hf-hub:someone/something", "local-dir:/tmp"])
    def test_names_that_would_load_from_elsewhere_are_unknown(self, name):
        with pytest.raises(ValueError, match="expected one of resnet20"):
            create_backbone(name)


class TestResNetStart:
    @pytest.mark.parametrize(("cifar_stem", "parameters"), [(True, 11_168_832), (False, 11_176_512)])
    def test_resnet18_body_parameters(self, cifar_stem, parameters):
        net = create_backbone("resnet18", cifar_stem=cifar_stem)
        assert count(net) == parameters
        assert sum(b.numel() for b in net.buffers()) == 9620

    def test_cifar_stem_keeps_the_map(self):
        net = create_backbone("resnet18", cifar_stem=True, in_channels=1).eval()
        maps = {}
        for name in ("layer1", "layer4"):
            net.get_submodule(name).register_forward_hook(lambda m, a, out, name=name: maps.update({name: out.shape}))
        with torch.no_grad():
            net(torch.zeros(1, 1, 32, 32))
        assert maps["layer1"][2:] == (32, 32)
        assert maps["layer4"][2:] == (4, 4)

    @pytest.mark.parametrize("cifar_stem", [True, False])
    def test_he_normal_and_no_residual_batchnorm_at_zero(self, cifar_stem):
        torch.manual_seed(0)
        net = create_backbone("resnet18", cifar_stem=cifar_stem)
        convolutions = [m for m in net.modules() if isinstance(m, nn.Conv2d)]
        assert len(convolutions) == 20
        for conv in convolutions:
            fan_out = conv.out_channels * conv.kernel_size[0] ** 2
            assert conv.weight.std().item() == pytest.approx((2 / fan_out) ** 0.5, rel=0.05)
        norms = [m for m in net.modules() if isinstance(m, nn.BatchNorm2d)]
        assert len(norms) == 20
        assert all((m.weight == 1).all() and (m.bias == 0).all() for m in norms)
        zeros = [m for m in timm.create_model("resnet18").modules() if isinstance(m, nn.BatchNorm2d)]
        assert any((m.weight == 0).all() for m in zeros)  # else there is nothing left to switch off

    @pytest.mark.parametrize("name", ["test_vit", "test_convnext", "resnet18d", "test_resnet"])
    def test_cifar_stem_needs_the_plain_stem(self, name):
        with pytest.raises(ValueError, match=f"`cifar_stem=True` for '{name}', expected a timm ResNet"):
            create_backbone(name, cifar_stem=True)

    @pytest.mark.parametrize("name", ["resnet20", "small_cnn"])
    def test_own_backbones_have_a_small_stem_anyway(self, name):
        assert count(create_backbone(name, cifar_stem=True)) == count(create_backbone(name))


class TestPretrained:
    def test_loads_through_timm(self, monkeypatch):
        create = timm.create_model
        calls = []

        def downloaded(name, pretrained, **kwargs):
            calls.append((name, pretrained, kwargs))
            return create(name, pretrained=False, **kwargs)

        monkeypatch.setattr(timm, "create_model", downloaded)
        net = create_backbone("resnet18", pretrained=True, in_channels=1)
        assert calls == [("resnet18", True, {"num_classes": 0, "in_chans": 1})]
        # The published values stay: here timm's zeros in the residual BatchNorm.
        assert (net.layer1[0].bn2.weight == 0).all()

    @pytest.mark.parametrize("error", [ConnectionError("no route\nto host"), RuntimeError("no route"), KeyError()])
    def test_offline_names_the_way_out(self, monkeypatch, error):
        def offline(*args, **kwargs):
            raise error

        monkeypatch.setattr(timm, "create_model", offline)
        with pytest.raises(RuntimeError, match=r"weights of 'resnet18' \(") as caught:
            create_backbone("resnet18", pretrained=True)
        assert "give it as `weights=`" in str(caught.value)
        assert type(error).__name__ in str(caught.value)
        assert "\n" not in str(caught.value)
        assert caught.value.__cause__ is error

    def test_other_errors_are_not_blamed_on_the_network(self, monkeypatch):
        def broken(*args, **kwargs):
            raise KeyError("bug")

        monkeypatch.setattr(timm, "create_model", broken)
        with pytest.raises(KeyError, match="bug"):
            create_backbone("resnet18")

    def test_models_without_published_weights(self):
        with pytest.raises(ValueError, match="'resnet32', which has no published weights"):
            create_backbone("resnet32", pretrained=True)
        name = sorted(set(timm.list_models()) - {tagged.partition(".")[0] for tagged in timm.list_pretrained()})[0]
        with pytest.raises(ValueError, match=f"'{name}', of which timm has no weights"):
            create_backbone(name, pretrained=True)

    def test_impossible_combinations(self):
        with pytest.raises(ValueError, match=r"`pretrained=True` and `weights='a\.pth'`"):
            create_backbone("resnet18", pretrained=True, weights="a.pth")
        with pytest.raises(ValueError, match="`pretrained=True` and `cifar_stem=True`"):
            create_backbone("resnet18", pretrained=True, cifar_stem=True)


class TestLocalWeights:
    @pytest.mark.parametrize("suffix", [".pth", ".pt", ".ckpt"])
    @pytest.mark.parametrize("wrap", [lambda s: s, lambda s: {"state_dict": s}, lambda s: {"model": s, "epoch": 3}])
    def test_round_trip(self, source, tmp_path, suffix, wrap):
        path = tmp_path / f"weights{suffix}"
        torch.save(wrap(source.state_dict()), path)
        net = create_backbone("resnet20", weights=str(path))
        assert same_weights(net, source)
        assert net.weights_sha256 == hashlib.sha256(path.read_bytes()).hexdigest()

    def test_safetensors(self, source, tmp_path):
        path = tmp_path / "weights.safetensors"
        save_file(source.state_dict(), path)
        net = create_backbone("resnet20", weights=str(path))
        assert same_weights(net, source)
        assert net.weights_sha256 == hashlib.sha256(path.read_bytes()).hexdigest()

    def test_format_from_before_torch_1_6(self, source, tmp_path):
        path = tmp_path / "weights.pth"
        torch.save(source.state_dict(), path, _use_new_zipfile_serialization=False)
        assert same_weights(create_backbone("resnet20", weights=str(path)), source)

    def test_home_folder(self, source, tmp_path, monkeypatch):
        monkeypatch.setenv("HOME", str(tmp_path))
        torch.save(source.state_dict(), tmp_path / "weights.pth")
        assert same_weights(create_backbone("resnet20", weights="~/weights.pth"), source)

    @pytest.mark.parametrize("prefix", ["module.", "backbone.", "module.backbone.", "backbone.module."])
    @pytest.mark.parametrize("classifier", ["fc.weight", "classifier.0.bias", "head.weight"])
    def test_prefixes_and_classifiers_go(self, source, tmp_path, prefix, classifier):
        state = {prefix + name: value for name, value in source.state_dict().items()}
        state[classifier] = state["module." + classifier] = torch.zeros(10)
        torch.save(state, tmp_path / "weights.pth")
        assert same_weights(create_backbone("resnet20", weights=str(tmp_path / "weights.pth")), source)

    def test_torchvision_resnet18(self, tmp_path):
        torchvision = pytest.importorskip("torchvision")
        source = torchvision.models.resnet18().eval()
        torch.save(source.state_dict(), tmp_path / "weights.pth")
        net = create_backbone("resnet18", weights=str(tmp_path / "weights.pth")).eval()
        source.fc = nn.Identity()
        x = torch.randn(2, 3, 64, 64)
        with torch.no_grad():
            torch.testing.assert_close(net(x), source(x))

    def test_body_entries_named_head_are_loaded(self, tmp_path):
        source = create_backbone("test_convnext")
        assert "head.norm.weight" in source.state_dict()
        nn.init.normal_(source.head.norm.weight)
        torch.save({**source.state_dict(), "head.fc.weight": torch.zeros(3, 3)}, tmp_path / "weights.pth")
        assert same_weights(create_backbone("test_convnext", weights=str(tmp_path / "weights.pth")), source)

    def test_files_without_batch_counters(self, source, tmp_path):
        state = {name: value for name, value in source.state_dict().items() if "num_batches" not in name}
        torch.save(state, tmp_path / "weights.pth")
        net = create_backbone("resnet20", weights=str(tmp_path / "weights.pth"))
        assert torch.equal(net.bn1.running_mean, source.bn1.running_mean)

    def test_half_precision_becomes_float(self, source, tmp_path):
        torch.save({name: value.half() for name, value in source.state_dict().items()}, tmp_path / "weights.pth")
        net = create_backbone("resnet20", weights=str(tmp_path / "weights.pth"))
        assert net.conv1.weight.dtype == torch.float32
        torch.testing.assert_close(net.conv1.weight, source.conv1.weight, rtol=1e-3, atol=1e-4)

    def test_file_may_go_once_loaded(self, source, tmp_path):
        path = tmp_path / "weights.pth"
        torch.save(source.state_dict(), path)
        net = create_backbone("resnet20", weights=str(path))
        with path.open("r+b") as file:
            file.write(bytes(path.stat().st_size))
        assert same_weights(net, source)


class TestWeightsThatDoNotFit:
    def check(self, state, path, match, name="resnet20"):
        torch.save(state, path)
        net = create_backbone(name)
        before = {key: value.clone() for key, value in net.state_dict().items()}
        with pytest.raises(ValueError, match=match) as caught:
            load_weights(net, path)
        assert all(torch.equal(before[key], value) for key, value in net.state_dict().items())
        assert str(path) in str(caught.value)
        assert "\n" not in str(caught.value)

    def test_missing(self, source, tmp_path):
        state = source.state_dict()
        del state["layer1.0.conv1.weight"], state["bn1.bias"]
        self.check(state, tmp_path / "a.pth", r"2 missing: bn1\.bias, layer1\.0\.conv1\.weight\. Give")

    def test_unexpected(self, source, tmp_path):
        state = {**source.state_dict(), "header.weight": torch.zeros(1), "layer4.weight": torch.zeros(1)}
        self.check(state, tmp_path / "a.pth", r"2 unexpected: header\.weight, layer4\.weight\. Give")

    def test_shapes(self, tmp_path):
        state = create_backbone("resnet20", in_channels=1).state_dict()
        match = r"1 of another shape: conv1\.weight \[16, 1, 3, 3\], expected \[16, 3, 3, 3\]\. Give"
        self.check(state, tmp_path / "a.pth", match)

    def test_another_model(self, tmp_path):
        self.check(create_backbone("small_cnn").state_dict(), tmp_path / "a.pth", r"missing: .* and \d+ more; 5 unexp")

    def test_entries_that_are_the_same_without_prefix(self, source, tmp_path):
        state = {**source.state_dict(), "module.bn1.bias": torch.zeros(16)}
        self.check(state, tmp_path / "a.pth", r"several entries for `bn1\.bias`")

    @pytest.mark.parametrize(
        ("content", "given"),
        [
            ([torch.zeros(1)], "list"),
            ({"epoch": 3, "net": {"a": torch.zeros(1)}}, "a mapping of epoch, net"),
            ({}, "a mapping of "),
            ({"state_dict": {"a": 1.0}}, "a mapping of a"),
        ],
        ids=str,
    )
    def test_no_state_dict(self, content, given, tmp_path):
        self.check(content, tmp_path / "a.pth", f"holds {given}, expected a state dict")


class RunsCode:
    """A pickle of this makes a file when it is loaded."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


class TestUnsafeAndDamagedFiles:
    def test_the_pickle_would_run_code(self, tmp_path):
        pickle.loads(pickle.dumps(RunsCode(tmp_path / "ran")))
        assert (tmp_path / "ran").exists()  # else the next test proves nothing

    @pytest.mark.parametrize("zipped", [True, False])
    @pytest.mark.parametrize("suffix", [".pth", ".pt", ".bin"])
    def test_code_is_refused(self, tmp_path, zipped, suffix):
        path = tmp_path / f"weights{suffix}"
        content = {"state_dict": RunsCode(tmp_path / "ran")}
        if zipped:
            torch.save(content, path)
        else:
            path.write_bytes(pickle.dumps(content, protocol=2))
        with pytest.raises(ValueError, match=r"was refused: .* could run code") as caught:
            create_backbone("small_cnn", weights=str(path))
        assert not (tmp_path / "ran").exists()
        assert "weights_only" not in str(caught.value)  # no advice to switch the safety off

    def test_code_is_refused_whatever_the_environment_says(self, tmp_path, monkeypatch):
        monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
        torch.save(RunsCode(tmp_path / "ran"), tmp_path / "weights.pth")
        with pytest.raises(ValueError, match="was refused"):
            create_backbone("small_cnn", weights=str(tmp_path / "weights.pth"))
        assert not (tmp_path / "ran").exists()

    def test_whole_modules_are_refused(self, tmp_path):
        torch.save(SmallConvNet(), tmp_path / "weights.pth")
        with pytest.raises(ValueError, match=r"Unsupported global: GLOBAL lightning_cil\.networks\.small\."):
            create_backbone("small_cnn", weights=str(tmp_path / "weights.pth"))

    @pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
    @pytest.mark.parametrize("content", [b"", b"<html>not found</html>", b"version https://git-lfs.github.com/spec/v1"])
    def test_other_files(self, tmp_path, suffix, content):
        path = tmp_path / f"weights{suffix}"
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"refused|could not be read"):
            create_backbone("small_cnn", weights=str(path))

    @pytest.mark.parametrize("suffix", [".pth", ".safetensors", ".legacy"])
    def test_half_a_download(self, tmp_path, suffix):
        path, state = tmp_path / f"weights{suffix}", SmallConvNet(in_channels=3).state_dict()
        if suffix == ".safetensors":
            save_file(state, path)
        else:
            torch.save(state, path, _use_new_zipfile_serialization=suffix == ".pth")
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        with pytest.raises(ValueError, match="Is the download complete"):
            create_backbone("small_cnn", weights=str(path))

    @pytest.mark.parametrize("weights", ["nowhere.pth", "."])
    def test_no_file(self, weights):
        with pytest.raises(FileNotFoundError, match="is no file, expected one that"):
            create_backbone("small_cnn", weights=weights)


class TestFeatureWidth:
    def test_reads_num_features(self):
        assert feature_width(SmallConvNet()) == 256

    @pytest.mark.parametrize("width", [None, 0, 2.5, "64"])
    def test_says_what_is_missing(self, width):
        net = nn.Identity()
        if width is not None:
            net.num_features = width
        with pytest.raises(TypeError, match=r"The backbone Identity has `num_features=.* set it in"):
            feature_width(net)


def test_import_is_light():
    code = (
        "import sys, lightning_cil.networks as n; n.create_backbone('resnet20'); "
        "print([m for m in ('timm', 'torchvision', 'lightning', 'safetensors') if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"
