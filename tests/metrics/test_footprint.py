import dataclasses
import json
from pathlib import Path

import pytest
import torch
import yaml
from torch import nn
from torchvision.models import resnet18

from lightning_cil.metrics import count_parameters, footprint, megabytes, module_bytes, printed_megabytes
from lightning_cil.networks import Autoencoder, Backbone, LinearHead, MemoBackbone, create_backbone
from lightning_cil.report.paper import read_paper

ROOT = Path(__file__).parents[2]
CIFAR, TINY, IMAGENET = 3 * 32 * 32, 3 * 64 * 64, 3 * 224 * 224
KINDS = {
    "head_parameters": "head",
    "buffer_bytes": "buffers",
    "exemplar_bytes": "exemplars",
    "exemplar_label_bytes": "exemplar_labels",
    "stored_logit_bytes": "stored_logits",
    "prototype_bytes": "prototypes",
    "teacher_bytes": "teacher",
}


@pytest.mark.parametrize(
    ("parameters", "exemplar_bytes", "expected_mb"),
    [
        (11_170_000, 0, 44.68),
        (11_560_000, 0, 46.24),
        (170_600_000, 0, 682.4),
        (86_720_064, 0, 346.880256),
        (0, 20_000 * IMAGENET, 3010.56),
        (11_170_000, 20_000 * IMAGENET, 3055.24),
        (170_600_000, 20_000 * IMAGENET, 3692.96),
        (0, 2_000 * CIFAR, 6.144),
        (0, 2_000 * TINY, 24.576),
    ],
)
def test_paper_account(parameters, exemplar_bytes, expected_mb):
    account = footprint(body_parameters=parameters, exemplar_bytes=exemplar_bytes)
    assert megabytes(account.paper) == pytest.approx(expected_mb, abs=1e-9)


def test_ratios_of_the_paper():
    memo, nfl_plus = footprint(body_parameters=170_600_000).paper, footprint(body_parameters=11_560_000).paper
    assert memo / nfl_plus == pytest.approx(14.75, abs=0.01)
    memo = footprint(body_parameters=170_600_000, exemplar_bytes=20_000 * IMAGENET).paper
    assert memo / nfl_plus == pytest.approx(79.9, abs=0.05)


def test_stored_logits_stand_in_the_full_account_only():
    account = footprint(body_parameters=0, stored_logit_bytes=20_000 * 1_000 * 4)
    assert account.paper == 0
    assert megabytes(account.full["stored_logits"]) == megabytes(account.full["total"]) == 80.0


@pytest.mark.parametrize("argument", KINDS)
def test_each_kind_has_its_own_line(argument):
    line = KINDS[argument]
    size = 28 if argument == "head_parameters" else 7
    account = footprint(body_parameters=3, **{argument: 7})
    expected = {**dict.fromkeys(["body", *KINDS.values()], 0), "body": 12, line: size, "total": 12 + size}
    assert account.full == expected
    assert account.paper == (19 if line == "exemplars" else 12)


def test_dictionary_is_plain_json():
    account = footprint(body_parameters=5, exemplar_bytes=3, teacher_bytes=2)
    stored = account.as_dict()
    assert json.loads(json.dumps(stored)) == stored
    assert stored == {"unit": "bytes", "paper": 23, "full": account.full, "transient": 0}


def test_transient_memory_is_in_neither_account():
    """NFL's last task: 5,000 × 90 recorded logits on CIFAR-100, and the frozen copy of the old heads."""
    recorded, heads = 5_000 * 90 * 4, LinearHead(512)
    heads.grow(90)
    assert count_parameters(heads) == 46_170
    account = footprint(body_parameters=3, transient_bytes=recorded + 4 * 46_170)
    assert account.paper == account.full["total"] == 12
    assert "transient" not in account.full
    assert megabytes(account.as_dict()["transient"]) == pytest.approx(1.8 + 0.18468)


def test_account_is_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        footprint(body_parameters=1).body = 2


@pytest.mark.parametrize("argument", ["body_parameters", *KINDS])
@pytest.mark.parametrize("value", [-1, 1.5, True, None])
def test_sizes_are_checked(argument, value):
    with pytest.raises(ValueError, match=rf"`{argument}={value}` is not a size, expected an integer of at least 0"):
        footprint(**{"body_parameters": 1, argument: value})


