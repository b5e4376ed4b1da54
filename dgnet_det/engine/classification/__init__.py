"""Classifiers on DG-Net backbones: the paper's pretraining (§6.1)."""

from dgnet_det.engine.classification.training import evaluate_checkpoint, train
from dgnet_det.modeling.classifier import ClassifierHead, DGNetClassifier, build_classifier

__all__ = ["ClassifierHead", "DGNetClassifier", "build_classifier", "evaluate_checkpoint", "train"]
