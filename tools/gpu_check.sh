#!/usr/bin/env bash
# Everything about the Triton kernels that only a GPU can tell.
set -euo pipefail
if [ "${1:-}" = -h ] || [ "${1:-}" = --help ]; then
    cat <<'HELP'
usage: bash tools/gpu_check.sh [FOLDER [STEP ...]]

On a machine with a GPU: runs the GPU tests of the operators (step tests), compute-sanitizer on small
shapes where CUDA's is installed (memcheck, racecheck, synccheck), and the benchmark in float16
(benchmark); all of them, or the STEPs that are named. Writes benchmark.json, benchmark.png and the
logs to FOLDER (default: work_dirs/gpu_check). Needs a Python environment with torch, triton, pytest,
numpy, pip and setuptools: the active one, .venv, or that of python3. With matplotlib the benchmark is drawn,
with mmcv CARAFE is timed; with mmsegmentation and mmdetection tiny models also train in float16 and
bfloat16. Most of the time goes into compiling hundreds of kernels. Ends with status 1 if anything
failed; what comes after it is run all the same.
HELP
    exit
fi
all_steps="tests memcheck racecheck synccheck benchmark"
folder=${1:-$(dirname "${BASH_SOURCE[0]}")/../work_dirs/gpu_check}
[ $# -eq 0 ] || shift
for step in "$@"; do
    case " $all_steps " in
    *" $step "*) ;;
    *)
        echo "gpu_check.sh: expected steps among $all_steps, got: $step (try --help)" >&2
        exit 2
        ;;
    esac
done
steps=${*:-$all_steps}
mkdir -p "$folder"
out=$(cd "$folder" && pwd)
cd "$(dirname "${BASH_SOURCE[0]}")/.."

say() { printf '\n\033[1m%s\033[0m\n' "$*"; }
die() {
    printf '\nerror: %s\n' "$*" >&2
    exit 1
}

if [ -z "${VIRTUAL_ENV:-}${CONDA_PREFIX:-}" ] && [ -x .venv/bin/python ]; then
    PYTHON=$PWD/.venv/bin/python
else
    PYTHON=$(command -v python3 || command -v python) || die "there is no python3"
fi
for module in torch triton pytest numpy; do
    "$PYTHON" -c "import $module" 2>/dev/null ||
        die "$PYTHON has no $module: activate an environment that has, or pip install $module"
done
"$PYTHON" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())' ||
    die "torch in $PYTHON sees no GPU"
[ -z "${TRITON_INTERPRET:-}" ] || die "nothing is compiled where TRITON_INTERPRET is set: unset it"
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

has() { "$PYTHON" -c "import $1" 2>/dev/null; }
has mmcv.ops || echo "without mmcv's operators CARAFE is not timed"

failed=()
# step NAME COMMAND...: runs it if it is wanted, keeps its output, and goes on whatever happens.
step() {
    local name=$1
    shift
    case " $steps " in *" $name "*) ;; *) return ;; esac
    say "$name"
    "$@" 2>&1 | tee "$out/$name.log" || failed+=("$name")
}

export PYTHONUNBUFFERED=1
tests=(tests/ops tests/kernels)
# The one test that trains a model needs mmsegmentation.
has mmseg || tests+=(--ignore=tests/kernels/test_training.py)
if has mmseg && has mmdet; then
    tests+=(tests/test_amp.py)
else
    echo "without mmsegmentation and mmdetection no model trains in half precision"
fi
# Nearly every random case is compiled anew.
step tests "$PYTHON" -m pytest -q -m gpu "${tests[@]}" --kernel-cases 60

sanitizer=$(command -v compute-sanitizer || ls /usr/local/cuda/bin/compute-sanitizer 2>/dev/null || true)
if [ -n "$sanitizer" ]; then
    for tool in memcheck racecheck synccheck; do
        # Without its cache torch's allocations have ends that an access can cross.
        step "$tool" env PYTORCH_NO_CUDA_MEMORY_CACHING=1 \
            "$sanitizer" --tool "$tool" --error-exitcode 1 --target-processes all \
            "$PYTHON" -m pytest -q tests/kernels/test_sweep.py tests/kernels/test_tuning.py \
            -k "random_cases or every_entry" --kernel-cases 20
    done
else
    say "compute-sanitizer is not installed (it comes with the CUDA toolkit): its steps are left out"
fi

plot=()
if has matplotlib; then
    plot=(--plot "$out/benchmark.png")
else
    echo "without matplotlib the benchmark is not drawn"
fi
# In the precision that the aims are for; all dtypes take three times as long.
step benchmark "$PYTHON" tools/benchmark.py --dtypes float16 --json "$out/benchmark.json" "${plot[@]}"

say "Results are in $out"
[ ${#failed[@]} -eq 0 ] || die "failed: ${failed[*]}"
