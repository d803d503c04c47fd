#!/usr/bin/env bash
# The same training started by DeepSpeed's launcher instead of torchrun, without ssh: every node runs the same line.
#   launch/deepspeed.sh configs/faces_r50.yaml train.engine=deepspeed ...                       this machine
#   HOSTFILE=my_hosts NODE_RANK=1 MASTER=node0:29500 launch/deepspeed.sh CONFIG ...               second of several
#
# HOSTFILE   nodes and their ranks (default: launch/hostfile)
# NODE_RANK  which line of it this node is, from 0 (default 0)
# MASTER     host:port of the first node (default 127.0.0.1:29500)
# PYTHON     which Python (default: .venv/bin/python here, else python3)
#
# DeepSpeed's launcher does not start a job again after a failure: launch/torchrun.sh does.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/job.sh"
explain "${BASH_SOURCE[0]}" "$@"
python=$(chosen_python)
master=${MASTER:-127.0.0.1:29500}
exec "$python" -m deepspeed.launcher.runner --hostfile "${HOSTFILE:-$(dirname "${BASH_SOURCE[0]}")/hostfile}" --no_ssh \
    --node_rank "${NODE_RANK:-0}" --master_addr "${master%:*}" --master_port "${master##*:}" \
    --module mpsoftmax train "$@"
