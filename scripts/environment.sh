#!/usr/bin/env bash
# The Python environment of this repository, for scripts to source:
#
#     source scripts/environment.sh requirements-dev.txt
#
# Makes .venv where there is none, installs the package and the given requirement files (paths from the
# repository root) where they changed since the last time, puts .venv/bin first on PATH and leaves the caller
# in the repository root. At least one file is needed: a sourced script without arguments sees its caller's.
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."

fail() {
    echo "error: $1" >&2
    exit 1
}

require_python() {
    "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null ||
        fail "$1 is $("$1" --version 2>/dev/null || echo missing), and Python 3.11 or later is needed; $2."
}

# Debian keeps the module that puts pip into a new environment in a package of its own, hence the second road.
make_venv() {
    echo "== making .venv with $(python3 --version)"
    python3 -m venv .venv >/dev/null 2>&1 && return
    if ! python3 -m venv --without-pip .venv || ! python3 -m pip --quiet --python .venv/bin/python install pip; then
        fail "python3 cannot make a virtual environment here; install its venv module (Debian: python3-venv)."
    fi
}

install_packages() {
    local arguments=(--quiet --disable-pip-version-check --editable .) file
    for file in "$@"; do
        arguments+=(--requirement "$file")
    done
    .venv/bin/python -m pip install "${arguments[@]}"
}

# The stamp names what was installed: a hash over the contents of all files that decide about it.
install_where_changed() {
    local file stamp hash
    for file in "$@"; do
        [[ -f $file ]] || fail "the requirement file $file does not exist; give a path from the repository root."
    done
    stamp=".venv/.installed-$(IFS=+ && echo "${*//\//-}")"
    hash=$(cat pyproject.toml "$@" | .venv/bin/python -c \
        'import hashlib, sys; print(hashlib.sha256(sys.stdin.buffer.read()).hexdigest())')
    [[ -f $stamp && $(<"$stamp") == "$hash" ]] && return
    echo "== installing the package and $* (minutes on a fresh machine)"
    install_packages "$@" || { echo "== once more" && install_packages "$@"; } ||
        fail "pip could not install what $* lists; its message is above."
    echo "$hash" >"$stamp"
}

if ! .venv/bin/python -m pip --version >/dev/null 2>&1; then
    require_python python3 "install it and put it first on PATH"
    make_venv
fi
require_python .venv/bin/python "delete the folder .venv and run this again"
(($#)) || fail "scripts/environment.sh got no requirement file; source it with one, such as requirements-dev.txt."
install_where_changed "$@"
export PATH="$PWD/.venv/bin:$PATH"
