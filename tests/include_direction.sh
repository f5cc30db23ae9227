#!/usr/bin/env bash
# Fails on any #include that is not on the picture of docs/design.md:
#
#   tools tests -> everything;  shard -> offload runtime planner base;  offload -> runtime base
#   runtime -> base;  planner -> base;  base -> the standard library, fmt, Boost headers
#
# planner is pure: no threads and no clocks, and files only in planner/formats.
#
# include_direction.sh [ROOT]: prints "file:line: what is wrong" for each; exit status 1 if there is one.
set -euo pipefail
cd "${1:-$(dirname "$0")/..}"
[[ -d base && -d planner ]] || { echo "$PWD is not the root of shardplan"; exit 1; }

folders=(base planner runtime offload shard tools tests)
declare -A may_include=(
  [base]="base" [planner]="planner base" [runtime]="runtime base" [offload]="offload runtime base"
  [shard]="shard offload runtime planner base" [tools]="${folders[*]}" [tests]="${folders[*]}")

# Prints what is wrong with including $2, written as in the source (<fmt/format.h> or "base/bytes.h"), in file $1.
problem() {
  local file=$1 from=${1%%/*} what=${2:1:-1} to
  to=${what%%/*}
  if [[ $2 == '"'* ]]; then
    if [[ ! -e $what || " ${folders[*]} " != *" $to "* ]]; then
      echo "a quoted include is a file of ours, named from the root"
    elif [[ " ${may_include[$from]} " != *" $to "* ]]; then
      echo "$from/ may include only: ${may_include[$from]}"
    fi
  elif [[ $what == */* && " ${folders[*]} " == *" $to "* ]]; then
    echo "our own headers are quoted"
  elif [[ $from == base && ! $what =~ ^([a-z0-9_]+|(fmt|boost)/.+)$ ]]; then
    echo "base/ may use only the standard library, fmt and Boost"
  elif [[ $from == planner && $what =~ ^(thread|mutex|shared_mutex|condition_variable|atomic|future|chrono|ctime)$ ]]; then
    echo "planner/ has no threads and no clocks"
  elif [[ $file == planner/* && $file != planner/formats/* && $what =~ ^(fstream|filesystem|cstdio)$ ]]; then
    echo "planner/ reads files only in planner/formats/"
  fi
}

status=0
while IFS=: read -r file line text; do
  if [[ $text =~ ^[[:space:]]*\#[[:space:]]*include[[:space:]]*(\"[^\"]+\"|\<[^\>]+\>) ]]; then
    why=$(problem "$file" "${BASH_REMATCH[1]}")
  else
    why="cannot tell what this includes"
  fi
  [[ -z $why ]] || { echo "$file:$line: $text: $why"; status=1; }
done < <(grep -rnE '^\s*#\s*include' --include='*.h' --include='*.cpp' --include='*.cu' --include='*.cuh' \
              "${folders[@]}" 2>/dev/null)
exit $status
