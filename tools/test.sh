#!/usr/bin/env bash
# Installs what the tests need and runs them. Arguments go to pytest.
set -euo pipefail
if [ "${1:-}" = -h ] || [ "${1:-}" = --help ]; then
    cat <<'HELP'
usage: bash tools/test.sh [--line upstream|onedl] [PYTEST_ARGUMENT ...]

Installs the package, mmcv with its operators, mmsegmentation and mmdetection into .venv (or into
the active environment), then runs ruff, codespell, mypy and the tests. From nothing this takes about
half an hour on two cores, 6 to 15 of it to build mmcv. With arguments, such as
`tests/ops -k gradcheck`, only pytest runs.

  --line LINE  which of OpenMMLab's packages: upstream's own releases or the maintained fork, onedl.
               They go to .venv-LINE. Default: what .venv or the active environment holds, or onedl.
HELP
    exit
fi
cd "$(dirname "${BASH_SOURCE[0]}")/.."
. tools/_setup.sh
if [ "${1:-}" = --line ]; then
    set_line "${2:-}"
    shift 2
fi
case " $* " in
*' --line'*)
    echo "test.sh: expected --line LINE before all other arguments, got: $* (try --help)" >&2
    exit 2
    ;;
esac
install_everything dev
if [ $# -eq 0 ]; then
    say "Checking style, spelling and types"
    "$PYTHON" -m ruff check .
    "$PYTHON" -m ruff format --check .
    "$PYTHON" -m codespell_lib
    "$PYTHON" -m mypy
fi
say "Running the tests"
# A file's tests share what they prepared, so a file stays with one process.
exec "$PYTHON" -m pytest --numprocesses auto --maxprocesses 4 --dist loadfile --durations=15 "$@"
