# Sourced by quickstart.sh and test.sh: puts everything into a Python environment, once.
#
# An active virtual or conda environment (but not conda's base) is used, and what it has is kept:
# torch and mmcv if their versions are supported, and the frameworks of the line of OpenMMLab's
# packages that is there, upstream's own releases or the maintained fork 'onedl'. Otherwise .venv is
# made (.venv-LINE where a line is asked for). Sets PYTHON. Needs Python >= 3.10 and, to build mmcv's
# operators, a C++ compiler. Safe to run again.

# The versions the project is tested with.
TORCH=torch==2.13.0
MMCV_upstream=mmcv==2.1.0
MMCV_onedl=onedl-mmcv==2.3.6
# mmsegmentation imports ftfy and regex without requiring them.
SEG_upstream="mmengine==0.10.7 mmsegmentation==1.2.2 ftfy regex"
SEG_onedl="onedl-mmengine==0.10.12 onedl-mmsegmentation==1.4.2"
DET_upstream=mmdet==3.3.0
DET_onedl=onedl-mmdetection==3.5.1
# The setup.py of upstream's mmcv needs pkg_resources, which setuptools 81 dropped.
SETUPTOOLS="setuptools<81"

# What was asked for by --line: 'upstream', 'onedl', or nothing.
LINE=

say() { printf '\n\033[1m%s\033[0m\n' "$*"; }
die() {
    printf '\nerror: %s\n' "$*" >&2
    exit 1
}

is_new_enough() { "$1" -c 'import sys; sys.exit(sys.version_info < (3, 10))'; }

# set_line LINE: the line to install; stops unless there is such a one.
set_line() {
    case "$1" in
    upstream | onedl) LINE=$1 ;;
    *)
        echo "--line: expected upstream or onedl, got: ${1:-nothing} (try --help)" >&2
        exit 2
        ;;
    esac
}

choose_python() {
    if [ -n "${VIRTUAL_ENV:-}" ]; then
        PYTHON=$VIRTUAL_ENV/bin/python
    elif [ -n "${CONDA_PREFIX:-}" ] && [ "${CONDA_DEFAULT_ENV:-}" != base ]; then
        PYTHON=$CONDA_PREFIX/bin/python
    else
        local venv=.venv${LINE:+-$LINE}
        PYTHON=$PWD/$venv/bin/python
        # One that was stopped half-way has no pip.
        if ! "$PYTHON" -m pip --version >/dev/null 2>&1; then
            local base
            base=$(command -v python3 || command -v python) || die "install Python 3.10 or newer"
            is_new_enough "$base" ||
                die "Python 3.10 or newer is needed, $base is $("$base" --version 2>&1)"
            say "Making $venv"
            "$base" -m venv --clear "$venv" ||
                die "python3 -m venv failed: install your system's python3-venv"
        fi
    fi
    [ -x "$PYTHON" ] || die "the active environment has no $PYTHON"
    is_new_enough "$PYTHON" ||
        die "Python 3.10 or newer is needed, $PYTHON is $("$PYTHON" --version 2>&1)"
    "$PYTHON" -m pip --version >/dev/null 2>&1 ||
        die "the active environment has no pip: $PYTHON -m ensurepip"
}

# Keeps the line that the environment holds; 'onedl' if it holds none and none was asked for.
choose_line() {
    local found
    found=$("$PYTHON" -c "
import sys
sys.path.insert(0, 'sapa_mm')
from frameworks import installed_lines
print(*installed_lines())")
    case "$found" in
    *' '*) die "$PYTHON holds packages of both lines of OpenMMLab, upstream and onedl, which \
overwrite each other: take a new environment" ;;
    esac
    [ -z "$found" ] || [ -z "$LINE" ] || [ "$found" = "$LINE" ] ||
        die "$PYTHON holds the line $found, not $LINE: take another environment"
    LINE=${found:-${LINE:-onedl}}
    local mmcv=MMCV_$LINE seg=SEG_$LINE det=DET_$LINE
    MMCV=${!mmcv} SEG=${!seg} DET=${!det}
}

pip_install() { "$PYTHON" -m pip install --quiet --disable-pip-version-check "$@"; }

# Whether a Python expression holds; a module that cannot be imported counts as no.
holds() { "$PYTHON" -W ignore -c "import sys; sys.exit(not ($1))" 2>/dev/null; }

has_torch() { holds '__import__("torch").__version__ >= (2, 4)'; }

# mmcv in a version that the line's frameworks take, with operators that work or without any.
has_mmcv() {
    local version='tuple(map(int, __import__("mmcv").__version__.split(".")[:2]))'
    if [ "$LINE" = onedl ]; then
        holds "$version >= (2, 3)"
    else
        holds "(2, 0) <= $version < (2, 2)"
    fi
}
has_working_mmcv() {
    has_mmcv && "$PYTHON" -W ignore -c '
try:
    import mmcv._ext
except ModuleNotFoundError:
    pass' 2>/dev/null
}
has_mmcv_ops() { has_mmcv && holds '__import__("mmcv.ops")'; }

# not_installed NAME==VERSION...: those of which the environment has no version at all.
not_installed() {
    "$PYTHON" - "$@" <<'PY'
import sys
from importlib import metadata

for requirement in sys.argv[1:]:
    try:
        metadata.version(requirement.partition('==')[0])
    except metadata.PackageNotFoundError:
        print(requirement)
PY
}

