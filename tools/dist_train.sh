#!/usr/bin/env bash
# Trains with several processes; see --help.
set -euo pipefail

usage() {
  cat <<'USAGE'
Usage: tools/dist_train.sh CONFIG GPUS [arguments of tools/train.py]

Start one training process a GPU, on this machine or on several. Without a GPU the
processes run on the CPU and talk by gloo.

  CONFIG  path of a config, or the name of one that the framework installs (mmseg::...)
  GPUS    processes to start on this machine

Environment:
  NNODES       machines that take part                            (default: 1)
  NODE_RANK    which of them this is, from 0                      (default: 0)
  MASTER_ADDR  address of machine 0; required if NNODES > 1       (default: 127.0.0.1)
  PORT         port on machine 0     (default: a free one; 29500 if NNODES > 1)
  PYTHON       interpreter                                        (default: python)

Examples:
  tools/dist_train.sh configs/my_config.py 8 --amp --work-dir work_dirs/mine
  NNODES=2 NODE_RANK=0 MASTER_ADDR=10.0.0.1 tools/dist_train.sh configs/my_config.py 8
USAGE
}

fail() {
  echo "tools/dist_train.sh: error: $1" >&2
  echo "See tools/dist_train.sh --help." >&2
  exit 2
}

case "${1:-}" in -h | --help) usage; exit 0 ;; esac
[[ $# -ge 1 ]] || fail 'CONFIG and GPUS are missing'
[[ $# -ge 2 ]] || fail 'GPUS, the number of processes, is missing'
config=$1 gpus=$2
shift 2
[[ $gpus =~ ^[1-9][0-9]*$ ]] || fail "GPUS: expected a positive number, got '$gpus'"

nnodes=${NNODES:-1}
if [[ $nnodes == 1 && -z ${PORT:-} ]]; then
  # torchrun picks a free port, so that several trainings fit on one machine.
  rendezvous=(--standalone --local-addr=127.0.0.1)
else
  [[ $nnodes == 1 || -n ${MASTER_ADDR:-} ]] || fail 'MASTER_ADDR: required if NNODES > 1'
  rendezvous=(
    "--nnodes=$nnodes" "--node-rank=${NODE_RANK:-0}"
    "--master-addr=${MASTER_ADDR:-127.0.0.1}" "--master-port=${PORT:-29500}"
  )
fi

exec "${PYTHON:-python}" -m torch.distributed.run "${rendezvous[@]}" "--nproc-per-node=$gpus" \
  "$(dirname "${BASH_SOURCE[0]}")/train.py" "$config" --launcher pytorch "$@"
