#!/usr/bin/env bash
# Whether sapa_mm works with one combination of Python, torch, numpy and line of OpenMMLab's packages.
set -euo pipefail
usage() {
    cat <<'HELP'
usage: bash tools/try_versions.sh --torch VERSION [--python PYTHON] [--numpy VERSION]
                                  [--line upstream|onedl] [--with-detection] [--out FOLDER] [STEP ...]

Makes an environment of its own with these versions and tries in it, step by step:

  import      sapa_mm imports, registers its modules and says what works
  operators   the tests of the operators and of the upsamplers, but for compile and export
  compile     torch.compile(fullgraph=True) of operators, upsamplers and a segmentor
  export      torch.export of the operators, upsamplers and a segmentor, and ONNX files
  training    a tiny SegFormer with SAPA-G is trained, tested and resumed on toy data
  checkpoint  mmengine's checkpoints load, and what would run code is refused
  detection   with --with-detection: a tiny Faster R-CNN with SAPA-B, the same

By default all of them. Ends with a row for the manual's table, and with status 1 if a step failed.

  --torch VERSION    what pip gets as torch==VERSION; its usual build is several GB large
  --python PYTHON    the interpreter, a command or path (default: python3)
  --numpy VERSION    as numpy==VERSION (default: what pip chooses)
  --line LINE        which of OpenMMLab's packages (default: onedl); upstream's mmcv is compiled
  --with-detection   compiles mmcv's operators and installs mmdetection
  --out FOLDER       environment and logs (default: work_dirs/try_versions/LINE-PYTHON-TORCH[-NUMPY])
HELP
}
all_steps="import operators compile export training checkpoint"
torch='' python=python3 numpy='' out='' part=seg steps=''
cd "$(dirname "${BASH_SOURCE[0]}")/.."
. tools/_setup.sh
LINE=onedl
while [ $# -gt 0 ]; do
    case "$1" in
    -h | --help)
        usage
        exit
        ;;
    --with-detection) part=det ;;
    --torch | --python | --numpy | --line | --out)
        [ $# -gt 1 ] || { echo "try_versions.sh: $1 needs a value (try --help)" >&2; exit 2; }
        case "$1" in
        --line) set_line "$2" ;;
        *) declare "${1#--}=$2" ;;
        esac
        shift
        ;;
    *)
        case " $all_steps detection " in
        *" $1 "*) steps="$steps $1" ;;
        *)
            echo "try_versions.sh: expected steps among $all_steps detection, got: $1 (try --help)" >&2
            exit 2
            ;;
        esac
        ;;
    esac
    shift
done
[ -n "$torch" ] || { echo "try_versions.sh: --torch VERSION is needed (try --help)" >&2; exit 2; }
[ "$LINE" = onedl ] || part=det
if [ -z "$steps" ]; then
    steps=$all_steps
    [ "$part" = seg ] || steps="$steps detection"
fi
base=$(command -v "$python") || die "--python: there is no $python"
is_new_enough "$base" || die "--python: 3.10 or newer is needed, $base is $("$base" --version 2>&1)"
short=$("$base" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
out=${out:-work_dirs/try_versions/$LINE-$short-$torch${numpy:+-$numpy}}
mkdir -p "$out"
out=$(cd "$out" && pwd)
case "$out" in
*' '*) die "--out: pip reads no constraints from a path with a space, got: $out" ;;
esac

say "Making $out/env"
[ -x "$out/env/bin/python" ] || "$base" -m venv "$out/env"
export VIRTUAL_ENV=$out/env PATH=$out/env/bin:$PATH
unset CONDA_PREFIX
# An environment variable, so that nothing that is installed later takes another version.
printf '%s\n' "torch==$torch" ${numpy:+"numpy==$numpy"} >"$out/constraints.txt"
export PIP_CONSTRAINT=$out/constraints.txt
TORCH=torch==$torch
install_everything tools,export "$part"
pip_install pytest psutil