def test_module_is_counted_in_the_types_it_has():
    module = nn.Sequential(nn.Linear(3, 4, bias=False), nn.BatchNorm1d(4))
    module[0].weight.requires_grad_(False)
    assert count_parameters(module) == 12 + 8
    assert module_bytes(module) == (80, 2 * 16 + 8)
    assert module_bytes(module.to(torch.bfloat16)) == (40, 2 * 8 + 8)


def test_shared_tensors_count_once():
    first, second = nn.Linear(3, 3), nn.Linear(3, 3)
    second.weight = first.weight
    statistics = torch.zeros(5)
    first.register_buffer("statistics", statistics, persistent=False)
    second.register_buffer("statistics", statistics)
    module = nn.ModuleList([first, second])
    assert count_parameters(module) == 9 + 3 + 3
    assert module_bytes(module) == (60, 20)


def test_module_without_parameters():
    assert count_parameters(nn.Identity()) == 0
    assert module_bytes(nn.Identity()) == (0, 0)


def test_resnet18_has_the_size_of_the_literature():
    with torch.device("meta"):
        model = resnet18()
    head = count_parameters(model.fc)
    model.fc = nn.Identity()
    assert head == 513_000
    assert count_parameters(model) == 11_176_512
    parameters, buffers = module_bytes(model)
    assert parameters == 11_176_512 * 4
    assert buffers == 9_600 * 4 + 20 * 8  # statistics, and the step counters of 20 layers as int64


def test_networks_have_the_printed_sizes():
    """Fig. 5 of NFL, counted on the networks that the methods use; MEMO's figure is that of 20 blocks."""
    with torch.device("meta"):
        body = create_backbone("resnet18", cifar_stem=True)
        single = count_parameters(body)
        nfl_plus = single + count_parameters(Autoencoder(512))
        memo = count_parameters(MemoBackbone(body, blocks=20))
    assert (single, nfl_plus, memo) == (11_168_832, 11_562_048, 170_649_664)
    assert [printed_megabytes(count) for count in (single, nfl_plus, memo)] == [44.68, 46.24, 682.4]
    assert [round(megabytes(4 * count), 2) for count in (single, nfl_plus, memo)] == [44.68, 46.25, 682.6]


@pytest.mark.parametrize(
    ("method", "table", "network_mb", "total_mb"),
    [
        # 3×3 stem: 11,168,832 parameters; NFL+ 393,216 more; MEMO 86,712,384 with 10 blocks, 170,649,664 with 20
        ("NFL", "table4", 44.675328, 44.675328),
        ("NFL+", "table4", 46.248192, 46.248192),
        ("iCaRL", "table4", 44.675328, 50.819328),
        ("MEMO", "table4", 346.849536, 352.993536),
        ("MEMO", "table5", 682.598656, 688.742656),
        ("DER++", "table6", 44.675328, 69.251328),
        # 7×7 stem: 7,680 parameters more
        ("NFL", "table7", 44.706048, 44.706048),
        ("NFL+", "table7", 46.278912, 46.278912),
        ("Coil", "table7", 44.706048, 3055.266048),
        ("MEMO", "table7", 346.880256, 3357.440256),
    ],
)
def test_cells_of_nfls_tables(method, table, network_mb, total_mb):
    """Network and exemplars of a cell by its configs, as Fig. 5 counts them."""
    paper = read_paper("nfl")
    (cell,) = [cell for cell in paper.tables[table].cells if cell.label == method]
    protocol = yaml.safe_load((ROOT / cell.configs(paper.examples)[1]).read_text(encoding="utf-8"))
    backbone = protocol["model"]["init_args"]["backbone"]
    with torch.device("meta"):
        body = (Backbone(**backbone) if isinstance(backbone, dict) else Backbone(backbone)).build()
        if method == "MEMO":
            body = MemoBackbone(body, blocks=len(cell.protocol.task_sizes))
        parameters = count_parameters(body) + (count_parameters(Autoencoder(512)) if method == "NFL+" else 0)
    image = {"SplitCIFAR100": CIFAR, "SplitTinyImageNet": TINY, "SplitImageNet": IMAGENET}[cell.protocol.data]
    account = footprint(body_parameters=parameters, exemplar_bytes=(cell.memory or 0) * image)
    assert megabytes(4 * parameters) == pytest.approx(network_mb, abs=1e-9)
    assert megabytes(account.paper) == pytest.approx(total_mb, abs=1e-9)
