"""Replay: the rules of what a buffer keeps and gives back, as plain algorithms on tensors."""

from lightning_cil.replay.draw import draw_rows
from lightning_cil.replay.herding import herding, herding_inner_product
from lightning_cil.replay.nme import ClassMeans, class_means, nearest_mean_scores
from lightning_cil.replay.quotas import Remainder, class_quotas, first_per_class
from lightning_cil.replay.random_choice import random_choice
from lightning_cil.replay.relabel import fill_unknown, label_blocks, quota_cutoff
from lightning_cil.replay.reservoir import last_writers, reservoir_slots
from lightning_cil.replay.storage import ExemplarStore

__all__ = [
    "ClassMeans",
    "ExemplarStore",
    "Remainder",
    "class_means",
    "class_quotas",
    "draw_rows",
    "fill_unknown",
    "first_per_class",
    "herding",
    "herding_inner_product",
    "label_blocks",
    "last_writers",
    "nearest_mean_scores",
    "quota_cutoff",
    "random_choice",
    "reservoir_slots",
]
