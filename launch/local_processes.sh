#!/usr/bin/env bash
# Runs one experiment on several processes of this machine: they train together and share the attacks.
#   PROCESSES=2 bash launch/local_processes.sh --config=configs/varnet_8x.py --workdir=runs/two
set -euo pipefail
cd "$(dirname "$0")/.."
processes="${PROCESSES:-2}"
python="${PYTHON:-.venv/bin/python}"
[ "$#" -gt 0 ] || { echo 'usage: PROCESSES=2 bash launch/local_processes.sh --config=configs/varnet_8x.py [...]' >&2; exit 2; }
port="${PORT:-$("$python" -c 'import socket; s = socket.socket(); s.bind(("localhost", 0)); print(s.getsockname()[1])')}"
pids=()
trap 'kill "${pids[@]}" 2>/dev/null || true' EXIT INT TERM
for ((i = 0; i < processes; i++)); do
  "$python" -m jaxrec.main --coordinator="localhost:$port" --num_processes="$processes" --process_id="$i" "$@" &
  pids+=("$!")
done
# The first that fails ends the others, which would wait for it.
for _ in "${pids[@]}"; do wait -n || exit; done
