#!/usr/bin/env bash
# Trains under Slurm; see --help.
set -euo pipefail

usage() {
  cat <<'USAGE'
Usage: tools/slurm_train.sh PARTITION JOB_NAME CONFIG WORK_DIR [arguments of tools/train.py]

Start one training task a GPU by srun.

  PARTITION  Slurm's partition
  JOB_NAME   name of the job
  CONFIG     path of a config, or the name of one that the framework installs (mmseg::...)
  WORK_DIR   folder for logs and checkpoints

Environment:
  GPUS           GPUs in all                        (default: 8)
  GPUS_PER_NODE  GPUs on a machine                  (default: GPUS, at most 8)
  CPUS_PER_TASK  CPU cores for each GPU             (default: 5)
  SRUN_ARGS      more arguments for srun, separated by spaces
  PORT           port on the first machine          (default: a random one from 20000 to 29999)
  PYTHON         interpreter                        (default: python)

Example:
  GPUS=16 SRUN_ARGS='--time=24:00:00' \
    tools/slurm_train.sh gpu sapa configs/my_config.py work_dirs/mine --amp
USAGE
}

fail() {
  echo "tools/slurm_train.sh: error: $1" >&2
  echo "See tools/slurm_train.sh --help." >&2
  exit 2
}

case "${1:-}" in -h | --help) usage; exit 0 ;; esac
names=(PARTITION JOB_NAME CONFIG WORK_DIR)
[[ $# -ge 4 ]] || fail "${names[*]:$#} missing"
partition=$1 job_name=$2 config=$3 work_dir=$4
shift 4

gpus=${GPUS:-8}
[[ $gpus =~ ^[1-9][0-9]*$ ]] || fail "GPUS: expected a positive number, got '$gpus'"
gpus_per_node=${GPUS_PER_NODE:-$((gpus < 8 ? gpus : 8))}
[[ $gpus_per_node =~ ^[1-9][0-9]*$ ]] ||
  fail "GPUS_PER_NODE: expected a positive number, got '$gpus_per_node'"
command -v srun >/dev/null || fail 'srun is not installed: this is no Slurm machine'
read -ra srun_args <<<"${SRUN_ARGS:-}"

# Every task inherits it, so that two jobs on one machine do not meet on one port.
export MASTER_PORT=${PORT:-$((20000 + RANDOM % 10000))}

exec srun \
  --partition="$partition" \
  --job-name="$job_name" \
  --gres="gpu:$gpus_per_node" \
  --ntasks="$gpus" \
  --ntasks-per-node="$gpus_per_node" \
  --cpus-per-task="${CPUS_PER_TASK:-5}" \
  --kill-on-bad-exit=1 \
  ${srun_args[@]+"${srun_args[@]}"} \
  "${PYTHON:-python}" -u "$(dirname "${BASH_SOURCE[0]}")/train.py" "$config" \
  --work-dir="$work_dir" --launcher=slurm "$@"
