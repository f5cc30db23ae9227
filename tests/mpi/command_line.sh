#!/bin/bash
# command_line.sh SHARDPLAN_TRAIN RUN_MPI MPIEXEC: what is wrong for all processes alike is said by one of them, once; all
# end, and the launcher with the same status.
set -uo pipefail
train=$1 run_mpi=$2 mpiexec=$3
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
seq 1 4000 > "$folder/text"
failed=0

expect() { # STATUS PATTERN FLAGS...
  local wanted=$1 pattern=$2 status=0 times
  shift 2
  "$run_mpi" "$mpiexec" 3 "$train" "$@" > "$folder/output" 2>&1 || status=$?
  times=$(grep -c -- "$pattern" "$folder/output")
  if [ "$status" != "$wanted" ] || [ "$times" != 1 ]; then
    echo "$*: exit status $status, expected $wanted; $times lines like '$pattern', expected 1"
    cat "$folder/output"
    failed=1
  fi
}

for comm in mpi mpi+shared; do
  expect 2 'shardplan-train: --ranks: 2, while MPI.s world has 3 ranks' --text "$folder/text" --ranks 2 --comm $comm
  expect 2 'shardplan-train: --zero: 9 is not a ZeRO stage' --text "$folder/text" --zero 9 --comm $comm
  expect 3 "shardplan-train: $folder/nothing" --text "$folder/nothing" --comm $comm
done
expect 2 'shardplan-train: The following argument was not expected: --foo' --text "$folder/text" --foo
expect 0 'shardplan-train trains a small' --help
exit $failed
