#!/usr/bin/env bash
# kill_test.sh TRAIN CHECKPOINT TEXT: training that saves after every step is killed (SIGKILL) at random instants, and resumed
# at another stage: each time it ends with the digest of a run that nobody disturbed. SIGTERM saves, and ends the run.
#
# SHARDPLAN_KILLS says how often (20).
set -euo pipefail
train=$1 checkpoint=$2 text=$3
kills=${SHARDPLAN_KILLS:-20}
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT

fail() { echo "kill_test: $*" >&2; exit 1; }
field() { sed -n "s/.*\"$1\":\(\"[^\"]*\"\|[^,}]*\).*/\1/p"; }
model=(--text "$text" --layers 1 --width 32 --context 16 --micro-batch 2 --ranks 3 --precision bf16-mixed --json)
run() { "$train" "${model[@]}" "$@"; }  # in the background it would be a shell of its own: there, the program itself
now() { date +%s%N; }

steps=20
expected=$(run --steps $steps | field parameters_digest)
[[ -n $expected ]] || fail "no digest"

# How long a run takes that saves: kills are spread over it.
started=$(now)
[[ $(run --steps $steps --save "$folder/whole" --save-every 1 2> "$folder/log" | field parameters_digest) == "$expected" ]] ||
  fail "saving changes the result"
nanoseconds=$(($(now) - started))
"$checkpoint" verify "$folder/whole" > "$folder/log" || fail "a whole run left: $(cat "$folder/log")"
[[ $(find "$folder/whole" -mindepth 1 -maxdepth 1 | wc -l) == 3 ]] || fail "not two checkpoints and latest: $(ls -A "$folder/whole")"

resumed=0
for ((i = 0; i < kills; ++i)); do
  rm -rf "$folder/run"
  kind="--comm local"
  case $((i % 4)) in
    2) kind="--comm local --save-background" ;;
    3) kind="--comm shared" ;;
  esac
  "$train" "${model[@]}" --steps $steps --zero $((i % 4)) $kind --save "$folder/run" --save-every 1 > /dev/null 2>&1 &
  command=$!
  sleep "$(awk -v n="$nanoseconds" -v r="$((RANDOM * 32768 + RANDOM))" 'BEGIN { printf "%.6f", n / 1e9 * r / 1073741824 }')"
  kill -KILL $command 2> /dev/null || true
  wait $command 2> /dev/null || true
  # What a killed parent's processes still write must not meet the next run.
  while pgrep -f -- "--save $folder/run " > /dev/null; do sleep 0.01; done
  run --steps $steps --zero $(((i + 1) % 4)) --resume "$folder/run" --save "$folder/run" --save-every 1 \
    > "$folder/out" 2> "$folder/log" || fail "kill $i: no resume: $(cat "$folder/log")"
  [[ $(field parameters_digest < "$folder/out") == "$expected" ]] || fail "kill $i: another digest: $(cat "$folder/out" "$folder/log")"
  [[ $(field first_step < "$folder/out") == 0 ]] || resumed=$((resumed + 1))
  "$checkpoint" verify "$folder/run" > "$folder/log" 2>&1 || fail "kill $i left: $(cat "$folder/log")"
done
((resumed * 4 >= kills)) || fail "only $resumed of $kills kills were after the first save"

# In the background: the same digest, and the planned bytes.
run --steps $steps --zero 2 --save "$folder/background" --save-every 1 --save-background > "$folder/out" 2> "$folder/log"
[[ $(field parameters_digest < "$folder/out") == "$expected" ]] || fail "saving in the background changes the result"
planned=$(field planned_snapshot_bytes < "$folder/out")
[[ $planned -gt 0 && $(field measured_snapshot_bytes < "$folder/out") == "$planned" ]] || fail "snapshot: $(cat "$folder/out")"
"$checkpoint" verify "$folder/background" > "$folder/log" || fail "the background left: $(cat "$folder/log")"

# SIGTERM: saves and leaves, with processes as with threads.
for kind in local shared; do
  rm -rf "$folder/run"
  "$train" "${model[@]}" --steps 100000000 --comm $kind --save "$folder/run" --save-every 1 > "$folder/out" 2> "$folder/log" &
  command=$!
  for _ in $(seq 600); do [[ -e $folder/run/latest ]] && break; sleep 0.1; done
  kill -TERM $command
  wait $command || fail "$kind: status $? after SIGTERM: $(cat "$folder/log")"
  [[ $(field stopped < "$folder/out") == true ]] || fail "$kind: was not stopped: $(cat "$folder/out")"
  grep -q "saved $folder/run/save-" "$folder/log" || fail "$kind: did not say what it saved: $(cat "$folder/log")"
  done_steps=$(sed -n 's/.* after step \([0-9]*\)$/\1/p' "$folder/log")
  run --steps "$done_steps" --resume "$folder/run" > "$folder/out" 2> "$folder/log"
  [[ $(field first_step < "$folder/out") == "$done_steps" ]] || fail "$kind: was not resumed after step $done_steps"
  whole=$(run --steps "$done_steps" | field parameters_digest)
  [[ $(field parameters_digest < "$folder/out") == "$whole" ]] || fail "$kind: another digest after SIGTERM"
done

# Nothing to resume from is no error.
run --steps 1 --resume "$folder/nowhere" 2>&1 > /dev/null | grep -q "no whole checkpoint in $folder/nowhere: starts from step 0" ||
  fail "no note"
if run --steps 30 --seed 9 --resume "$folder/whole" > /dev/null 2> "$folder/log"; then fail "another seed was taken"; fi
grep -q -- "--seed: 9, while .* was saved with 0" "$folder/log" || fail "another seed: $(cat "$folder/log")"
echo "$kills kills, $resumed resumed from a checkpoint"
