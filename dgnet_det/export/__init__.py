"""Trained detectors in use: on images and videos, and as exported files."""

from dgnet_det.export.exported import load_detector
from dgnet_det.export.predictor import Detector, Predictor, load_predictor

__all__ = ["Detector", "Predictor", "load_detector", "load_predictor"]