# Builds mmcv with its operators and shows how far the compiler is.
build_mmcv() {
    local log=$1
    shift
    MMCV_WITH_OPS=1 "$PYTHON" -m pip install --verbose --no-build-isolation \
        --disable-pip-version-check "$@" "$MMCV" 2>&1 | tee "$log" |
        grep --line-buffered -oE '\[[0-9]+/[0-9]+\] ' |
        while read -r step; do printf '\r  compiled %s ' "$step"; done
    local status=${PIPESTATUS[0]}
    echo
    [ "$status" -eq 0 ] || return 1
}

# The setup.py of upstream's mmcv reads its version in a way that Python 3.13 ended.
check_python_builds_mmcv() {
    [ "$LINE" = onedl ] || has_mmcv_ops ||
        "$PYTHON" -c 'import sys; sys.exit(sys.version_info >= (3, 13))' ||
        die "mmcv 2.1 does not build on $("$PYTHON" --version 2>&1): use Python 3.10, 3.11 or \
3.12, or --line onedl"
}

install_mmcv_ops() {
    has_mmcv_ops && return
    "$PYTHON" -c 'import sysconfig, os, sys
sys.exit(not os.path.exists(os.path.join(sysconfig.get_paths()["include"], "Python.h")))' ||
        die "Python's headers are missing: install your system's python3-dev"
    if holds '__import__("torch").cuda.is_available()' && ! command -v nvcc >/dev/null; then
        die "torch has CUDA but there is no nvcc to build mmcv with: install the CUDA toolkit of \
torch's version, or choose a CPU build of torch first"
    fi
    local compiler=${CXX:-c++} log=${TMPDIR:-/tmp}/sapa_mm-mmcv-$$.log
    command -v "$compiler" >/dev/null || die "a C++ compiler is needed: install g++ or clang"
    say "Building $MMCV with its operators (6 to 15 minutes on two cores; log: $log)"
    # The build must see torch, and where mmcv is without operators pip takes it for installed.
    local again=()
    ! has_mmcv || again=(--no-cache-dir --force-reinstall --no-deps)
    build_mmcv "$log" ${again[@]+"${again[@]}"} || {
        tail -n 30 "$log" >&2
        die "mmcv could not be built; the whole log is $log"
    }
    if ! has_mmcv_ops; then
        say "Building it again: pip had a wheel of it for another torch, or without operators"
        build_mmcv "$log" --no-cache-dir --force-reinstall --no-deps || die "see $log"
        has_mmcv_ops ||
            die "mmcv.ops cannot be imported: $("$PYTHON" -c 'import mmcv.ops' 2>&1 | tail -n 1)"
    fi
    rm -f "$log"
}

# install_everything EXTRAS [seg|det]: the package, editable, with these of its extras, and what it
# needs of OpenMMLab: for segmentation alone the fork does without mmcv's operators.
install_everything() {
    local extras=$1 part=${2:-det}
    choose_python
    choose_line
    [ "$LINE" = onedl ] || part=det
    [ "$part" = seg ] || check_python_builds_mmcv
    # shellcheck disable=SC2086  # lists
    local frameworks=$(not_installed $SEG $([ "$part" = seg ] || echo "$DET"))
    local mmcv="$MMCV, compiled: detection, and all of upstream, needs its operators"
    if [ "$part" = det ]; then
        ! has_mmcv_ops || mmcv=stays
    else
        mmcv="$MMCV, without operators: segmentation does without, and without a compiler"
        ! has_working_mmcv || mmcv=stays
    fi
    say "Installing into ${PYTHON%/bin/python}, keeping what it has"
    echo "  torch       $(has_torch && echo 'stays' || echo "$TORCH")"
    echo "  mmcv        $mmcv"
    echo "  frameworks  "${frameworks:-stay} "(the line $LINE of OpenMMLab's packages)"
    echo "  sapa_mm     from this checkout, with what its extras [$extras] need"
    if ! has_torch; then
        say "Installing $TORCH (several GB where pip finds no CPU build)"
        "$PYTHON" -m pip install --disable-pip-version-check "$TORCH" "$SETUPTOOLS"
    fi
    pip_install "$SETUPTOOLS" wheel
    if [ "$part" = det ]; then
        pip_install ninja packaging
        install_mmcv_ops
    elif ! has_working_mmcv; then
        say "Installing $MMCV"
        # torch is not in pip's own build environment, so that there are no operators; a wheel in
        # pip's cache may have those of another torch.
        pip_install --no-cache-dir --force-reinstall --no-deps "$MMCV"
        frameworks="$frameworks $MMCV"  # for what it depends on
    fi
    say "Installing the frameworks and sapa_mm"
    # shellcheck disable=SC2086  # a list
    pip_install $frameworks "$SETUPTOOLS"
    pip_install --no-build-isolation -e ".[$extras]"
    local parts=sapa_mm.segmentation
    [ "$part" = seg ] || parts="$parts, sapa_mm.detection"
    "$PYTHON" -W ignore -c "import $parts" ||
        die "sapa_mm cannot be imported; the message above says why"
}
