#!/bin/bash
# failures.sh SHARDPLAN_TRAIN RUN_MPI MPIEXEC: of three processes one is stopped; the others say by the deadline whom they wait for, and
# nothing goes on. With one killed, the launcher ends the rest.
set -uo pipefail
train=$1 run_mpi=$2 mpiexec=$3
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
seq 1 4000 > "$folder/text"
failed=0
fail() { echo "$1"; cat "$folder/output"; failed=1; }

# Each rank leaves its process's number behind, and becomes the program.
run() { # SIGNAL
  rm -f "$folder"/process.* "$folder/output"
  "$run_mpi" "$mpiexec" 3 sh -c 'folder=$1; shift; echo $$ > "$folder/process.${OMPI_COMM_WORLD_RANK:-${PMI_RANK:-${PMIX_RANK:-}}}"; exec "$@"' \
    sh "$folder" "$train" --text "$folder/text" --layers 2 --width 32 --heads 2 --context 16 --micro-batch 2 --steps 1000000000 \
    --zero 3 --deadline 2 --comm mpi > "$folder/output" 2>&1 &
  local launcher=$!
  # Once training goes on, which is seen by its progress.
  for _ in $(seq 600); do
    grep -qs "step " "$folder/output" && break
    kill -0 $launcher 2> "$folder/nowhere" || break
    sleep 0.1
  done
  kill -"$1" "$(cat "$folder/process.1")" || fail "rank 1 is not there"
  wait $launcher
}

run STOP
status=$?
[ $status -ne 0 ] || fail "a run with a stopped rank ends with status 0"
# A rank whose own wait began a little earlier may name the one that waits for rank 1; somebody names rank 1 itself.
for rank in 0 2; do
  grep -q "rank $rank: rank [0-2], .*: did not arrive before the deadline (deadline 2000 ms)" "$folder/output" ||
    fail "rank $rank does not say whom it waited for"
done
grep -q "rank [02]: rank 1, .*: did not arrive before the deadline" "$folder/output" || fail "nobody names rank 1"
run KILL
status=$?
[ $status -ne 0 ] || fail "a run with a killed rank ends with status 0"
exit $failed
