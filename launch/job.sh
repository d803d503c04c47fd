# Sourced by launch/torchrun.sh and launch/deepspeed.sh, which start one rank of a job for each GPU of this node.

# Prints the head of a script, without its marks, where it got no configuration, and ends it.
explain() {
    local script=$1
    shift
    if [ $# -eq 0 ] || [ "$1" = --help ] || [ "$1" = -h ]; then
        sed -n '2,/^set /{/^set /d;s/^# \{0,1\}//;p}' "$script"
        exit 2
    fi
}

# The Python to use: $PYTHON, or the environment of this checkout, or python3.
chosen_python() {
    local own
    own=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)/.venv/bin/python
    if [ -n "${PYTHON:-}" ]; then
        echo "$PYTHON"
    elif [ -x "$own" ]; then
        echo "$own"
    else
        echo python3
    fi
}

# One thread a rank unless told: ranks share the cores, and what is heavy runs on GPUs or in loader processes.
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