failed=''
results=''
# try STEP COMMAND...: runs a command, its output in a log; only the verdict is shown.
try() {
    local step=$1 verdict=yes
    shift
    case " $steps " in
    *" $step "*) ;;
    *)
        results="$results not run |"
        return
        ;;
    esac
    printf '  %-11s' "$step"
    if ! "$@" >"$out/$step.log" 2>&1; then
        verdict=no
        failed="$failed $step"
    fi
    echo "$verdict  ($out/$step.log)"
    results="$results $verdict |"
}
# tests PATTERN FILE_OR_FOLDER...: those whose names pytest's -k PATTERN takes; without mmdetection
# those that do not need it.
tests() {
    local pattern=$1 found
    shift
    found=$(find "$@" -name 'test_*.py' | sort)
    if [ "$part" = seg ]; then
        pattern="($pattern) and not (mmdet or detector)"
        # shellcheck disable=SC2086  # a list
        found=$(grep -LE '(import|from) (mmdet|mmcv\.ops|testing_(hosts|configs))' $found)
    fi
    # shellcheck disable=SC2086
    OMP_NUM_THREADS=1 "$PYTHON" -m pytest -q -p no:cacheprovider -k "$pattern" $found
}
import_all() {
    sapa-mm info && "$PYTHON" -c '
import sapa_mm.segmentation, sapa_mm.upsamplers
from mmseg.registry import MODELS
assert MODELS.get("SAPA") and MODELS.get("GuidedSegformerHead")'
}
# train_test_resume CONFIG OPTIONS...: all in a folder of its own, with 4 iterations and then 6.
train_test_resume() {
    local config=$1 work=$out/run-$(basename "$1" .py)
    shift
    [ -d "$out/data/toy" ] ||
        sapa-mm toy-data --out "$out/data/toy" --num-train 8 --num-val 4 || return 1
    ln -sfn "$PWD/configs" "$out/configs"
    (
        cd "$out"
        rm -rf "$work"
        export OMP_NUM_THREADS=1
        set -x
        sapa-mm train "$config" --work-dir "$work" --cfg-options train_cfg.max_iters=4 "$@" &&
            sapa-mm test "$config" "$work/iter_4.pth" --work-dir "$work" &&
            sapa-mm train "$config" --work-dir "$work" --resume --cfg-options train_cfg.max_iters=6 \
                "$@" && grep -rq 'Iter(train) \[6/6\]' "$work" && ! grep -rq 'Iter(train) \[1/6\]' "$work"
    )
}

say "Trying"
short_run="train_cfg.val_interval=2 default_hooks.checkpoint.interval=2 default_hooks.logger.interval=1 \
train_dataloader.batch_size=2 train_dataloader.num_workers=0 train_dataloader.persistent_workers=False"
try import import_all
try operators tests 'not compile and not export' tests/ops tests/upsamplers
try compile tests 'compile or one_graph' tests/ops tests/upsamplers tests/segmentation
try export tests export tests/ops tests/upsamplers tests/segmentation tests/tools/test_export.py
# shellcheck disable=SC2086  # options
try training train_test_resume configs/sapa/segformer_mit-t_sapa-g_1xb8-600_toy-160x160.py $short_run
try checkpoint tests test tests/test_compat.py
# shellcheck disable=SC2086
try detection train_test_resume configs/sapa/faster-rcnn_r18_fpn_sapa-b_1xb2-100_toy-160x160.py $short_run

say "A row of the manual's table"
echo "| line | Python | torch | numpy | import | operators | compile | export | training | checkpoints refused | detection |"
"$PYTHON" -W ignore - "$LINE" "$results" <<'ROW'
import platform
import sys
from importlib.metadata import version

line, results = sys.argv[1:]
row = (line, platform.python_version().rpartition('.')[0], version('torch'), version('numpy'))
print('|', *(f'{cell} |' for cell in row), results.strip())
ROW
[ -z "$failed" ] || die "failed:$failed (logs in $out)"
