"""Networks: backbones that make features, heads that grow, and what freezes parts of them."""

from lightning_cil.networks.autoencoder import Autoencoder
from lightning_cil.networks.backbones import create_backbone, feature_width, load_weights
from lightning_cil.networks.bias_correction import BiasCorrection
from lightning_cil.networks.counters import StepCounter, merge_counters
from lightning_cil.networks.freezing import evaluating, set_trainable
from lightning_cil.networks.frozen_copies import FrozenCopies
from lightning_cil.networks.fusion import AAVFM, ConcatFusion, Fusion
from lightning_cil.networks.growing_list import GrowingList
from lightning_cil.networks.heads import CosineHead, LinearHead, MultiHead, PrototypeHead
from lightning_cil.networks.memo import MemoBackbone, split_backbone
from lightning_cil.networks.mife import MIFE, Mixtures
from lightning_cil.networks.moe_lora import MoEAdapter
from lightning_cil.networks.peft_format import load_peft, save_peft
from lightning_cil.networks.resnet_cifar import CifarResNet
from lightning_cil.networks.router_selectors import RouterSelector, make_router_selector
from lightning_cil.networks.sharding import copy_unsharded, shard_children, unsharded
from lightning_cil.networks.small import SmallConvNet
from lightning_cil.networks.spec import Backbone
from lightning_cil.networks.weight_alignment import align_weights, alignment_factor

__all__ = [
    "AAVFM",
    "MIFE",
    "Autoencoder",
    "Backbone",
    "BiasCorrection",
    "CifarResNet",
    "ConcatFusion",
    "CosineHead",
    "FrozenCopies",
    "Fusion",
    "GrowingList",
    "LinearHead",
    "MemoBackbone",
    "Mixtures",
    "MoEAdapter",
    "MultiHead",
    "PrototypeHead",
    "RouterSelector",
    "SmallConvNet",
    "StepCounter",
    "align_weights",
    "alignment_factor",
    "copy_unsharded",
    "create_backbone",
    "evaluating",
    "feature_width",
    "load_peft",
    "load_weights",
    "make_router_selector",
    "merge_counters",
    "save_peft",
    "set_trainable",
    "shard_children",
    "split_backbone",
    "unsharded",
]
