#!/usr/bin/env bash
# snapshot_test.sh TRAIN CHECKPOINT MEMCALC TEXT: the bytes that a run which saves in the background allocates are those that
# memcalc plans for its model, whatever the stage.
set -euo pipefail
train=$1 checkpoint=$2 memcalc=$3 text=$4
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT

fail() { echo "snapshot_test: $*" >&2; exit 1; }
field() { sed -n "s/.*\"$1\":[[ ]*\([0-9]*\).*/\1/p"; }
model=(--text "$text" --layers 2 --width 32 --context 16 --micro-batch 2 --steps 1 --json)
"$train" "${model[@]}" --save "$folder/saved" > "$folder/out" 2> "$folder/log" || fail "$(cat "$folder/log")"
"$checkpoint" consolidate "$folder/saved" "$folder/model" > "$folder/log" || fail "$(cat "$folder/log")"
for stage in 0 1 2 3; do
  "$train" "${model[@]}" --ranks 3 --zero $stage --precision bf16-mixed --save "$folder/$stage" --save-background \
    > "$folder/out" 2> "$folder/log" || fail "$(cat "$folder/log")"
  measured=$(field measured_snapshot_bytes < "$folder/out")
  arenas=$("$memcalc" plan "$folder/model" --gpus 3 --zero $stage --precision bf16-mixed --save-background --json |
    grep -o '"worst":.*' | grep -o '"arenas":{[^}]*}' | head -1)
  [[ -n $measured && $(field host <<< "$arenas") == "$measured" ]] ||
    fail "stage $stage: $measured bytes measured, planned $arenas"
done
