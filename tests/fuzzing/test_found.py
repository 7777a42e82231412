"""What the fuzzing has found, one input of each kind: none of them was refused in the reader's own words once."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable

import pytest

from tools.fuzzing.engine import Target

DEEP = b"[" * 200_000
HUGE = b"9" * 5_000


def replaced(old: bytes, new: bytes) -> Callable[[bytes], bytes]:
    def change(sample: bytes) -> bytes:
        assert old in sample
        return sample.replace(old, new, 1)

    return change


def counted_back(sample: bytes) -> bytes:
    """AdamW's first counter, 1.0 where it is found, as -1.0: the next step would divide by zero."""
    header_bytes = int.from_bytes(sample[:8], "little")
    at = 8 + header_bytes + json.loads(sample[8 : 8 + header_bytes])["moment/0/step"]["data_offsets"][0]
    assert sample[at : at + 4] == struct.pack("<f", 1.0)
    return sample[:at] + struct.pack("<f", -1.0) + sample[at + 4 :]


FOUND = {
    # A device could end the aggregator, and whoever may write to `down` an agent.
    "up": [b'{"type":"parts-wanted","run":"a","parts":[{"sha256":"%s","missing":[[5,1]]}]}' % (b"0" * 64)],
    "down": [
        b'{"type":"upload-grant","sha256":"%s","missing":[[5,1]],"chunk_bytes":1,"window_chunks":1}' % (b"0" * 64)
    ],
    "device profile": [b'{"host":"\xe9"}', DEEP, b""],
    "MQTT CONNECT": [b"\x10" + b"\x80" * 10_000],
    "state manifest": [b'{"manifest":{"parts":[]},"names":["a"],"norm":0}', b'{"manifest":"\xff"}', DEEP],
    "PEFT config": [
        replaced(b'"rank_pattern": {}', b'"rank_pattern": [1]'),
        replaced(b'"alpha_pattern": {}', b'"alpha_pattern": {"a{99999999999}": 1}'),
        replaced(b'"lora_alpha": 3', b'"lora_alpha": 1' + b"0" * 400),
        replaced(b'"lora_alpha": 3', b'"lora_alpha": Infinity'),
        replaced(b'"lora_alpha": 3', b'"lora_alpha": 1e308'),
    ],
    "model header": [len(DEEP).to_bytes(8, "little") + DEEP],
    "model config": [DEEP, replaced(b'"d_ff": 384', b'"d_ff": Infinity')],
    "plans.json": [
        b'{"more":' + DEEP,
        replaced(b'"peak_bytes":1073741824,"step_s"', b'"peak_bytes":1' + b"0" * 400 + b',"step_s"'),
    ],
    "measured profile": [b'{"more":' + DEEP],
    "suspended training": [
        replaced(b"moment/1/exp_avg_sq", b"moment/7/exp_avg_sq"),
        replaced(b"moment/1/exp_avg_sq", b"moment/x/exp_avg_sq"),
        replaced(b"moment/1/exp_avg_sq", b"moment/1/exp_avg_sx"),
        replaced(b"weight/1", b"weight/2"),
        replaced(b"random/0", b"randon/0"),
        counted_back,
    ],
    "agent.toml": [
        b"a = " + HUGE,
        b"a = " + DEEP,
        b"fleet = 0x" + b"f" * 4_000,
        replaced(b'path = "', b'path = "~\\u0000'),
    ],
    "federation.toml": [b"a." * 100 + b"a = " + DEEP],
    "board": [
        b"a = " + HUGE,
        b"a = " + DEEP,
        replaced(b'name = "', b"name = 0x" + b"f" * 4_000 + b' #"'),
        replaced(b"42_949_672_960", b"0x" + b"f" * 4_000),
        replaced(b"gpu_name = 'A100", b"gpu_name = 'a{4294967296}"),
    ],
}


@pytest.mark.torch
@pytest.mark.parametrize(("name", "number"), [(name, i) for name, found in FOUND.items() for i in range(len(found))])
def test_what_was_found_is_refused_or_left_aside(targets: tuple[Target, ...], name: str, number: int) -> None:
    (target,) = (target for target in targets if target.name == name)
    found = FOUND[name][number]
    payload = found if isinstance(found, bytes) else found(target.samples[0])
    if target.refuses is None or name == "suspended training":
        target.read(payload)
    else:
        with pytest.raises(target.refuses):
            target.read(payload)
