#!/usr/bin/env bash
# Trains with several processes; see --help.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/_dist.sh"

usage() {
  cat <<'USAGE'
Usage: tools/dist_train.sh CONFIG GPUS [arguments of tools/train.py]

Start one training process a GPU, on this machine or on several. Without a GPU the
processes run on the CPU and talk by gloo.

  CONFIG  path of a config, or the name of one that the framework installs (mmseg::...)
  GPUS    processes to start on this machine

USAGE
  environment_help
  cat <<'USAGE'

Examples:
  tools/dist_train.sh configs/my_config.py 8 --amp --work-dir work_dirs/mine
  NNODES=2 NODE_RANK=0 MASTER_ADDR=10.0.0.1 tools/dist_train.sh configs/my_config.py 8
USAGE
}

case "${1:-}" in -h | --help) usage; exit 0 ;; esac
[[ $# -ge 1 ]] || fail 'CONFIG and GPUS are missing'
[[ $# -ge 2 ]] || fail 'GPUS, the number of processes, is missing'
config=$1 gpus=$2
shift 2
launch "$gpus" train.py "$config" --launcher pytorch "$@"
