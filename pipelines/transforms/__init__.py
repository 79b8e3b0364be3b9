"""Vectorised functions over columns, to be given to `Pipeline.map`.

What they share is in `base.py`; each verb has a file of its own.
"""

from intune.pipelines.transforms.base import ColumnTransform, Transform
from intune.pipelines.transforms.bucketize import Bucketize
from intune.pipelines.transforms.cast import Cast
from intune.pipelines.transforms.clip import Clip
from intune.pipelines.transforms.compose import Compose
from intune.pipelines.transforms.criteo import criteo
from intune.pipelines.transforms.drop import Drop
from intune.pipelines.transforms.fill_missing import FillMissing
from intune.pipelines.transforms.first_x import FirstX
from intune.pipelines.transforms.hash import Hash
from intune.pipelines.transforms.log1p import Log1p
from intune.pipelines.transforms.ngram import NGram
from intune.pipelines.transforms.rename import Rename
from intune.pipelines.transforms.select import Select
from intune.pipelines.transforms.stack import Stack
from intune.pipelines.transforms.vocabulary import Entries, Vocabulary
from intune.pipelines.transforms.vocabulary_builder import VocabularyBuilder
from intune.pipelines.transforms.vocabulary_file import load_vocabulary, save_vocabulary

__all__ = [
    "Bucketize",
    "Cast",
    "Clip",
    "ColumnTransform",
    "Compose",
    "Drop",
    "Entries",
    "FillMissing",
    "FirstX",
    "Hash",
    "Log1p",
    "NGram",
    "Rename",
    "Select",
    "Stack",
    "Transform",
    "Vocabulary",
    "VocabularyBuilder",
    "criteo",
    "load_vocabulary",
    "save_vocabulary",
]
