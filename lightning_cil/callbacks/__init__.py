"""Trainer-time behaviour: memory, old model, staged freezing, and what a run writes and shows."""

from lightning_cil.callbacks.activation_maps import ActivationMapRecords
from lightning_cil.callbacks.base import StreamCallback
from lightning_cil.callbacks.checkpoint import StreamCheckpoint
from lightning_cil.callbacks.continual_evaluation import ContinualEvaluation
from lightning_cil.callbacks.feature_records import FeatureRecords
from lightning_cil.callbacks.finite_loss import FiniteLoss, NonFiniteError
from lightning_cil.callbacks.freezing import StagedFreezing
from lightning_cil.callbacks.interruption import Interruption
from lightning_cil.callbacks.live_figures import LiveFigures
from lightning_cil.callbacks.monitors import EarlyStopping, ModelCheckpoint
from lightning_cil.callbacks.other_classifier import OtherClassifier
from lightning_cil.callbacks.progress import StreamProgressBar
from lightning_cil.callbacks.random_state import RandomState
from lightning_cil.callbacks.records import PredictionRecords
from lightning_cil.callbacks.relabel import OnlineRelabel
from lightning_cil.callbacks.replay import ReplayBuffer
from lightning_cil.callbacks.results import ResultsWriter
from lightning_cil.callbacks.stream_state import StreamState
from lightning_cil.callbacks.summary import StreamSummary
from lightning_cil.callbacks.teacher import Teacher

__all__ = [
    "ActivationMapRecords",
    "ContinualEvaluation",
    "EarlyStopping",
    "FeatureRecords",
    "FiniteLoss",
    "Interruption",
    "LiveFigures",
    "ModelCheckpoint",
    "NonFiniteError",
    "OnlineRelabel",
    "OtherClassifier",
    "PredictionRecords",
    "RandomState",
    "ReplayBuffer",
    "ResultsWriter",
    "StagedFreezing",
    "StreamCallback",
    "StreamCheckpoint",
    "StreamProgressBar",
    "StreamState",
    "StreamSummary",
    "Teacher",
]
