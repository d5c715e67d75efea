#!/usr/bin/env bash
# Stop what start_slurm.sh started, by the pid files that its daemons left; its state and configuration stay.
set -uo pipefail
files=$(ls /run/slurm/slurmd-*.pid /run/slurm/slurmctld.pid /run/munge/munged.pid 2>/dev/null)
for file in $files; do
  [ -s "$file" ] && kill "$(cat "$file")" 2>/dev/null
done
for _ in $(seq 50); do
  left=0
  for file in $files; do
    [ -s "$file" ] && kill -0 "$(cat "$file")" 2>/dev/null && left=1
  done
  [ "$left" = 0 ] && exit 0
  sleep 0.2
done
echo "some daemons of Slurm are still alive: $files" >&2
exit 1
