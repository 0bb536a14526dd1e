#!/usr/bin/env bash
# All checks of this repository, the quickest first; stops at the first that fails. Arguments go to pytest.
#
#     scripts/test.sh           lint, types, import contracts, all tests but the slow ones
#     scripts/test.sh --fast    lint, and the tests without timm, ONNX and processes: for the inner loop
set -euo pipefail

# shellcheck source=scripts/environment.sh
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh" requirements-dev.txt

check() {
    echo "== $*"
    "$@"
}

check ruff check .
check ruff format --check .
if [[ ${1:-} != --fast ]]; then
    check mypy
    check lint-imports
fi
export OMP_NUM_THREADS=1 # each worker has one core; torch's own threads would fight over them
check pytest -q -n auto --maxprocesses 4 "$@"
echo "== all checks passed in ${SECONDS} s"
