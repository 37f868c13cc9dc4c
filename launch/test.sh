#!/usr/bin/env bash
# Runs all tests from nothing but Python 3.11 or newer, in an environment of its own.
#   PYTHON=python3.12 bash launch/test.sh [pytest arguments]
#   bash launch/test.sh -m slow runs the tests that are left out for their length.
#   JAXREC_PARITY=0 leaves out torch and the tests against it.
set -euo pipefail
cd "$(dirname "$0")/.."
. launch/environment.sh
make_environment .venv-test "$TEST_REQUIREMENT"
if [ "${JAXREC_PARITY:-1}" = 1 ]; then
  install_parity .venv-test || echo 'note: torch could not be installed; the parity tests will be skipped'
fi
export JAX_COMPILATION_CACHE_DIR="${JAX_COMPILATION_CACHE_DIR:-$(mktemp -d)}"
export JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS=0.5
export JAX_PLATFORMS="${JAX_PLATFORMS:-cpu}"
# Tests compile much and compute little: without LLVM's optimisation they take two thirds of the time, and less again
# without MLIR's emitters, a switch that newer versions of XLA do not know, and XLA ends at one that it does not know.
if [ -z "${XLA_FLAGS:-}" ]; then
  export XLA_FLAGS='--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false'
  .venv-test/bin/python -c 'import jax; jax.devices()' 2> /dev/null || export XLA_FLAGS='--xla_backend_optimization_level=0'
fi
# In their own order, in which long files come first: else one process waits long for the other at the end.
exec .venv-test/bin/python -m pytest -n "${JAXREC_TEST_PROCESSES:-2}" --dist loadfile --no-loadscope-reorder "$@"
