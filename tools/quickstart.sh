#!/usr/bin/env bash
# From a fresh machine to trained models and a picture.
set -euo pipefail
if [ "${1:-}" = -h ] || [ "${1:-}" = --help ]; then
    cat <<'HELP'
usage: bash tools/quickstart.sh [--depth | --matting | --with-detection] [--line upstream|onedl]

Installs everything into .venv (or into the active environment), makes a toy dataset in data/toy,
trains a tiny SegFormer twice for the same number of iterations, with SAPA-G and with bilinear
upsampling, prints mIoU and boundary IoU of both, and writes work_dirs/quickstart/comparison.png.
Under 10 minutes on two cores. Needs Python >= 3.10. Run again, it skips what is done; delete
work_dirs/quickstart to train anew.

  --depth           trains a tiny BTS, which estimates depth, in place of the SegFormer, with SAPA-B
                    and with nearest upsampling; the report of both, and pictures, are in
                    work_dirs/quickstart/depth.
  --matting         trains a tiny matting network in place of the SegFormer, with SAPA-B and with
                    bilinear upsampling, and cuts a foreground out of a test image; the report of
                    both, pictures, alpha and the cut-out are in work_dirs/quickstart/matting.
  --with-detection  also installs mmdetection, and mmcv with its operators, which takes a C++ compiler
                    and 6 to 15 minutes more, and trains a tiny Faster R-CNN with SAPA-B for some
                    iterations.
  --line LINE       which of OpenMMLab's packages: upstream's own releases (with which mmcv's
                    operators are always built) or the maintained fork, onedl. They go to .venv-LINE.
                    Default: what .venv or the active environment holds, or onedl.
HELP
    exit
fi
cd "$(dirname "${BASH_SOURCE[0]}")/.."
. tools/_setup.sh
chosen=
while [ $# -gt 0 ]; do
    case "$1" in
    --depth | --matting | --with-detection)
        if [ -n "$chosen" ] && [ "$chosen" != "$1" ]; then
            echo "quickstart.sh: expected $chosen or $1, got both (try --help)" >&2
            exit 2
        fi
        chosen=$1
        ;;
    --line)
        set_line "${2:-}"
        shift
        ;;
    *)
        echo "quickstart.sh: expected --depth, --matting, --with-detection or --line LINE, got: $1 (try --help)" >&2
        exit 2
        ;;
    esac
    shift
done
part=seg
task=segmentation
case "$chosen" in
--with-detection) part=det ;;
--depth | --matting) task=${chosen#--} ;;
esac
install_everything tools "$part"

work=work_dirs/quickstart

layouts=(ade coco)
[ "$task" = segmentation ] || layouts=("$task")
if [ ! -d "data/toy/${layouts[0]}" ]; then
    say "Making the toy dataset in data/toy"
    "$PYTHON" tools/make_toy_dataset.py --out data/toy --layouts "${layouts[@]}"
fi

# Progress and results; the log in the work_dir has everything.
run_training() {
    set +e
    "$PYTHON" -W ignore tools/train.py "$2" --work-dir "$work/$1" --resume 2>"$work/$1.err" |
        grep --line-buffered -E 'Iter\((train|val)\)|bbox_mAP_copypaste'
    local status=${PIPESTATUS[0]}
    set -e
    if [ "$status" -ne 0 ]; then
        tail -n 30 "$work/$1.err" >&2
        die "training failed; see $work/$1.err"
    fi
}

is_validated() { grep -qsE '"(mIoU|coco/bbox_mAP)"' "$work/$1"/*/vis_data/scalars.json; }

# train NAME CONFIG: an interrupted run is resumed, a finished one is skipped.
train() {
    if [ -f "$work/$1/done" ]; then
        say "$1 is trained already ($work/$1)"
        return
    fi
    say "Training $1 ($2)"
    run_training "$1" "$2"
    if ! is_validated "$1"; then
        # It was interrupted in its last validation, which resuming does not repeat.
        rm -rf "${work:?}/$1"
        run_training "$1" "$2"
        is_validated "$1" || die "training did not end with a validation; see $work/$1"
    fi
    touch "$work/$1/done"
}

mkdir -p "$work"
if [ "$task" = depth ]; then
    say "Training and comparing a tiny BTS"
    "$PYTHON" -W ignore tools/compare.py configs/bts/bts-tiny_r18_nearest_1xb8-500_toy-160x160.py \
        --upsamplers nearest,sapa-b --seeds 0 --jobs 2 --work-dir "$work/depth"
    cat "$work/depth/report.md"
elif [ "$task" = matting ]; then
    say "Training and comparing a tiny matting network"
    "$PYTHON" -W ignore tools/compare.py configs/matting/matting-tiny_bilinear_1xb8-400_toy-96x96.py \
        --upsamplers bilinear,sapa-b --seeds 0 --jobs 2 --work-dir "$work/matting"
    cat "$work/matting/report.md"
    say "Cutting a foreground out of an image"
    test_set=data/toy/matting/Test_set
    merged=("$test_set"/merged/*.png)
    "$PYTHON" -W ignore tools/matte.py "${merged[0]}" "$test_set/trimaps/${merged[0]##*/}" \
        --checkpoint "$(cat "$work/matting/sapa-b/seed0/last_checkpoint")" \
        -o "$work/matting/alpha.png" --cutout "$work/matting/cutout.png" \
        --picture "$work/matting/matte.png"
else
    train segformer_sapa-g configs/sapa/segformer_mit-t_sapa-g_1xb8-600_toy-160x160.py
    train segformer_bilinear configs/sapa/segformer_mit-t_bilinear_1xb8-600_toy-160x160.py
    [ "$part" = seg ] || train faster-rcnn_sapa-b configs/sapa/faster-rcnn_r18_fpn_sapa-b_1xb2-100_toy-160x160.py

    say "Comparing"
    "$PYTHON" -W ignore tools/quickstart_report.py --out "$work/comparison.png" \
        "SAPA-G=$work/segformer_sapa-g" "bilinear=$work/segformer_bilinear"
fi

say "Next"
if [ -f "${PYTHON%/python}/activate" ]; then
    echo "Tools and configs run in this environment: . ${PYTHON%/python}/activate"
else
    echo "Tools and configs run in the active environment, ${PYTHON%/bin/python}"
fi
