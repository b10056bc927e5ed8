"""Runs a vlkd bundle on a device: numpy, pillow and one inference engine, never torch."""

from __future__ import annotations

from .bundle import Bundle
from .classifier import Classifier
from .errors import (
    BundleError,
    ConfigError,
    DataError,
    FallbackError,
    ImageError,
    RefusalError,
    SelfTestError,
    UnavailableError,
    UsageError,
    VlkdError,
)
from .prediction import Prediction
from .preprocess import PreprocessSpec
from .vectors import ClassVectors

__all__ = [
    "Bundle",
    "BundleError",
    "ClassVectors",
    "Classifier",
    "ConfigError",
    "DataError",
    "FallbackError",
    "ImageError",
    "Prediction",
    "PreprocessSpec",
    "RefusalError",
    "SelfTestError",
    "UnavailableError",
    "UsageError",
    "VlkdError",
]
