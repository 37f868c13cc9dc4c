#!/usr/bin/env bash
# Trains a U-Net and an E2E-VarNet on the built-in phantom, attacks both and writes a report.
#   bash launch/quickstart.sh [--config.experiments.varnet.train.num_steps=100 ...]
# Needs Python 3.11 or newer. Stop it whenever you like: the same command goes on.
set -euo pipefail
cd "$(dirname "$0")/.."
. launch/environment.sh
make_environment .venv .
exec .venv/bin/python -m jaxrec.main --config=configs/quickstart.py --workdir=runs/quickstart "$@"
