"""Who gets in where they do not belong: the attacks of the tests, counted.

python -m benchmarks.faults.attacks [--out FILE]

Each attack is a test that fails where the attack succeeds, against real processes and a real Mosquitto with the
configuration that edgefed writes; `EDGEFED_MOSQUITTO` names another one (`tools/mosquitto.py`).
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks.provenance import provenance
from tools.mosquitto import mosquitto_version

__all__ = ["ATTACKS", "FILES", "Row"]

ROOT = Path(__file__).parents[2]
RESULT = Path(__file__).parent / "results" / "attacks.json"
FILES = (
    "tests/security/test_attacks.py",
    "tests/security/test_hostile_broker.py",
    "tests/security/test_enrollment.py",
    "tests/security/test_revocations.py",
    "tests/federation/test_hostile_devices.py",
)

ATTACKS: Mapping[str, tuple[str, ...]] = {
    "a device speaks on topics of others, in a will too": (
        "test_a_device_cannot_speak_for_others",
        "test_a_forgery_reaches_nobody_where_the_broker_cannot_say_no",
        "test_a_will_has_no_more_rights_than_its_owner",
    ),
    "a device listens to others, by any filter": (
        "test_a_device_hears_what_is_meant_for_it_whatever_it_subscribes_to",
    ),
    "somebody takes another's name or client id": (
        "test_a_name_in_the_packet_counts_for_nothing",
        "test_no_client_id_can_be_stolen",
    ),
    "somebody tries the port that the aggregator beside the broker has, or its password elsewhere": (
        "test_without_its_password_the_local_port_lets_nobody_in",
        "test_the_password_counts_for_nothing_at_the_port_of_everybody",
        "test_at_the_local_port_the_aggregator_is_the_aggregator_and_no_more",
    ),
    "a certificate that is foreign, expired, revoked, not entered, of another role, or none": (
        "test_a_certificate_that_does_not_count",
        "test_a_client_without_a_certificate",
        "test_a_connection_that_outlives_its_certificate_has_no_rights_left",
        "test_who_is_not_entered_at_the_broker_has_no_rights",
        "test_an_observer_only_looks_and_a_claim_only_claims",
        "test_a_broker_whose_certificate_was_revoked_is_not_connected_to",
    ),
    "plain text, and versions of TLS that are too old": (
        "test_plain_text_gets_no_answer",
        "test_old_versions_of_tls_are_refused",
    ),
    "packets and updates that are too large, and a flood": (
        "test_an_oversized_packet_ends_its_own_connection_only",
        "test_an_update_that_is_too_large_is_refused_and_the_others_go_on",
        "test_a_flood_is_silenced_and_the_federation_ends",
    ),
    "a broker that lies: announcements, manifests, answers and updates, forged and played again": (
        "test_a_federation_over_a_broker_that_lies",
        "test_a_retained_forgery_of_an_old_life_is_corrected",
    ),
    "a broker that lies: states and profiles, forged and played again; words of the revoked and the expired": (
        "test_states_over_a_broker_that_lies",
        "test_a_revoked_signer_is_refused_as_soon_as_the_list_says_so",
        "test_an_expired_signer_is_refused_though_its_certificate_was_seen_in_force",
        "test_a_list_that_cannot_be_used_takes_nothing_back_again",
    ),
    "a token that was used, has expired, was withdrawn, is for another name, or is not there": (
        "test_used_twice",
        "test_expired",
        "test_withdrawn",
        "test_another_name_and_a_request_that_was_changed",
        "test_what_is_no_claim_at_all_does_no_harm",
        "test_the_operator_says_no",
    ),
    "whoever has a claim's certificate, and whoever answers in the operator's place": (
        "test_foreign_answers_are_not_listened_to",
        "test_a_claim_says_nothing_but_claims",
        "test_a_claim_hears_nothing_but_its_answers",
    ),
    "a device that claims 10^9 examples, or sends poison": (
        "test_a_claim_of_a_billion_examples_counts_as_much_as_is_allowed",
        "test_multi_krum_keeps_a_hostile_device_out_and_says_so",
    ),
    "and the honest devices, while all of this goes on": ("test_the_federation_ends_as_if_nothing_had_been",),
}
"""What is tried, and the tests that try it; each parameter of a test is an attack of its own."""


@dataclass
class Row:
    """One line of the table."""

    attack: str
    run: int = 0
    let_in: int = 0


def count(report: ElementTree.Element) -> list[Row]:
    """Returns a row per kind of attack, of what pytest reports."""
    rows = [Row(attack) for attack in ATTACKS]
    row_of = {name: row for row in rows for name in ATTACKS[row.attack]}
    for case in report.iter("testcase"):
        row = row_of.get(case.attrib["name"].partition("[")[0])
        if row is not None and case.find("skipped") is None:
            row.run += 1
            row.let_in += case.find("failure") is not None or case.find("error") is not None
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=RESULT, help="the result file")
    options = parser.parse_args()
    origin = provenance()  # of what is tried, whatever happens to the working tree meanwhile
    with tempfile.TemporaryDirectory() as scratch:
        file = Path(scratch, "report.xml")
        command = [sys.executable, "-m", "pytest", "-q", f"--junitxml={file}", *FILES]
        subprocess.run(command, cwd=ROOT, check=False)
        rows = count(ElementTree.parse(file).getroot())
    for row in rows:
        print(f"{row.attack:105} run {row.run:3} let in {row.let_in}")
    version = ".".join(map(str, mosquitto_version()))
    result = {"provenance": origin, "mosquitto": version, "attacks": [asdict(row) for row in rows]}
    options.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
