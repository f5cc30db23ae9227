#!/bin/bash
# digests.sh SHARDPLAN_TRAIN RUN_MPI MPIEXEC: processes over MPI give the parameters that threads give, bit for bit, at equal
# reduction tree: stages 0 to 3, fp32 and bf16-mixed, hybrid sharding; and hold the bytes that were planned.
set -euo pipefail
train=$1 run_mpi=$2 mpiexec=$3
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
seq 1 4000 > "$folder/text"
common="--text $folder/text --layers 2 --width 32 --heads 2 --context 16 --micro-batch 2 --grad-accum 2 --steps 3 --json"
failed=0

field() { sed -n "s/.*\"$1\":\(\"[^\"]*\"\|\[[^]]*\]\|[^,}]*\).*/\1/p" "$2"; }

compare() { # KIND RANKS FLAGS...
  local kind=$1 ranks=$2
  shift 2
  # shellcheck disable=SC2086
  "$train" $common --ranks "$ranks" "$@" > "$folder/threads"
  # shellcheck disable=SC2086
  if ! "$run_mpi" "$mpiexec" "$ranks" "$train" $common --comm "$kind" "$@" > "$folder/processes" 2> "$folder/errors"; then
    echo "--comm $kind, $ranks ranks, $*: failed"
    cat "$folder/errors"
    failed=1
    return
  fi
  for what in parameters_digest losses norms; do
    if [ -z "$(field $what "$folder/threads")" ] || [ "$(field $what "$folder/threads")" != "$(field $what "$folder/processes")" ]; then
      echo "--comm $kind, $ranks ranks, $*: $what is $(field $what "$folder/processes"), with threads $(field $what "$folder/threads")"
      failed=1
    fi
  done
  if [ "$(field planned_peak_bytes "$folder/processes")" != "$(field measured_peak_bytes "$folder/processes")" ]; then
    echo "--comm $kind, $ranks ranks, $*: planned $(field planned_peak_bytes "$folder/processes"), measured $(field measured_peak_bytes "$folder/processes")"
    failed=1
  fi
}

for ranks in 2 3 4; do
  for stage in 0 1 2 3; do
    compare mpi $ranks --zero $stage
    compare mpi $ranks --zero $stage --precision bf16-mixed
  done
done
compare mpi 4 --zero 2 --replicate 2
compare mpi 4 --zero 3 --replicate 2 --precision bf16-mixed
compare mpi 4 --zero 3 --reduction-group 2
compare mpi+shared 3 --zero 3 --precision bf16-mixed
exit $failed
