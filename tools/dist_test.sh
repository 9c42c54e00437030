#!/usr/bin/env bash
# Evaluates with several processes; see --help.
set -euo pipefail

usage() {
  cat <<'USAGE'
Usage: tools/dist_test.sh CONFIG CHECKPOINT GPUS [arguments of tools/test.py]

Evaluate a checkpoint with one process a GPU, on this machine or on several. Without a GPU
the processes run on the CPU and talk by gloo.

  CONFIG      path of a config, or the name of one that the framework installs (mmseg::...)
  CHECKPOINT  the weights, a file
  GPUS        processes to start on this machine

Environment:
  NNODES       machines that take part                            (default: 1)
  NODE_RANK    which of them this is, from 0                      (default: 0)
  MASTER_ADDR  address of machine 0; required if NNODES > 1       (default: 127.0.0.1)
  PORT         port on machine 0     (default: a free one; 29500 if NNODES > 1)
  PYTHON       interpreter                                        (default: python)

Example:
  tools/dist_test.sh configs/my_config.py work_dirs/mine/iter_160000.pth 8
USAGE
}

fail() {
  echo "tools/dist_test.sh: error: $1" >&2
  echo "See tools/dist_test.sh --help." >&2
  exit 2
}

case "${1:-}" in -h | --help) usage; exit 0 ;; esac
[[ $# -ge 1 ]] || fail 'CONFIG, CHECKPOINT and GPUS are missing'
[[ $# -ge 2 ]] || fail 'CHECKPOINT and GPUS are missing'
[[ $# -ge 3 ]] || fail 'GPUS, the number of processes, is missing'
config=$1 checkpoint=$2 gpus=$3
shift 3
[[ $gpus =~ ^[1-9][0-9]*$ ]] || fail "GPUS: expected a positive number, got '$gpus'"

nnodes=${NNODES:-1}
if [[ $nnodes == 1 && -z ${PORT:-} ]]; then
  # torchrun picks a free port, so that several runs fit on one machine.
  rendezvous=(--standalone --local-addr=127.0.0.1)
else
  [[ $nnodes == 1 || -n ${MASTER_ADDR:-} ]] || fail 'MASTER_ADDR: required if NNODES > 1'
  rendezvous=(
    "--nnodes=$nnodes" "--node-rank=${NODE_RANK:-0}"
    "--master-addr=${MASTER_ADDR:-127.0.0.1}" "--master-port=${PORT:-29500}"
  )
fi

exec "${PYTHON:-python}" -m torch.distributed.run "${rendezvous[@]}" "--nproc-per-node=$gpus" \
  "$(dirname "${BASH_SOURCE[0]}")/test.py" "$config" "$checkpoint" --launcher pytorch "$@"
