# Gives everything that was sent its name. It goes on where the connection is cut: what it does is short, and all here.
set -eu
umask 022
trap '' HUP INT TERM PIPE

# put STAGED PLACE MODE
put() {
    chmod "$3" "$1"
    mv -f -- "$1" "$2"
}

# lead PLACE TARGET
lead() {
    mkdir -p -- "${1%/*}"
    ln -s -- "$2" "$1"
}
