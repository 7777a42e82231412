"""What a device's evaluation counts for. It decides which adapter is the best and when the target is reached."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import msgspec

from edgefed.protocol.records import EvaluationRecord
from edgefed.protocol.tasks import Evaluation, SummarizationTask

__all__ = ["Credibility"]

_log = logging.getLogger(__name__)

_LARGEST_LOSS = 1000.0  # nats per token; guessing among 32,000 costs 10


class Credibility:
    """Holds claims to what the federation's settings let a device measure.

    Args:
        evaluation: how many examples are evaluated.
        task: how long a target may be.
    """

    def __init__(self, evaluation: Evaluation, task: SummarizationTask) -> None:
        self._most_tokens = evaluation.max_examples * task.max_target_tokens

    @classmethod
    def of_run(cls, identity: Mapping[str, Any]) -> Credibility:
        """Returns what holds in a run that was begun with these settings."""
        return cls(
            msgspec.convert(identity.get("evaluation", {}), Evaluation),
            msgspec.convert(identity.get("task", {}), SummarizationTask),
        )

    def weigh(self, device: str, evaluation: EvaluationRecord) -> tuple[float, int]:
        """Returns the loss in nats per target token and how many tokens it weighs; none where it cannot be true."""
        if not 0 <= evaluation.loss <= _LARGEST_LOSS:
            about = {"device": device, "loss": evaluation.loss}
            _log.warning("device %(device)s: an evaluated loss of %(loss)g cannot be and weighs nothing", about)
            return 0.0, 0
        return evaluation.loss, min(evaluation.target_tokens, self._most_tokens)
