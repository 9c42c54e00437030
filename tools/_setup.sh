# Sourced by quickstart.sh and test.sh: puts everything into a Python environment, once.
#
# An active virtual or conda environment (but not conda's base) is used, and a torch or mmcv that it
# has in a supported version is kept; otherwise .venv is made. Sets PYTHON. Needs Python >= 3.10
# and, to build mmcv, a C++ compiler. Safe to run again.

# The versions the project is tested with.
TORCH=torch==2.13.0
MMCV=mmcv==2.1.0
FRAMEWORKS="mmengine==0.10.7 mmsegmentation==1.2.2 mmdet==3.3.0"
# mmcv's setup.py needs pkg_resources, which setuptools 81 dropped.
SETUPTOOLS="setuptools<81"

say() { printf '\n\033[1m%s\033[0m\n' "$*"; }
die() {
    printf '\nerror: %s\n' "$*" >&2
    exit 1
}

is_new_enough() { "$1" -c 'import sys; sys.exit(sys.version_info < (3, 10))'; }

choose_python() {
    if [ -n "${VIRTUAL_ENV:-}" ]; then
        PYTHON=$VIRTUAL_ENV/bin/python
    elif [ -n "${CONDA_PREFIX:-}" ] && [ "${CONDA_DEFAULT_ENV:-}" != base ]; then
        PYTHON=$CONDA_PREFIX/bin/python
    else
        PYTHON=$PWD/.venv/bin/python
        # One that was stopped half-way has no pip.
        if ! "$PYTHON" -m pip --version >/dev/null 2>&1; then
            local base
            base=$(command -v python3 || command -v python) || die "install Python 3.10 or newer"
            is_new_enough "$base" ||
                die "Python 3.10 or newer is needed, $base is $("$base" --version 2>&1)"
            say "Making .venv"
            "$base" -m venv --clear .venv ||
                die "python3 -m venv failed: install your system's python3-venv"
        fi
    fi
    [ -x "$PYTHON" ] || die "the active environment has no $PYTHON"
    is_new_enough "$PYTHON" ||
        die "Python 3.10 or newer is needed, $PYTHON is $("$PYTHON" --version 2>&1)"
    "$PYTHON" -m pip --version >/dev/null 2>&1 ||
        die "the active environment has no pip: $PYTHON -m ensurepip"
}

pip_install() { "$PYTHON" -m pip install --quiet --disable-pip-version-check "$@"; }

# Whether a Python expression holds; a module that cannot be imported counts as no.
holds() { "$PYTHON" -W ignore -c "import sys; sys.exit(not ($1))" 2>/dev/null; }

has_torch() { holds '__import__("torch").__version__ >= (2, 4)'; }

has_mmcv() {
    holds '__import__("mmcv.ops") and (2, 0) <= __import__("mmcv").version_info[:2] < (2, 2)'
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

# mmcv 2.1's setup.py reads its version in a way that Python 3.13 ended.
check_python_builds_mmcv() {
    has_mmcv || "$PYTHON" -c 'import sys; sys.exit(sys.version_info >= (3, 13))' ||
        die "mmcv 2.1 does not build on $("$PYTHON" --version 2>&1): use Python 3.10, 3.11 or 3.12"
}

install_mmcv() {
    has_mmcv && return
    "$PYTHON" -c 'import sysconfig, os, sys
sys.exit(not os.path.exists(os.path.join(sysconfig.get_paths()["include"], "Python.h")))' ||
        die "Python's headers are missing: install your system's python3-dev"
    if holds '__import__("torch").cuda.is_available()' && ! command -v nvcc >/dev/null; then
        die "torch has CUDA but there is no nvcc to build mmcv with: install the CUDA toolkit of \
torch's version, or choose a CPU build of torch first"
    fi
    local compiler=${CXX:-c++} log=${TMPDIR:-/tmp}/sapa_mm-mmcv-$$.log
    command -v "$compiler" >/dev/null || die "a C++ compiler is needed: install g++ or clang"
    say "Building $MMCV with its operators (about 6 minutes on two cores; log: $log)"
    build_mmcv "$log" || {
        tail -n 30 "$log" >&2
        die "mmcv could not be built; the whole log is $log"
    }
    if ! has_mmcv; then
        # A wheel cached by pip was built for another torch.
        say "Building it again for the torch that is installed"
        build_mmcv "$log" --no-cache-dir --force-reinstall --no-deps || die "see $log"
        has_mmcv || die "mmcv.ops cannot be imported: $("$PYTHON" -c 'import mmcv.ops' 2>&1 | tail -n 1)"
    fi
    rm -f "$log"
}

# install_everything EXTRAS: the package, editable, with these of its extras.
install_everything() {
    choose_python
    check_python_builds_mmcv
    if ! has_torch; then
        say "Installing $TORCH"
        "$PYTHON" -m pip install --disable-pip-version-check "$TORCH" "$SETUPTOOLS"
    fi
    pip_install "$SETUPTOOLS" wheel ninja
    install_mmcv
    say "Installing the frameworks and sapa_mm"
    # shellcheck disable=SC2086  # a list
    pip_install $FRAMEWORKS "$SETUPTOOLS"
    pip_install --no-build-isolation -e ".[$1]"
    "$PYTHON" -W ignore -c 'import sapa_mm.segmentation, sapa_mm.detection' ||
        die "sapa_mm cannot be imported; the message above says why"
}
