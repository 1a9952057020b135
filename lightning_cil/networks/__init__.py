"""Networks: backbones that make features, heads that grow, and what freezes parts of them."""

from lightning_cil.networks.autoencoder import Autoencoder
from lightning_cil.networks.backbones import create_backbone, feature_width, load_weights
from lightning_cil.networks.bias_correction import BiasCorrection
from lightning_cil.networks.class_gcn import ClassGCN, GraphNorm
from lightning_cil.networks.class_vectors import class_vectors
from lightning_cil.networks.counters import StepCounter, merge_counters
from lightning_cil.networks.freezing import evaluating, set_trainable
from lightning_cil.networks.frozen_copies import FrozenCopies
from lightning_cil.networks.fusion import AAVFM, ConcatFusion, Fusion
from lightning_cil.networks.growing_list import GrowingList
from lightning_cil.networks.growing_network import GrowingNetwork
from lightning_cil.networks.heads import CosineHead, LinearHead, MultiHead, PrototypeHead
from lightning_cil.networks.label_correlation import CorrelationRule
from lightning_cil.networks.label_graph import LabelGraph
from lightning_cil.networks.last_activation import remove_last_activation
from lightning_cil.networks.memo import MemoBackbone, split_backbone
from lightning_cil.networks.mife import MIFE, Mixtures
from lightning_cil.networks.moe_lora import MoEAdapter
from lightning_cil.networks.neural_gas import NeuralGas
from lightning_cil.networks.peft_format import load_peft, save_peft
from lightning_cil.networks.prompt_pool import PromptedTransformer, PromptPool, transformer_width
from lightning_cil.networks.resnet_cifar import CifarResNet
from lightning_cil.networks.router_selectors import RouterSelector, make_router_selector
from lightning_cil.networks.sharding import copy_unsharded, shard_children, unsharded
from lightning_cil.networks.small import SmallConvNet
from lightning_cil.networks.spec import Backbone
from lightning_cil.networks.stage_maps import MapBackbone
from lightning_cil.networks.task_attention import TaskAttention
from lightning_cil.networks.weight_alignment import align_weights, alignment_factor

__all__ = [
    "AAVFM",
    "MIFE",
    "Autoencoder",
    "Backbone",
    "BiasCorrection",
    "CifarResNet",
    "ClassGCN",
    "ConcatFusion",
    "CorrelationRule",
    "CosineHead",
    "FrozenCopies",
    "Fusion",
    "GraphNorm",
    "GrowingList",
    "GrowingNetwork",
    "LabelGraph",
    "LinearHead",
    "MapBackbone",
    "MemoBackbone",
    "Mixtures",
    "MoEAdapter",
    "MultiHead",
    "NeuralGas",
    "PromptPool",
    "PromptedTransformer",
    "PrototypeHead",
    "RouterSelector",
    "SmallConvNet",
    "StepCounter",
    "TaskAttention",
    "align_weights",
    "alignment_factor",
    "class_vectors",
    "copy_unsharded",
    "create_backbone",
    "evaluating",
    "feature_width",
    "load_peft",
    "load_weights",
    "make_router_selector",
    "merge_counters",
    "remove_last_activation",
    "save_peft",
    "set_trainable",
    "shard_children",
    "split_backbone",
    "transformer_width",
    "unsharded",
]
