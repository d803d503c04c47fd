# Sourced by launch/quickstart and launch/test: makes .venv with pinned packages, once.
# Arguments: requirement files. A second call with the same files and pins installs nothing.

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cd "$root"

find_python() {
    local name
    for name in "${PYTHON:-}" python3.13 python3.12 python3.11 python3 python; do
        if [ -n "$name" ] && command -v "$name" >/dev/null 2>&1 &&
            "$name" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' 2>/dev/null; then
            echo "$name"
            return
        fi
    done
    echo "Python 3.11 to 3.13 is needed; set PYTHON to it" >&2
    return 1
}

prepare_environment() {
    local stamp wanted python file
    wanted=$(cat "$@" pyproject.toml setup.py kernels/native.cpp | cksum)
    stamp=.venv/installed-$(basename "${*: -1}" .txt)
    if [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$wanted" ] && [ -x .venv/bin/mpsoftmax ]; then
        return
    fi
    python=$(find_python)
    if [ ! -x .venv/bin/pip ]; then
        echo "creating .venv with $python"
        "$python" -m venv .venv || {
            echo "$python has no working venv module (Debian: apt install python3-venv)" >&2
            return 1
        }
    fi
    echo "installing pinned packages into .venv"
    local arguments=()
    for file in "$@"; do arguments+=(-r "$file"); done
    .venv/bin/python -m pip install --quiet --quiet --disable-pip-version-check "${arguments[@]}"
    .venv/bin/python -m pip install --quiet --quiet --disable-pip-version-check --no-deps --editable .
    echo "$wanted" >"$stamp"
}
