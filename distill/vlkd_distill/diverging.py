"""A training that runs away, told where it does: by a loss that is read for the progress anyway.

What is broken is never kept as a finished student, for an export to find out.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from torch import Tensor

from vlkd_runtime.errors import TrainingError


@dataclass(frozen=True, slots=True)
class Course:
    """One stage of a training, for what is said of it.

    Attributes:
        name: of the stage, and of what is trained.
        steps: how many it has.
        rate: the setting that its learning rate comes from.
        lr: its peak.
    """

    name: str
    steps: int
    rate: str
    lr: float

    def check_loss(self, loss: float, step: int) -> None:
        """Refuse a loss that is not finite, before anything learns from it.

        Args:
            loss: of this step.
            step: steps of the stage that are done.

        Raises:
            TrainingError: names stage, step and learning rate.
        """
        if math.isfinite(loss):
            return
        where = f"Expected a finite loss, found {loss} at step {step + 1} of {self.steps} of {self.name}"
        if step == 0:
            msg = (
                f"{where}, before it changed a weight: what it begins with is not finite, or too large. Look at the "
                "teacher's embeddings, the start weights and the weights of the loss."
            )
        else:
            msg = f"{where}: {self._ran_away}"
        raise TrainingError(msg)

    def check_weights(self, weights: Iterable[Tensor]) -> None:
        """Refuse weights that are not finite, which the loss of a last step does not show.

        Raises:
            TrainingError: names stage and learning rate.
        """
        if not all(bool(tensor.isfinite().all()) for tensor in weights):
            msg = f"Expected finite weights, found others after an epoch of {self.name}: {self._ran_away}"
            raise TrainingError(msg)

    @property
    def _ran_away(self) -> str:
        return f"the training ran away with {self.rate} = {self.lr:g}. Lower it, to a tenth at first, and run again."
