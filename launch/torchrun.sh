#!/usr/bin/env bash
# One training job on one or several nodes. Every node runs the same line; the ranks find each other.
#   launch/torchrun.sh configs/faces_small.yaml train.steps=1000           this machine, one rank a GPU (none: one rank)
#   NNODES=4 RDZV=node0:29400 JOB=faces launch/torchrun.sh CONFIG ...      on each of four nodes
#   NNODES=2:4 RDZV=node0:29400 JOB=faces launch/torchrun.sh CONFIG ...    elastic: starts with two, goes on with two to four
#
# NPROC         ranks a node (default: its GPUs, or 1)
# NNODES        nodes, or LEAST:MOST (default 1)
# RDZV          host:port where they meet, the same on every node; needed for more than one
# JOB           name of the job, the same on every node (default: mpsoftmax)
# MAX_RESTARTS  how often the job starts again from its last checkpoint after a failure (default 3)
# GRACE_S       seconds that ranks get to finish their step and save when asked to stop (default 170)
# RDZV_CONF     further settings of torchrun's rendezvous, as KEY=VALUE,KEY=VALUE
# PYTHON        which Python (default: .venv/bin/python here, else python3)
#
# Ends with 0, 143 (asked to stop by SIGTERM or SIGUSR1, saved, start again), 130 (SIGINT), or the status of what failed.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/job.sh"
explain "${BASH_SOURCE[0]}" "$@"
python=$(chosen_python)
NPROC=${NPROC:-$("$python" -c 'import torch; print(max(1, torch.cuda.device_count()))')}
NNODES=${NNODES:-1}
if [ "$NNODES" = 1 ] && [ -z "${RDZV:-}" ]; then
    meet=(--standalone)
elif [ -z "${RDZV:-}" ]; then
    echo "launch/torchrun.sh: RDZV is not set with NNODES=$NNODES; allowed: host:port of a node that all can reach" >&2
    exit 2
else
    meet=(--nnodes "$NNODES" --rdzv-backend c10d --rdzv-endpoint "$RDZV" --rdzv-id "${JOB:-mpsoftmax}")
    if [ -n "${RDZV_CONF:-}" ]; then meet+=(--rdzv-conf "$RDZV_CONF"); fi
fi
exec "$python" -m mpsoftmax.launcher "${meet[@]}" --nproc-per-node "$NPROC" \
    --max-restarts "${MAX_RESTARTS:-3}" --shutdown-timeout "${GRACE_S:-170}" -m mpsoftmax train "$@"
