#!/usr/bin/env bash
# To be started on every host of a TPU pod slice, for example with
#   gcloud compute tpus tpu-vm ssh NAME --worker=all --command='cd jaxrec && bash launch/tpu_pod.sh --config=configs/varnet_8x.py ...'
# The work folder must be on storage that all hosts share.
set -euo pipefail
cd "$(dirname "$0")/.."
. launch/environment.sh
make_environment .venv '.[tpu]'
exec .venv/bin/python -m jaxrec.main --coordinator=auto "$@"
