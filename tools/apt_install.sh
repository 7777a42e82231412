#!/usr/bin/env bash
# Installs a Debian or Ubuntu package, or says what to do where that is impossible: apt_install.sh PACKAGE WHY [SERVICE]
# A service that comes with the package and that nobody asked for is stopped, and does not start at boot.
set -euo pipefail

package=$1
why=$2
service=${3:-}

give_up() {
    echo "$package is needed ($why) and $1. Install it, then run make again: apt-get install $package" >&2
    exit 1
}

command -v apt-get >/dev/null || give_up "there is no apt-get here to install it with"
as_root=()
if [ "$(id -u)" -ne 0 ]; then
    command -v sudo >/dev/null || give_up "only root can install it, and there is no sudo"
    # Without a terminal nobody could type a password.
    [ -t 0 ] || sudo -n true 2>/dev/null || give_up "sudo asks for a password"
    as_root=(sudo)
fi

install() {
    "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends "$package"
}

echo "Installing $package: $why." >&2
# The lists of packages of a fresh machine are empty or old.
install || { "${as_root[@]}" apt-get update && install; } || give_up "apt-get could not install it"

if [ -n "$service" ] && [ -d /run/systemd/system ]; then
    "${as_root[@]}" systemctl disable --now "$service.service"
fi
