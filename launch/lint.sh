#!/usr/bin/env bash
# Checks format, names and imports with ruff, and types with mypy; `bash launch/lint.sh fix` mends what it can.
set -euo pipefail
cd "$(dirname "$0")/.."
. launch/environment.sh
make_environment .venv-test "$TEST_REQUIREMENT"
if [ "${1:-}" = fix ]; then
  .venv-test/bin/ruff check --fix .
  .venv-test/bin/ruff format .
fi
.venv-test/bin/ruff check .
.venv-test/bin/ruff format --check .
.venv-test/bin/mypy
