"""Ways to damage a valid sample; each is a function of (samples, random) that returns bytes.

The plain one (`damaged`) knows nothing of what it damages. The others know a format well enough to get past its first
checks: a JSON document that parses, a safetensors file whose header has the length that it says.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable, Sequence
from random import Random

from tools.fuzzing.documents import mutated_tree, odd_value, parse, write

__all__ = ["Mutation", "damaged", "json_document", "json_lines", "safetensors", "toml_document", "wrong_numbers"]

Mutation = Callable[[Sequence[bytes], Random], bytes]

_EDGES = (
    0,
    1,
    7,
    8,
    52,
    255,
    2**15,
    2**16,
    2**31 - 1,
    2**31,
    2**32 - 1,
    2**32,
    2**48,
    2**53,
    2**63 - 1,
    2**63,
    2**64 - 1,
)
_NUMBER = re.compile(rb"-?\d+(?:\.\d+)?(?:[eE][-+]?\d+)?")
_TOML_VALUES = (
    "0x" + "f" * 4_000, "9" * 4_301, "1979-05-27", "1979-05-27T07:32:00Z", "07:32:00", "9999-12-31T23:59:59+23:59",
    "inf", "-nan", "1e400", "0o777", "0b1", "[1, 'a', {}]", "{}", "{a.b.c = 1}", "[[[[]]]]", "'''\n'''", "''",
    '"~\\u0000/x"', '"~nobody-here/x"', '"\\U0001F9EA"', '"(((((((((("', '"a{4294967296}"', '"(?:a{1000}){1000}"',
    "true", '"\\u0000"', "[" * 2_000 + "]" * 2_000, "{a=" * 500 + "1" + "}" * 500, "1_0.5e-1_0", '"\\ud800"',
)  # fmt: skip
_TOML_LINES = (
    "[a.b.c]", "[[broker]]", "[broker]", "x = 1", "'' = 2", '"\\u0000" = 1', "a.b.c.d = 1", "a." * 1_500 + "a = 1",
    "[[", "=", "type = 7", "[" + "a." * 3_000 + "a]",
)  # fmt: skip


def damaged(samples: Sequence[bytes], random: Random) -> bytes:
    """Returns a sample with one to four blows: flipped bits, cut ends, swapped and repeated pieces, lying lengths."""
    sample = bytearray(random.choice(samples))
    for _ in range(random.choice((1, 1, 2, 4))):
        _BLOWS[random.randrange(len(_BLOWS))](sample, samples, random)
    return bytes(sample)


def wrong_numbers(samples: Sequence[bytes], random: Random) -> bytes:
    """Returns a text in which one number was replaced by one that is hard to read."""
    sample = random.choice(samples)
    found = list(_NUMBER.finditer(sample))
    if not found:
        return damaged(samples, random)
    at = random.choice(found)
    return sample[: at.start()] + odd_value(random).encode("utf-8", "surrogatepass") + sample[at.end() :]


def json_document(samples: Sequence[bytes], random: Random) -> bytes:
    """Returns a JSON document that is wrong in its values, keys or shape."""
    return write(mutated_tree(parse(random.choice(samples)), random)).encode("utf-8", "surrogatepass")


def json_lines(samples: Sequence[bytes], random: Random) -> bytes:
    """Returns JSON lines of which one is wrong so."""
    lines = random.choice(samples).splitlines()
    at = random.randrange(len(lines))
    lines[at] = json_document(lines[at : at + 1], random)
    return b"\n".join(lines)


def safetensors(samples: Sequence[bytes], random: Random) -> bytes:
    """Returns a safetensors file with a wrong header of the right length, or with odd values in its tensors."""
    sample = random.choice(samples)
    (header_bytes,) = struct.unpack_from("<Q", sample)
    header, data = sample[8 : 8 + header_bytes], bytearray(sample[8 + header_bytes :])
    if data and random.random() < 0.4:
        for _ in range(random.choice((1, 3))):
            value = random.choice((float("nan"), float("inf"), -float("inf"), 3.4e38, -3.4e38, 1e-45, 0.0))
            struct.pack_into("<f", data, random.randrange(max(1, len(data) // 4)) * 4 if len(data) >= 4 else 0, value)
    else:
        header = write(mutated_tree(parse(header), random)).encode("utf-8", "surrogatepass")
    return struct.pack("<Q", len(header)) + header + bytes(data)


def toml_document(samples: Sequence[bytes], random: Random) -> bytes:
    """Returns a TOML document with a value, a key or a line that is odd, or one twice, or in the wrong table."""
    lines = random.choice(samples).decode().splitlines()
    for _ in range(random.choice((1, 1, 2))):
        at = random.randrange(len(lines))
        key, equals, _ = lines[at].partition("=")
        what = random.randrange(6)
        if what < 3 and equals:
            lines[at] = f"{key.lstrip('# ')}= {random.choice(_TOML_VALUES)}"
        elif what == 3:
            lines.insert(at, random.choice(_TOML_LINES))
        elif what == 4:
            lines.insert(random.randrange(len(lines) + 1), lines[at])
        else:
            del lines[at]
            lines = lines or [""]
    return "\n".join(lines).encode()


def _flip_bits(sample: bytearray, _samples: Sequence[bytes], random: Random) -> None:
    for _ in range(random.choice((1, 1, 2, 8)) if sample else 0):
        sample[random.randrange(len(sample))] ^= 1 << random.randrange(8)


def _cut(sample: bytearray, _samples: Sequence[bytes], random: Random) -> None:
    del sample[random.randrange(len(sample) + 1) :]


def _delete(sample: bytearray, _samples: Sequence[bytes], random: Random) -> None:
    at = random.randrange(len(sample) + 1)
    del sample[at : at + random.choice((1, 2, 8, 100))]


def _repeat(sample: bytearray, _samples: Sequence[bytes], random: Random) -> None:
    at = random.randrange(len(sample) + 1)
    piece = bytes(sample[at : at + random.choice((1, 8, 64, 1_000))])
    sample[at:at] = piece * random.choice((1, 2, 50))


def _insert(sample: bytearray, _samples: Sequence[bytes], random: Random) -> None:
    at = random.randrange(len(sample) + 1)
    sample[at:at] = random.randbytes(random.choice((1, 2, 8, 100)))


def _splice(sample: bytearray, samples: Sequence[bytes], random: Random) -> None:
    other = random.choice(samples)
    sample[random.randrange(len(sample) + 1) :] = other[random.randrange(len(other) + 1) :]


def _lie_about_a_length(sample: bytearray, _samples: Sequence[bytes], random: Random) -> None:
    width, code = random.choice(((2, "H"), (4, "I"), (8, "Q")))
    if len(sample) < width:
        return
    value = random.choice(_EDGES) + random.randrange(-1, 2)
    # Lengths stand at the front of most formats.
    at = random.choice(
        (0, random.randrange(min(64, len(sample) - width) + 1), random.randrange(len(sample) - width + 1))
    )
    struct.pack_into(random.choice("<>") + code, sample, at, value % 2 ** (8 * width))


def _overwrite(sample: bytearray, _samples: Sequence[bytes], random: Random) -> None:
    at = random.randrange(len(sample) + 1)
    piece = random.choice(
        (b"\0", b"\xff", b"\x80", b'"', b"{", b"[", b"\\", b"\n", b"\xed\xa0\x80", b"\xf4\x90\x80\x80")
    )
    piece *= random.choice((1, 1, 8))
    sample[at : at + len(piece)] = piece


_BLOWS = (_flip_bits, _cut, _delete, _repeat, _insert, _splice, _lie_about_a_length, _overwrite)
