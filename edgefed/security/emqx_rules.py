"""The rules as EMQX 5 takes them: rows for its built-in authorization database, by user name.

What stands here follows EMQX's documentation of that database, of authorization and of revocation lists, and its
`emqx_topic:match/2`:

- The first rule of a row that matches decides. `#` matches no topic that begins with `$`, so those have rules of their
  own: `$SYS` tells the client ids of everybody, `$delayed` says something on another topic later.
- A user name without a row is asked about elsewhere, and `authorization.no_match` decides in the end: it is `allow`
  where nobody says otherwise, as is the end of the ACL file that EMQX comes with. So a former member keeps a row, with
  which everything is forbidden.
- EMQX remembers answers for a minute unless `authorization.cache.enable = false`.
- It gets revocation lists over HTTP from an address in the certificate, which ours do not have. So a revoked member can
  still connect there; it may say and hear nothing.
"""

from __future__ import annotations

from collections.abc import Iterable

from edgefed.protocol.topics import Topics
from edgefed.security.broker_rules import Access, rules_for
from edgefed.security.identities import Identity

__all__ = ["EMQX_SETTINGS", "emqx_rules"]

EMQX_SETTINGS = """\
listeners.tcp.default.enable = false
listeners.ssl.default.ssl_options { verify = verify_peer, fail_if_no_peer_cert = true }
mqtt.peer_cert_as_username = cn
authorization { no_match = deny, cache.enable = false, sources = [{ type = built_in_database, enable = true }] }
"""
"""What emqx.conf has to say for the rows to hold, beside the files of ca.pem and of the broker's certificate."""

_ACTIONS: dict[Access, str] = {"hears": "subscribe", "says": "publish", "both": "all"}
_EVERYTHING = ("#", "$SYS/#", "$delayed/#")


def emqx_rules(topics: Topics, members: Iterable[Identity], former: Iterable[Identity] = ()) -> list[dict[str, object]]:
    """Returns a row for each member, and for each of those who were one.

    A row is what `PUT /api/v5/authorization/sources/built_in_database/rules/users/<user name>` takes, which replaces
    the one that is there; `POST …/rules/users` takes a list of new ones.

    Args:
        topics: of the fleet.
        members: who has a certificate in force.
        former: who had one.
    """
    rows = [*((member, rules_for(member, topics)) for member in members), *((member, ()) for member in former)]
    return [
        {
            "username": member.common_name,
            "rules": [
                *(_rule("allow", _ACTIONS[rule.access], rule.topic) for rule in rules),
                *(_rule("deny", "all", topic) for topic in _EVERYTHING),
            ],
        }
        for member, rules in rows
        if member.role != "broker"
    ]


def _rule(permission: str, action: str, topic: str) -> dict[str, str]:
    return {"topic": topic, "permission": permission, "action": action}
