#!/usr/bin/env bash
# Builds the documentation into site/, strictly: a broken link or reference is an error.
#   bash launch/docs.sh serve     shows it at localhost:8000 and follows changes
set -euo pipefail
cd "$(dirname "$0")/.."
. launch/environment.sh
make_environment .venv-test "$TEST_REQUIREMENT"
export NO_MKDOCS_2_WARNING=1
# Without --quiet: it silences the very warnings that are to be errors.
if [ "${1:-build}" = serve ]; then
  exec .venv-test/bin/python -m mkdocs serve
fi
exec .venv-test/bin/python -m mkdocs build --strict
