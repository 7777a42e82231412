"""What became of the updates of a run: from its journal and store, and from what went over the wire."""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edgefed.config import read_federation
from edgefed.coordinator import rounds
from edgefed.coordinator.events import Merge
from edgefed.coordinator.round_state import State
from edgefed.coordinator.store import Store
from edgefed.protocol.chunks import is_chunk
from edgefed.protocol.messages.down import Acknowledged, decode_down
from edgefed.protocol.topics import Topics
from edgefed.transport.base import Message
from edgefed.transport.mqtt import MqttOptions, connect_mqtt

__all__ = ["Eavesdropper", "account"]


@dataclass
class Eavesdropper:
    """Hears what the aggregator tells the devices, straight from the broker."""

    fleet: str
    acknowledged: set[tuple[str, int]] = field(default_factory=set)

    async def listen(self, port: int) -> None:
        """Listens until cancelled."""
        topics = Topics(self.fleet)
        options = MqttOptions("127.0.0.1", port, client_id="eavesdropper", session_expiry_s=0)
        async with connect_mqtt(options, retry_first=True) as transport:
            await transport.subscribe(topics.every_device("down"))
            async for event in transport.events():
                topic = topics.parse_device(event.topic) if isinstance(event, Message) else None
                if isinstance(event, Message) and topic is not None and not is_chunk(event.payload):
                    word = decode_down(event.payload)
                    if isinstance(word, Acknowledged) and word.outcome in ("counted", "late"):
                        self.acknowledged.add((topic.device, word.round))
                await asyncio.sleep(0)


def account(config: Path, states: Path, acknowledged: set[tuple[str, int]]) -> dict[str, Any]:
    """Returns how many updates were merged, lost, counted twice, or are still held by devices.

    Args:
        config: the federation's file; its run is over.
        states: where the agents' state directories are.
        acknowledged: what the devices were told counts.
    """
    options = read_federation(config)
    state, merges = State(), dict[int, Merge]()
    with Store.reading(Path(options.directory)) as store:
        for event, now_s in store.journal():
            state, actions = rounds.step(state, event, now_s, options.rules)
            merges |= {action.round: action for action in actions if isinstance(action, Merge)}
        merged_rounds = [one.round for one in store.merged_rounds() if one.copied is None]
        outcomes = Counter(answer.outcome for answer in store.answers())
        used = {(one.device, one.round) for one in store.answers() if one.outcome in ("counted", "late")}
    merged = Counter((update.device, update.round) for round_ in merged_rounds for update in merges[round_].updates)
    told = {(device, round_) for device, round_ in acknowledged if round_ <= options.rounds}
    held = [path for path in states.glob("*/runs/*/offer-*.json") if path.name != f"offer-{options.rounds + 1}.json"]
    return {
        "rounds": len(merged_rounds),
        "updates_merged": sum(merged.values()),
        "updates_acknowledged": len(told),
        "lost": len((told | used) - merged.keys()),
        "counted_twice": sum(count > 1 for count in merged.values()),
        "held_by_devices": len(held),
        "outcomes": dict(outcomes),
    }
