#!/usr/bin/env bash
# Runs one experiment on several processes of this machine: they train together and share the attacks.
#   PROCESSES=2 bash launch/local_processes.sh --config=configs/varnet_8x.py --workdir=runs/two
# Where there are graphics cards, each process has one: one process alone would take all.
# If one fails, or this script is stopped, all end: asked first (SIGTERM), made to after GRACE seconds (SIGKILL).
set -euo pipefail
cd "$(dirname "$0")/.."
processes="${PROCESSES:-2}"
python="${PYTHON:-.venv/bin/python}"
grace="${GRACE:-10}"
[ "$#" -gt 0 ] || { echo 'usage: PROCESSES=2 bash launch/local_processes.sh --config=configs/varnet_8x.py [...]' >&2; exit 2; }
for option in "PROCESSES=$processes" "GRACE=$grace"; do
  [[ "${option#*=}" =~ ^[0-9]+$ ]] || { echo "error: $option: expected a whole number" >&2; exit 2; }
done
port="${PORT:-$("$python" -c 'import socket; s = socket.socket(); s.bind(("localhost", 0)); print(s.getsockname()[1])')}"
# Workers that find this process gone end themselves: nobody can trap SIGKILL.
export JAXREC_LAUNCHER="$$"
pids=()      # by number of the worker; empty once it has ended
signalled=   # the signal that stopped this script
hurry=       # set by a second signal
on_signal() {
  if [ -n "$signalled" ]; then hurry=1; fi
  signalled="${signalled:-$1}"
}
trap 'on_signal INT' INT
trap 'on_signal TERM' TERM
trap 'on_signal HUP' HUP

say_how() {  # number, status, what for
  if [ "$2" -gt 128 ]; then
    echo "worker $1: ended by SIG$(kill -l $(($2 - 128)))$3" >&2
  elif [ "$2" -gt 0 ]; then
    echo "worker $1: failed with exit code $2$3" >&2
  fi
}

collect() {  # what for; the status of the first worker that failed since goes to `failed`
  for i in "${!pids[@]}"; do
    kill -0 "${pids[i]}" 2>/dev/null && continue
    local status=0
    wait "${pids[i]}" 2>/dev/null || status=$?
    unset "pids[i]"
    say_how "$i" "$status" "$1"
    [ "$status" -eq 0 ] || [ "$failed" -ne 0 ] || failed="$status"
  done
}

failed=0
for ((i = 0; i < processes; i++)); do
  JAX_LOCAL_DEVICE_IDS="${JAX_LOCAL_DEVICE_IDS:-$i}" \
    "$python" -m jaxrec.main --coordinator="localhost:$port" --num_processes="$processes" --process_id="$i" "$@" &
  pids[i]="$!"
done
while [ -z "$signalled" ] && [ "$failed" -eq 0 ] && [ "${#pids[@]}" -gt 0 ]; do
  # A pause that signals cut short.
  sleep 0.2 & wait "$!" || true
  collect ''
done
code="$failed"
if [ "${#pids[@]}" -gt 0 ]; then
  case "$signalled" in INT) code=130 ;; TERM) code=143 ;; HUP) code=129 ;; esac
  [ -z "$signalled" ] || echo "stopped by SIG$signalled; the same command goes on from here" >&2
  kill -TERM "${pids[@]}" 2>/dev/null || true
  for ((tick = 0; tick < 5 * grace; tick++)); do
    [ "${#pids[@]}" -gt 0 ] && [ -z "$hurry" ] || break
    sleep 0.2 & wait "$!" || true
    collect ', as asked'
  done
fi
if [ "${#pids[@]}" -gt 0 ]; then
  echo "worker(s) ${!pids[*]}: still there after $grace s; made to end" >&2
  kill -KILL "${pids[@]}" 2>/dev/null || true
  while [ "${#pids[@]}" -gt 0 ]; do
    sleep 0.05
    collect ', as made to'
  done
fi
exit "$code"
