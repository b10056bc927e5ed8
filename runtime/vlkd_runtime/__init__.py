"""Runs a vlkd bundle on a device: numpy, pillow and one inference engine, never torch."""

from __future__ import annotations

from .bundle import Bundle
from .classifier import Classifier, Prediction
from .errors import (
    BundleError,
    ConfigError,
    DataError,
    ImageError,
    RefusalError,
    SelfTestError,
    UnavailableError,
    UsageError,
    VlkdError,
)
from .preprocess import PreprocessSpec
from .vectors import ClassVectors

__all__ = [
    "Bundle",
    "BundleError",
    "ClassVectors",
    "Classifier",
    "ConfigError",
    "DataError",
    "ImageError",
    "Prediction",
    "PreprocessSpec",
    "RefusalError",
    "SelfTestError",
    "UnavailableError",
    "UsageError",
    "VlkdError",
]
