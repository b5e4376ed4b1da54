"""Classifiers on DG-Net backbones: the paper's pretraining (§6.1)."""

from .model import ClassifierHead, DGNetClassifier, build_classifier
from .training import evaluate_checkpoint, train

__all__ = ["ClassifierHead", "DGNetClassifier", "build_classifier", "evaluate_checkpoint", "train"]
