"""What of Mosquitto's configuration can be seen without one."""

from __future__ import annotations

from pathlib import Path

from edgefed.security.mosquitto_files import ACL_PLUGIN, find_acl_plugin


def test_the_plugin_for_acl_files_is_found_where_distributions_have_it(tmp_path: Path) -> None:
    assert find_acl_plugin(tmp_path) is None
    places = ("usr/local/lib", "usr/lib", "usr/lib/aarch64-linux-gnu/mosquitto")
    for place in places:
        file = tmp_path / place / ACL_PLUGIN.name
        file.parent.mkdir(parents=True)
        file.touch()
        assert find_acl_plugin(tmp_path) == file
