# Sourced by dist_train.sh and dist_test.sh: what starting several processes takes.

environment_help() {
  cat <<'USAGE'
Environment:
  NNODES       machines that take part                            (default: 1)
  NODE_RANK    which of them this is, from 0                      (default: 0)
  MASTER_ADDR  address of machine 0; required if NNODES > 1       (default: 127.0.0.1)
  PORT         port on machine 0     (default: a free one; 29500 if NNODES > 1)
  PYTHON       interpreter                                        (default: python)
USAGE
}

fail() {
  local script
  script=tools/$(basename "$0")
  echo "$script: error: $1" >&2
  echo "See $script --help." >&2
  exit 2
}

# launch GPUS SCRIPT [arguments]: one process a GPU, each running a script of this folder.
launch() {
  local gpus=$1 script=$2 nnodes=${NNODES:-1} rendezvous
  shift 2
  [[ $gpus =~ ^[1-9][0-9]*$ ]] || fail "GPUS: expected a positive number, got '$gpus'"
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
    "$(dirname "${BASH_SOURCE[0]}")/$script" "$@"
}
