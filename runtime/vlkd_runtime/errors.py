"""Every error this project raises on purpose, as one tree.

::

    VlkdError
    ├── UsageError                     the caller's mistake; exit code 2
    │   ├── ConfigError                vlkd.toml or a flag says something that cannot be meant
    │   ├── DataError                  a data folder, domain, class or stored file is missing or wrong
    │   ├── ImageError                 an image that cannot be decoded, or an array that is no image
    │   └── UnavailableError           a package, hub, device or engine that is not there
    └── RefusalError                   the project's own "no"; exit code 1
        ├── BundleError                a bundle that is damaged, altered, or of another schema
        ├── SelfTestError              an engine that disagrees with the golden outputs
        ├── FallbackError              an engine that runs something else than was planned
        ├── ParityError                an exported graph that disagrees with the network it came from
        ├── TrainingError              a training that ran away, or whose student answers with nothing
        ├── CalibrationError           calibration data that cannot give honest scales
        └── GuardError                 no candidate kept its accuracy within budget

Each message says what was expected, what was found, where, and what to do next.
"""

from __future__ import annotations


class VlkdError(Exception):
    """Base of all errors raised on purpose; anything else that escapes is a defect."""

    exit_code = 1


class UsageError(VlkdError):
    """Something the caller can put right before trying again."""

    exit_code = 2


class ConfigError(UsageError):
    """A configuration file or a flag holds an unknown key or an impossible value."""


class DataError(UsageError):
    """A data folder, a domain, a class or a stored file is missing or unusable."""


class ImageError(UsageError):
    """A file that is no image, a damaged image, or an array that cannot be one."""


class UnavailableError(UsageError):
    """A package that is not installed, a hub out of reach, an engine this machine lacks."""


class RefusalError(VlkdError):
    """A check of this project said no; nothing was shipped or run."""


class BundleError(RefusalError):
    """A bundle that was altered, truncated, is unsafe to unpack, or has an unknown schema."""


class SelfTestError(RefusalError):
    """An engine's outputs differ from the golden outputs beyond the manifest's tolerance."""


class FallbackError(RefusalError):
    """An engine that left layers to another device or precision than the bundle's plan says."""


class ParityError(RefusalError):
    """An exported graph's outputs differ from the network's beyond tolerance."""


class TrainingError(RefusalError):
    """A loss or weights that are not finite, or a trained student whose embeddings are zero or not finite."""


class CalibrationError(RefusalError):
    """Calibration data that is empty, constant, not finite, or not allowed to be used."""


class GuardError(RefusalError):
    """No candidate kept its accuracy on the held-out domains within the budget."""


def first_line(error: BaseException) -> str:
    """The first line of what an error says, without its full stop."""
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0].rstrip(".")
