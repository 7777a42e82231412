"""What a federation asks of a device in a round, put into the planner's words."""

from __future__ import annotations

from edgefed.models.layout import ModelLayout
from edgefed.planner.values import Workload
from edgefed.protocol.tasks import Method, Training

__all__ = ["workload_of"]


def workload_of(
    layout: ModelLayout,
    method: Method,
    training: Training,
    *,
    source_tokens: int,
    target_tokens: int,
    global_rank: int,
    deadline_s: float | None,
    private: bool = False,
) -> Workload:
    """Returns a round's workload.

    Args:
        layout: of the base model.
        method: of the federation.
        training: of the federation.
        source_tokens: of the longest input on the device, as training cuts it.
        target_tokens: of the longest target.
        global_rank: of the adapter that the round starts from.
        deadline_s: of the round; None without one.
        private: every example's gradient is made on its own.
    """
    return Workload(
        layout=layout,
        target_modules=tuple(method.target_modules),
        ranks=tuple(method.ranks),
        global_rank=global_rank,
        start=method.start,
        holds_all=method.aggregation == "flora",
        batch_size=training.batch_size,
        micro_batch_size=training.micro_batch_size,
        gradient_checkpointing=training.gradient_checkpointing,
        local_steps=training.local_steps,
        source_tokens=source_tokens,
        target_tokens=target_tokens,
        upload_precision=method.upload_precision,
        broadcast_precision=method.broadcast_precision,
        deadline_s=deadline_s,
        private=private,
    )
