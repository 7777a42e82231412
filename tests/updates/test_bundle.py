"""A bundle is read only where every byte of it is what the aggregator signed."""

from __future__ import annotations

import hashlib
import json
import subprocess
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgefed.errors import SignatureError, UpdateError
from edgefed.security import certificates
from edgefed.security.identities import Identity
from edgefed.updates import archive
from edgefed.updates.bundle import Bundle, open_bundle, unpack
from edgefed.updates.release import release_topic
from tests.updates.releases import FLEET, NOW, NOW_S, SIGNER, VERIFIER, bundle, signer

LONG = "much_tagged-2.0-cp311-cp311-" + ".".join(f"manylinux_2_{n}_aarch64" for n in (17, 24, 27, 28)) + ".whl"
CONTENTS = {
    "edgefed-1.0-py3-none-any.whl": b"an edgefed",
    LONG: b"x" * 512,
    "z-1!2.0+cpu-py3-none-any.whl": b"z" * 2000,
}


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    directory = tmp_path_factory.mktemp("wheels")
    for name, content in CONTENTS.items():
        (directory / name).write_bytes(content)
    return sorted(directory.iterdir(), reverse=True)


@pytest.fixture(scope="module")
def good(wheels: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return bundle(tmp_path_factory.mktemp("bundle") / "good.bundle", wheels)


def read(path: Path, *, fleet: str = FLEET, now_unix_s: float = NOW_S) -> Bundle:
    return open_bundle(path, VERIFIER, fleet=fleet, now_unix_s=now_unix_s)


def altered(good: Bundle, path: Path, content: bytes) -> Path:
    assert content != good.path.read_bytes()
    path.write_bytes(content)
    return path


def resigned(good: Bundle, path: Path, document: object) -> Path:
    """Writes a bundle with another manifest that the aggregator has signed, and the rest as it was."""
    whole = good.path.read_bytes()
    manifest_bytes = int(whole[124:135], 8)
    rest = whole[512 + manifest_bytes + -manifest_bytes % 512 :]
    signed = SIGNER.sign(release_topic(FLEET), json.dumps(document).encode(), NOW_S)
    header = archive.Member("release.json", len(signed), "").header
    path.write_bytes(header + signed + bytes(-len(signed) % 512) + rest)
    return path


def manifest_of(good: Bundle) -> dict[str, object]:
    with good.path.open("rb") as file:
        document = json.loads(archive.Reader(file, "here").manifest())
    del document["signature"]
    assert isinstance(document, dict)
    return document


def test_what_was_put_in_comes_out(good: Bundle, tmp_path: Path) -> None:
    found = read(good.path)
    assert found == good
    assert (found.release.name, found.release.number, found.release.python) == ("spring", 7, "3.11")
    unpack(found, tmp_path / "out")
    lock = (tmp_path / "out/requirements.lock").read_bytes()
    assert hashlib.sha256(lock).hexdigest() == found.release.lock.sha256
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").glob("*.whl")} == CONTENTS


def test_the_same_input_gives_the_same_bytes(good: Bundle, wheels: list[Path], tmp_path: Path) -> None:
    again = bundle(tmp_path / "again.bundle", wheels[::-1])
    assert again.path.read_bytes() == good.path.read_bytes()
    other_time = bundle(tmp_path / "later.bundle", wheels, at_unix_s=NOW_S + 1)
    assert other_time.id == good.id, "the same release, signed again"
    assert bundle(tmp_path / "next.bundle", wheels, number=8).id != good.id


def test_it_is_a_tar_archive_for_everybody(good: Bundle, tmp_path: Path) -> None:
    command = ["tar", "--list", "--file", str(good.path)]
    listed = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    assert listed == ["release.json", "requirements.lock", *sorted(CONTENTS)]
    subprocess.run(["tar", "--extract", "--file", str(good.path), "--directory", str(tmp_path)], check=True)
    assert {path.name: path.read_bytes() for path in tmp_path.glob("*.whl")} == CONTENTS


@pytest.mark.filterwarnings("ignore:Parsed a serial number")  # of a certificate with a byte changed
@given(data=st.data())
def test_no_byte_of_it_can_be_changed(
    good: Bundle, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    content = bytearray(good.path.read_bytes())
    place = data.draw(st.integers(0, len(content) - 1))
    content[place] ^= data.draw(st.integers(1, 255))
    path = altered(good, tmp_path_factory.mktemp("changed") / "changed.bundle", bytes(content))
    with pytest.raises(UpdateError):
        read(path)


@pytest.mark.parametrize("kept", [0, 100, 511, 512, 900, 3000, -1024, -1])
def test_a_bundle_that_was_cut_is_told(good: Bundle, tmp_path: Path, kept: int) -> None:
    path = altered(good, tmp_path / "cut.bundle", good.path.read_bytes()[:kept])
    with pytest.raises(UpdateError, match=r"is no whole bundle|is not whole"):
        read(path)


def test_nothing_can_be_hung_on(good: Bundle, tmp_path: Path) -> None:
    path = altered(good, tmp_path / "longer.bundle", good.path.read_bytes() + bytes(512))
    with pytest.raises(UpdateError, match="is not whole: it has"):
        read(path)


def test_only_the_aggregator_of_this_fleet_makes_releases(wheels: list[Path], tmp_path: Path) -> None:
    with pytest.raises(UpdateError, match=r"signed by role:aggregator, and this is the key of board-07"):
        bundle(tmp_path / "a", wheels, signer=signer(Identity("device", "board-07")))
    assert not (tmp_path / "a").exists()
    stranger = signer(authority=certificates.make_authority(FLEET, days=90, now=NOW))
    with pytest.raises(SignatureError, match="not of the fleet's authority"):
        read(bundle(tmp_path / "b", wheels, signer=stranger).path)
    elsewhere = bundle(tmp_path / "c", wheels, fleet="cellar").path
    with pytest.raises(SignatureError, match="has signed something else"):
        read(elsewhere)


def test_a_message_of_the_aggregator_is_no_release(good: Bundle, tmp_path: Path) -> None:
    """Signed by the right key, for another place: a release cannot be made of what goes over the broker."""
    document = manifest_of(good)
    signed = SIGNER.sign(f"edgefed/v1/{FLEET}/round", json.dumps(document).encode(), NOW_S)
    path = tmp_path / "message.bundle"
    path.write_bytes(archive.Member("release.json", len(signed), "").header + signed + bytes(-len(signed) % 512))
    with pytest.raises(SignatureError):
        read(path)


def test_a_device_whose_clock_is_wrong_is_told_so(good: Bundle) -> None:
    with pytest.raises(SignatureError, match="is the clock right"):
        read(good.path, now_unix_s=NOW_S - 86400 * 365)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("number", 0),
        ("python", "2.7"),
        ("python", "3.11; rm -rf /"),
        ("name", "../up"),
        ("wheels", []),
        ("wheels", [{"name": "../../etc/cron.d/x.whl", "size_bytes": 1, "sha256": "0" * 64}]),
        ("wheels", [{"name": "a.whl", "size_bytes": 2**70, "sha256": "0" * 64}]),
        ("wheels", [{"name": n, "size_bytes": 1, "sha256": "0" * 64} for n in ("a.whl", "a.whl")]),
        ("wheels", [{"name": n, "size_bytes": 1, "sha256": "0" * 64} for n in ("b.whl", "a.whl")]),
        ("type", "something else"),
        ("fleet", None),
    ],
)
def test_even_the_aggregator_cannot_say_everything(good: Bundle, tmp_path: Path, key: str, value: object) -> None:
    path = resigned(good, tmp_path / "odd.bundle", manifest_of(good) | {key: value})
    with pytest.raises(UpdateError, match="says what is not allowed"):
        read(path)


