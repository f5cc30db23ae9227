#!/bin/sh
# shared_ranks_test.sh PROGRAM TEXT: ranks that are processes train to the bits of ranks that are threads, at every stage,
# in every precision, hybrid too; a rank that is killed fails the command, and nothing is left of a command that is killed.
set -eu
program=$1
text=$2
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT

fail() { echo "shared_ranks_test: $*" >&2; exit 1; }
field() { sed -n "s/.*\"$1\":\(\[[^]]*\]\|\"[^\"]*\"\|[^,}]*\).*/\1/p"; }
train() { "$program" --text "$text" --layers 1 --width 32 --context 16 --micro-batch 2 --json "$@"; }

compare() {
  train "$@" --comm local > "$folder/local"
  train "$@" --comm shared > "$folder/shared"
  for name in parameters_digest losses norms held_out_loss plan_hash planned_peak_bytes planned_live_peak_bytes; do
    expected=$(field $name < "$folder/local")
    [ -n "$expected" ] || fail "no $name from: $*"
    [ "$(field $name < "$folder/shared")" = "$expected" ] || fail "$name differs: $*"
  done
  for name in peak live_peak; do
    planned=$(field planned_${name}_bytes < "$folder/shared")
    [ "$(field measured_${name}_bytes < "$folder/shared")" = "$planned" ] || fail "$name is not as planned: $*"
  done
}

for ranks in 2 3 4; do
  for stage in 0 1 2 3; do
    for precision in fp32 bf16-mixed; do compare --steps 4 --ranks $ranks --zero $stage --precision $precision; done
  done
done
for stage in 0 1 2 3; do compare --steps 4 --ranks 4 --replicate 2 --zero $stage --precision bf16-mixed; done
compare --steps 4 --ranks 2 --zero 3 --grad-accum 2

# Until the command has so many processes.
children() { cat /proc/"$1"/task/"$1"/children; }
wait_for_ranks() {
  for _ in $(seq 600); do
    [ "$(children "$1" | wc -w)" -eq 3 ] && grep -q "^step" "$folder/log" && return
    sleep 0.1
  done
  fail "the ranks do not start: $(cat "$folder/log")"
}
start() {
  "$program" --text "$text" --layers 1 --width 32 --context 16 --micro-batch 2 --steps 100000000 --comm shared --ranks 3 \
    --zero 3 > "$folder/out" 2> "$folder/log" &
  command=$!
  wait_for_ranks $command
}

start
set -- $(children $command)
kill -KILL "$3"
status=0
wait $command || status=$?
[ $status -eq 3 ] || fail "exit status $status where a rank was killed"
grep -v "^step" "$folder/log" > "$folder/told"
[ "$(wc -l < "$folder/told")" -eq 1 ] || fail "not one line: $(cat "$folder/told")"
grep -q "^shardplan-train: rank 2 was killed by signal 9" "$folder/told" || fail "told: $(cat "$folder/told")"

start
ranks=$(children $command)
kill -KILL $command
wait $command || true
for rank in $ranks; do
  for _ in $(seq 100); do
    state=$(sed -n 's/^State:\t\(.\).*/\1/p' /proc/"$rank"/status 2>/dev/null || true)
    case "$state" in ''|Z|X) break ;; esac
    sleep 0.1
  done
  case "$state" in ''|Z|X) ;; *) fail "rank process $rank outlives its command, in state $state" ;; esac
done

status=0
"$program" --text "$folder/text" --device cuda 2> "$folder/log" || status=$?
[ $status -eq 2 ] || fail "exit status $status for a model on a GPU"
grep -q "^shardplan-train: --device: cuda: this program's model has no GPU kernels" "$folder/log" ||
  fail "told: $(cat "$folder/log")"

status=0
"$program" --text "$folder/nothing" --ranks 2 --comm shared 2> "$folder/log" || status=$?
[ $status -eq 3 ] || fail "exit status $status where there is no text"
[ "$(wc -l < "$folder/log")" -eq 1 ] || fail "not one line: $(cat "$folder/log")"
