"""The rules as EMQX takes them: rows for its built-in authorization database.

`POST /api/v5/authorization/sources/built_in_database/rules/users` takes a list of them (EMQX 5, its REST reference).
"""

from __future__ import annotations

from collections.abc import Iterable

from edgefed.protocol.topics import Topics
from edgefed.security.broker_rules import Access, rules_for
from edgefed.security.identities import Identity

__all__ = ["emqx_rules"]

_ACTIONS: dict[Access, str] = {"hears": "subscribe", "says": "publish", "both": "all"}


def emqx_rules(topics: Topics, members: Iterable[Identity]) -> list[dict[str, object]]:
    """Returns a row for each member, ending with the rule that forbids everything else.

    EMQX goes by the user name, which it takes from the certificate with `peer_cert_as_username = cn` on the listener.
    """
    forbidden = {"topic": "#", "permission": "deny", "action": "all"}
    return [
        {
            "username": member.common_name,
            "rules": [
                *(
                    {"topic": rule.topic, "permission": "allow", "action": _ACTIONS[rule.access]}
                    for rule in rules_for(member, topics)
                ),
                forbidden,
            ],
        }
        for member in members
        if member.role != "broker"
    ]
