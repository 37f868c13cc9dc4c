# Sourced by the other scripts: a virtual environment that is built once.

# Tests, documentation and linters share one environment.
TEST_REQUIREMENT='.[test,tensorboard,ct,ismrmrd,docs,lint]'

make_environment() {  # folder, requirement
  local python="${PYTHON:-python3}"
  "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
    { echo "error: $("$python" --version 2>&1) is too old; set PYTHON to Python 3.11 or newer" >&2; exit 2; }
  if [ "$(cat "$1/complete" 2>/dev/null)" != "$2" ] || [ setup.cfg -nt "$1/complete" ]; then
    echo "environment: installing into $1 (a few minutes the first time)"
    "$python" -m venv "$1"
    "$1/bin/python" -m pip install --quiet --disable-pip-version-check --editable "$2" 2> >(grep -v 'is ignored: it is' >&2 || true)
    printf %s "$2" > "$1/complete"
  fi
  # Temporary arrays come and go in gigabytes; huge pages save most page faults.
  export GLIBC_TUNABLES="${GLIBC_TUNABLES:-glibc.malloc.hugetlb=1}"
}

install_parity() {  # folder
  "$1/bin/python" -c 'import torch, fastmri' 2>/dev/null && return
  "$1/bin/python" -m pip install --quiet --disable-pip-version-check torch==2.13.0 2> >(grep -v 'is ignored: it is' >&2 || true) &&
    "$1/bin/python" -m pip install --quiet --disable-pip-version-check --no-deps fastmri ldct-benchmark 2> >(grep -v 'is ignored: it is' >&2 || true)
}
