#!/usr/bin/env bash
# Everything about the Triton kernels that only a GPU can tell.
set -euo pipefail
if [ "${1:-}" = -h ] || [ "${1:-}" = --help ]; then
    cat <<'HELP'
usage: bash tools/gpu_check.sh [--against BASELINE] [FOLDER [STEP ...]]

On a machine with a GPU, within eight minutes where it has 16 cores and a new GPU, runs in this
order (in brackets: seconds after which a step is stopped and counts as failed)

  tests      the GPU tests of the operators, side by side where pytest-xdist is installed (180)
  benchmark  what calls take of the host (25), and the operator, the modules and what they are
             measured by, at four sizes in float16 (100)
  models     training steps of SegFormer-B1 in float16 and its predictions with each upsampler,
             where mmsegmentation is installed (80)
  memcheck   compute-sanitizer on a few random cases, where CUDA's is installed (45)

or the STEPs that are named, which may also be racecheck and synccheck (120 each), compute-sanitizer
again, and more_tests (900), those of single kernels and of models in half precision. What the
measurements compile and time before they begin is done first, side by side (90). Writes what the
steps print to FOLDER/STEP.log (default: work_dirs/gpu_check), and the figures to benchmark.json,
host.json and models.json there; with --against it says what got slower since those in the folder
BASELINE.

Needs a Python environment with torch, triton, pytest, numpy, pip and setuptools: the active one,
.venv, or that of python3. With matplotlib the benchmark is drawn, with mmcv's operators CARAFE is
timed; with mmsegmentation and mmdetection tiny models also train in float16 and bfloat16. Most of
the time goes into compiling hundreds of kernels. Ends with status 1 if anything failed; what comes
after it is run all the same.
HELP
    exit
fi
default_steps="tests benchmark models memcheck"
all_steps="$default_steps racecheck synccheck more_tests"
baseline=
if [ "${1:-}" = --against ]; then
    if [ ! -d "${2:-}" ]; then
        echo "gpu_check.sh: --against: expected a FOLDER of an earlier run, got: ${2:-nothing}" >&2
        exit 2
    fi
    baseline=$(cd "$2" && pwd)
    shift 2
fi
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
steps=${*:-$default_steps}
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
# Says in one process, since importing torch takes long, which of the modules can be imported.
installed=$(
    "$PYTHON" -W ignore - 2>/dev/null <<'PY'
import contextlib, importlib, sys
out = sys.stdout
for name in 'torch triton pytest numpy xdist matplotlib mmseg mmdet mmcv.ops'.split():
    with contextlib.suppress(Exception), contextlib.redirect_stdout(sys.stderr):
        importlib.import_module(name)
        print(name, file=out)
if 'torch' in sys.modules and sys.modules['torch'].cuda.is_available():
    print('gpu')
PY
) || die "$PYTHON does not run"
has() { grep -qxF "$1" <<<"$installed"; }
for module in torch triton pytest numpy; do
    has "$module" ||
        die "$PYTHON has no $module: activate an environment that has, or pip install $module"
done
has gpu || die "torch in $PYTHON sees no GPU"
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

wanted() { case " $steps " in *" $1 "*) ;; *) return 1 ;; esac }
for name in $steps; do rm -f "$out/$name.log"; done
failed=()
# step NAME LIMIT COMMAND...: runs it if it is wanted, for LIMIT seconds at most, adds its output to
# the step's log, and goes on whatever happens.
step() {
    local name=$1 limit=$2 begun=$SECONDS status=0
    shift 2
    wanted "$name" || return 0
    say "$name"
    # After SIGINT pytest still prints what has failed so far.
    timeout -s INT -k 5 "$limit" "$@" 2>&1 | tee -a "$out/$name.log" || status=$?
    echo "$name: $((SECONDS - begun)) s"
    case $status in
    0) ;;
    124 | 137) failed+=("$name, stopped after $limit s") ;;
    *) failed+=("$name") ;;
    esac
}

export PYTHONUNBUFFERED=1
cores=$(nproc)
parallel=()
if has xdist; then
    parallel=(-n $((cores < 16 ? cores : 16)))
elif wanted tests || wanted more_tests; then
    echo "without pytest-xdist the tests run one by one and take too long: pip install pytest-xdist"
fi
# Nearly every random case is compiled anew.
kernel_tests=(tests/kernels/test_gpu.py tests/kernels/test_sweep.py)
step tests 180 "$PYTHON" -m pytest -q -m gpu "${parallel[@]}" tests/ops "${kernel_tests[@]}" \
    --kernel-cases 60

