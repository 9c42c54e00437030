#!/usr/bin/env bash
# Everything about the Triton kernels that only a GPU can tell.
set -euo pipefail
if [ "${1:-}" = -h ] || [ "${1:-}" = --help ]; then
    cat <<'HELP'
usage: bash tools/gpu_check.sh [FOLDER]

On a machine with a GPU: runs the GPU tests of the operators, compute-sanitizer on small shapes
(where CUDA's is installed), and the benchmark. Writes benchmark.json, benchmark.png and the logs to
FOLDER (default: work_dirs/gpu_check). Needs a Python environment with torch, triton and pytest, no
OpenMMLab package; the active one is used, or python3. About 20 minutes. Ends with status 1 if
anything failed; what comes after it is run all the same.
HELP
    exit
fi
[ $# -le 1 ] || { echo "gpu_check.sh takes one argument, got: $* (try --help)" >&2; exit 2; }
mkdir -p "${1:-$(dirname "${BASH_SOURCE[0]}")/../work_dirs/gpu_check}"
out=$(cd "${1:-$(dirname "${BASH_SOURCE[0]}")/../work_dirs/gpu_check}" && pwd)
cd "$(dirname "${BASH_SOURCE[0]}")/.."

say() { printf '\n\033[1m%s\033[0m\n' "$*"; }
die() {
    printf '\nerror: %s\n' "$*" >&2
    exit 1
}

PYTHON=$(command -v python3 || command -v python) || die "there is no python3"
for module in torch triton pytest numpy; do
    "$PYTHON" -c "import $module" 2>/dev/null ||
        die "$PYTHON has no $module: activate an environment that has, or pip install $module"
done
"$PYTHON" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())' ||
    die "torch in $PYTHON sees no GPU"
[ "${TRITON_INTERPRET:-0}" != 1 ] || die "nothing is compiled where TRITON_INTERPRET=1 is set: unset it"
# kernels/ is sapa_mm.kernels only once the package is installed.
if ! "$PYTHON" -c 'import sapa_mm.kernels' 2>/dev/null; then
    say "Installing sapa_mm"
    "$PYTHON" -m pip install --quiet --no-deps --no-build-isolation -e .
fi
"$PYTHON" - <<'PY'
import torch, triton
properties = torch.cuda.get_device_properties(0)
print(f'{properties.name}, torch {torch.__version__}, triton {triton.__version__}')
PY

failed=()
# step NAME COMMAND...: runs it, keeps its output, and goes on whatever happens.
step() {
    local name=$1
    shift
    say "$name"
    "$@" 2>&1 | tee "$out/$name.log" || failed+=("$name")
}

export PYTHONUNBUFFERED=1
tests=(tests/ops tests/kernels)
# The one test that trains a model needs mmsegmentation.
"$PYTHON" -c 'import mmseg' 2>/dev/null || tests+=(--ignore=tests/kernels/test_training.py)
step tests "$PYTHON" -m pytest -q -m gpu "${tests[@]}"

sanitizer=$(command -v compute-sanitizer || ls /usr/local/cuda/bin/compute-sanitizer 2>/dev/null || true)
if [ -n "$sanitizer" ]; then
    # Without its cache torch's allocations have ends that an access can cross.
    export PYTORCH_NO_CUDA_MEMORY_CACHING=1
    for tool in memcheck racecheck synccheck; do
        step "$tool" "$sanitizer" --tool "$tool" --error-exitcode 1 --target-processes all \
            "$PYTHON" -m pytest -q tests/kernels/test_sweep.py --kernel-cases 20
    done
    unset PYTORCH_NO_CUDA_MEMORY_CACHING
else
    say "compute-sanitizer is not installed; it comes with the CUDA toolkit"
    failed+=(compute-sanitizer)
fi

# In the precision that the aims are for; all dtypes take three times as long.
step benchmark "$PYTHON" tools/benchmark.py --dtypes float16 \
    --json "$out/benchmark.json" --plot "$out/benchmark.png"

say "Results are in $out"
[ ${#failed[@]} -eq 0 ] || die "failed: ${failed[*]}"
