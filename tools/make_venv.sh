#!/usr/bin/env bash
# Makes a virtual environment with a Python that edgefed runs on, or keeps the one that is there.
# Usage: make_venv.sh DIRECTORY [PYTHON]
set -euo pipefail

directory=$1
wanted=${2:-}

new_enough() {
    "$1" -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null
}

version() {
    "$1" -c 'import sys; print("%d.%d" % sys.version_info[:2])'
}

find_python() {
    local candidate
    for candidate in ${wanted:-python3 python3.13 python3.12 python3.11 python3.10}; do
        if new_enough "$candidate"; then
            echo "$candidate"
            return
        fi
    done
    echo "edgefed needs Python 3.10 or newer, and ${wanted:-python3} is not. Name one: make PYTHON=/path/to/python3" >&2
    return 1
}

# Whether the environment works, and is of the version that was asked for, if one was.
usable() {
    new_enough "$directory/bin/python" && "$directory/bin/python" -m pip --version >/dev/null 2>&1 &&
        { [ -z "$wanted" ] || [ "$(version "$directory/bin/python")" = "$(version "$wanted")" ]; }
}

if usable; then
    exit
fi
python=$(find_python)
# Debian and Ubuntu keep what puts pip into a virtual environment in a package of its own.
if ! "$python" -c 'import ensurepip' 2>/dev/null; then
    "$(dirname "$0")/apt_install.sh" "python$(version "$python")-venv" "a virtual environment needs it"
fi
echo "Making $directory with Python $(version "$python")." >&2
"$python" -m venv --clear "$directory"
