#!/usr/bin/env bash
# Evaluates with several processes; see --help.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/_dist.sh"

usage() {
  cat <<'USAGE'
Usage: tools/dist_test.sh CONFIG CHECKPOINT GPUS [arguments of tools/test.py]

Evaluate a checkpoint with one process a GPU, on this machine or on several. Without a GPU
the processes run on the CPU and talk by gloo.

  CONFIG      path of a config, or the name of one that the framework installs (mmseg::...)
  CHECKPOINT  the weights, a file
  GPUS        processes to start on this machine

USAGE
  environment_help
  cat <<'USAGE'

Example:
  tools/dist_test.sh configs/my_config.py work_dirs/mine/iter_160000.pth 8
USAGE
}

case "${1:-}" in -h | --help) usage; exit 0 ;; esac
[[ $# -ge 1 ]] || fail 'CONFIG, CHECKPOINT and GPUS are missing'
[[ $# -ge 2 ]] || fail 'CHECKPOINT and GPUS are missing'
[[ $# -ge 3 ]] || fail 'GPUS, the number of processes, is missing'
config=$1 checkpoint=$2 gpus=$3
shift 3
launch "$gpus" test.py "$config" "$checkpoint" --launcher pytorch "$@"
