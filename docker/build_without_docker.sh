#!/usr/bin/env bash
# Builds the CPU image without a Docker engine, trains in it, and runs tests in it: buildah in a chroot. Needs root and
# Debian's apt; minutes, and about 6 GB of disk while it runs.
#   docker/build_without_docker.sh                      build, train, a short share of the tests
#   docker/build_without_docker.sh -m "not slow"        arguments go to pytest: all of CI's tests
#   BASE=nvidia/cuda:... docker/build_without_docker.sh     another base image; one that a registry has
#
# TORCH_INDEX is where torch's CPU wheels are; by default nowhere else than pip looks anyway where this machine's pip has an
# index or wheels of its own. Without BASE the base is made from Debian's packages, so that no image registry is needed. pip settings of this machine
# (index, wheels, certificates) go into the build and do not stay in the image.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

if [ "$(id -u)" != 0 ]; then
    echo "docker/build_without_docker.sh: needs root, to make root file systems" >&2
    exit 2
fi
missing=()
for tool in buildah crun mmdebstrap; do command -v "$tool" >/dev/null || missing+=("$tool"); done
if [ ${#missing[@]} -gt 0 ]; then
    apt-get update -qq
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
fi

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
image() { buildah --storage-driver overlay "$@"; }

if [ -z "${BASE:-}" ]; then
    BASE=localhost/debian:bookworm-slim
    if ! image inspect --type image "$BASE" >/dev/null 2>&1; then
        mmdebstrap --variant=minbase --mode=root bookworm "$folder/rootfs.tar"
        printf 'FROM scratch\nADD rootfs.tar /\nCMD ["bash"]\n' >"$folder/Dockerfile"
        image bud --quiet --isolation chroot -t "$BASE" "$folder"
    fi
fi

# What pip needs here: its settings, folders of wheels they name, and the certificates this machine trusts.
mounts=()
python3 -m pip config list 2>/dev/null | sed -n "s/^global\.\([a-z-]*\)='\(.*\)'$/\1 = \2/p" | grep -v '^cert' \
    | sed 's/\\n/\n    /g' >"$folder/settings" || true
{ echo "[global]"; cat "$folder/settings"; } >"$folder/pip.conf"
while read -r place; do
    # An index in a folder links to files beside it.
    case $place in file://*) place=$(dirname "${place#file://}") ;; esac
    if [ -e "$place" ]; then mounts+=(-v "$place:$place:ro"); fi
done < <(grep -oE '(file://)?/[^ ]+' "$folder/settings" | grep -v '^//' || true)
certificates=${PIP_CERT:-${SSL_CERT_FILE:-}}
if [ -n "$certificates" ]; then
    mounts+=(-v "$certificates:/host-certificates.pem:ro")
    echo "cert = /host-certificates.pem" >>"$folder/pip.conf"
fi
mounts+=(-v "$folder/pip.conf:/etc/pip.conf:ro")

arguments=(--build-arg "BASE=$BASE")
if [ -n "${TORCH_INDEX+set}" ] || grep -qE 'index-url|find-links' "$folder/settings"; then
    arguments+=(--build-arg "TORCH_INDEX=${TORCH_INDEX:-}")
fi
build() {
    image bud --isolation chroot --layers -f docker/Dockerfile "${arguments[@]}" "${mounts[@]}" "$@" .
}
in_image() {
    local container status=0
    container=$(image from --pull-never "$1")
    shift
    image run --isolation chroot "${mounts[@]}" "$container" -- "$@" || status=$?
    image rm "$container" >/dev/null
    return $status
}

SECONDS=0
build -t localhost/mpsoftmax:cpu
built=$SECONDS
bytes=$(image inspect --type image --format '{{.Size}}' localhost/mpsoftmax:cpu 2>/dev/null || true)
if [ -z "$bytes" ]; then bytes=$(image images --format '{{.Size}}' localhost/mpsoftmax:cpu); fi
image inspect --type image --format '{{.OCIv1.Config.User}}' localhost/mpsoftmax:cpu | grep -qx 1000:1000
echo "image localhost/mpsoftmax:cpu: $bytes, built in $built s"

SECONDS=0
in_image localhost/mpsoftmax:cpu tini -s -- mpsoftmax train configs/quickstart.yaml train.steps=20 \
    train.batch_size=64 run.dir=runs/in-image --nproc 2
echo "trained in the image in $SECONDS s"

SECONDS=0
build --target test -t localhost/mpsoftmax:test
tests=("$@")
if [ ${#tests[@]} -eq 0 ]; then
    tests=(-q -m "not slow" tests/head/test_formulas.py tests/head/test_collectives.py tests/data tests/train/test_schedule.py)
fi
in_image localhost/mpsoftmax:test python3 -m pytest -p no:cacheprovider "${tests[@]}"
echo "test image built and tests run in $SECONDS s"
