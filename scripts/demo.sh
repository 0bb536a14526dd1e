#!/usr/bin/env bash
# The main job on real data: see scripts/demo.py. Needs Python 3.11+ and pip; makes and reuses .venv.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh" requirements-demo.txt
exec python scripts/demo.py "$@"