def test_a_later_manifest_is_read_and_a_later_format_is_named(good: Bundle, tmp_path: Path) -> None:
    later = manifest_of(good) | {"notes": "a field that is new"}
    assert read(resigned(good, tmp_path / "later.bundle", later)).release == good.release
    with pytest.raises(UpdateError, match="has bundle format 2, and this edgefed reads 1"):
        read(resigned(good, tmp_path / "format.bundle", later | {"format": 2, "wheels": "elsewhere"}))


def test_a_file_that_is_no_bundle_or_too_large_is_not_read(tmp_path: Path) -> None:
    with pytest.raises(UpdateError, match="cannot be read"):
        read(tmp_path / "nothing")
    (tmp_path / "zeros").write_bytes(bytes(5000))
    with pytest.raises(UpdateError, match="no bundle of a release"):
        read(tmp_path / "zeros")
    with (tmp_path / "sparse").open("wb") as file:
        file.truncate(archive.MAX_BUNDLE_BYTES + 1)
    with pytest.raises(UpdateError, match="no bundle has more than"):
        read(tmp_path / "sparse")


def test_a_wheel_that_changes_while_it_is_packed_makes_no_bundle(
    good: Bundle, wheels: list[Path], tmp_path: Path
) -> None:
    files = [tmp_path / name for name in sorted(CONTENTS)]
    for file in files:
        file.write_bytes(CONTENTS[file.name])
    pieces = archive.written(good.release, b"the manifest", b"the lock", files)
    next(pieces)
    files[0].write_bytes(b"an edgefee")
    with pytest.raises(UpdateError, match="was changed while"):
        list(pieces)


@given(number=st.integers(1, 20), highest=st.integers(0, 20))
def test_no_older_release_comes_back(good: Bundle, number: int, highest: int) -> None:
    release = msgspec.structs.replace(good.release, number=number)
    if number > highest:
        release.check_successor_of(highest)
    else:
        with pytest.raises(UpdateError, match=f"this device has had {highest} already"):
            release.check_successor_of(highest)
