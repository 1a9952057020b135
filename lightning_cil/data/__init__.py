"""Data as streams of tasks: the protocols, and the parts to build another one."""

from lightning_cil.data.aric import AricLike
from lightning_cil.data.audio import AudioClips, AudioFormat
from lightning_cil.data.augment import BatchAugment
from lightning_cil.data.base import IncrementalDataModule
from lightning_cil.data.cifar import SplitCIFAR10, SplitCIFAR100
from lightning_cil.data.digits import SplitDigits
from lightning_cil.data.folder import ImageFolderTasks
from lightning_cil.data.imagenet import SplitImageNet
from lightning_cil.data.images import FileImages, TensorImages
from lightning_cil.data.loader import StreamLoader
from lightning_cil.data.manifest import ManifestTasks
from lightning_cil.data.mnist import SplitFashionMNIST, SplitMNIST
from lightning_cil.data.paired import ImageNetESC
from lightning_cil.data.splits import class_order, task_sizes
from lightning_cil.data.spoken_digits import SpokenDigits
from lightning_cil.data.tinyimagenet import SplitTinyImageNet

__all__ = [
    "AricLike",
    "AudioClips",
    "AudioFormat",
    "BatchAugment",
    "FileImages",
    "ImageFolderTasks",
    "ImageNetESC",
    "IncrementalDataModule",
    "ManifestTasks",
    "SplitCIFAR10",
    "SplitCIFAR100",
    "SplitDigits",
    "SplitFashionMNIST",
    "SplitImageNet",
    "SplitMNIST",
    "SplitTinyImageNet",
    "SpokenDigits",
    "StreamLoader",
    "TensorImages",
    "class_order",
    "task_sizes",
]
