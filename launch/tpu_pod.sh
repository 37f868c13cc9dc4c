#!/usr/bin/env bash
# To be started on every host of a TPU pod slice, for example with
#   gcloud compute tpus tpu-vm ssh NAME --worker=all --command='cd jaxrec && bash launch/tpu_pod.sh --config=configs/varnet_8x.py ...'
# The work folder must be on storage that all hosts share.
set -euo pipefail
cd "$(dirname "$0")/.."
. launch/environment.sh
make_environment .venv '.[tpu]'
# As the plan for TPUs does: with libtpu's own default a training step compiles for more than half an hour.
export JAX_OPTIMIZATION_LEVEL="${JAX_OPTIMIZATION_LEVEL:-O1}"
exec .venv/bin/python -m jaxrec.main --coordinator=auto "$@"