# compared FILE: sets options, the arguments that write FILE and compare it with the baseline's.
compared() {
    options=(--json "$out/$1")
    if [ -z "$baseline" ]; then
        return
    elif [ -f "$baseline/$1" ]; then
        options+=(--against "$baseline/$1")
    else
        echo "there is no $baseline/$1 to compare with"
    fi
}
models=()
for name in baseline/bilinear sapa/sapa-b sapa/sapa-g sapa/sapa-i carafe/carafe \
    index_net/index-net a2u/a2u; do
    end=8xb2-160k_ade20k-512x512.py
    models+=("configs/${name%/*}/segformer_mit-b1_${name#*/}_$end")
done
# ahead ARG...: runs the benchmark in the background, for what Triton keeps of it. What it finds
# fastest beside others is not kept.
ahead() {
    SAPA_MM_CACHE=$(mktemp -d -p "$scratch") timeout 90 "$PYTHON" tools/benchmark.py --rounds 1 \
        "$@" >/dev/null 2>&1 &
}
if { wanted benchmark || wanted models; } && [ "$cores" -ge 4 ]; then
    say "Compiling side by side"
    begun=$SECONDS
    scratch=$(mktemp -d)
    if wanted benchmark; then
        ahead --host
        for layout in nchw channels_last; do
            for candidate in sapa_mm sapa-i-module sapa-b-module sapa-g-module; do
                ahead --batch 2 --size 200 304 --dtypes float16 --layouts $layout \
                    --candidates $candidate
            done
        done
    fi
    if wanted models && has mmseg; then
        for model in "${models[@]}"; do
            ahead --train-step --batch 2 --models "$model"
        done
    fi
    wait
    rm -rf "$scratch"
    echo "compiling: $((SECONDS - begun)) s"
fi
if wanted benchmark; then
    has mmcv.ops || echo "without mmcv's operators CARAFE is not timed"
    compared host.json
    step benchmark 25 "$PYTHON" tools/benchmark.py --host --rounds 9 "${options[@]}"
    compared benchmark.json
    if has matplotlib; then
        options+=(--plot "$out/benchmark.png")
    else
        echo "without matplotlib the benchmark is not drawn"
    fi
    step benchmark 100 "$PYTHON" tools/benchmark.py --shapes gpu --rounds 9 "${options[@]}"
fi

if wanted models && has mmseg; then
    compared models.json
    step models 80 "$PYTHON" tools/benchmark.py --train-step --rounds 9 --models "${models[@]}" \
        "${options[@]}"
elif wanted models; then
    echo "without mmsegmentation no model is trained"
fi

sanitizer=$(command -v compute-sanitizer || ls /usr/local/cuda/bin/compute-sanitizer 2>/dev/null || true)
# sanitize TOOL LIMIT: runs a few random cases under a tool of compute-sanitizer.
sanitize() {
    wanted "$1" || return 0
    if [ -z "$sanitizer" ]; then
        echo "$1 is left out: compute-sanitizer is not installed (it comes with the CUDA toolkit)"
        return 0
    fi
    # Without its cache torch's allocations have ends that an access can cross.
    step "$1" "$2" env PYTORCH_NO_CUDA_MEMORY_CACHING=1 \
        "$sanitizer" --tool "$1" --error-exitcode 1 --target-processes all \
        "$PYTHON" -m pytest -q tests/kernels/test_sweep.py -k random_cases --kernel-cases 10
}
sanitize memcheck 45
sanitize racecheck 120
sanitize synccheck 120

if wanted more_tests; then
    more=(tests/kernels --ignore=tests/kernels/test_gpu.py --ignore=tests/kernels/test_sweep.py)
    # The one test there that trains a model needs mmsegmentation.
    has mmseg || more+=(--ignore=tests/kernels/test_training.py)
    has mmengine && more+=(tests/reconstruction)
    if has mmseg && has mmdet; then
        more+=(tests/test_amp.py)
    else
        echo "without mmsegmentation and mmdetection no model trains in half precision"
    fi
    step more_tests 900 "$PYTHON" -m pytest -q -m gpu "${parallel[@]}" "${more[@]}"
fi

say "Results are in $out"
if [ ${#failed[@]} -gt 0 ]; then
    die "failed: $(printf '%s; ' "${failed[@]}")"
fi
