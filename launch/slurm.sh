#!/usr/bin/env bash
# A cluster job: one process per GPU, found through SLURM's environment.
#   sbatch launch/slurm.sh --config=configs/varnet_8x.py --config.data.root=/data/knee --workdir=runs/varnet_8x
#SBATCH --job-name=jaxrec
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=8
#SBATCH --time=24:00:00
#SBATCH --requeue
set -euo pipefail
cd "${SLURM_SUBMIT_DIR:-$(dirname "$0")/..}"
# A requeued job resumes from its newest checkpoint and its finished rows.
# Every process sees the GPUs of its node and takes the one of its number there.
exec srun --gpu-bind=none "${PYTHON:-.venv/bin/python}" -m jaxrec.main --coordinator=auto "$@"
