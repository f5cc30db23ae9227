#!/usr/bin/env bash
# include_direction.sh accepts each include on the picture and names each that is not, with file and line.
set -euo pipefail
check=$(dirname "$(readlink -f "$0")")/include_direction.sh
tree=$(mktemp -d)
trap 'rm -rf "$tree"' EXIT
mkdir -p "$tree"/{base,planner/formats,runtime,offload,shard,tools,tests}
for folder in base planner runtime offload shard tools tests; do echo '#pragma once' >"$tree/$folder/a.h"; done
failures=0

# expect accepted|refused FILE INCLUDE
expect() {
  local verdict=accepted output
  printf '// first line\n%s\n' "$3" >"$tree/$2"
  output=$("$check" "$tree") || verdict=refused
  [[ $verdict == accepted || $output == "$2:2: $3: "* ]] || verdict="refused, but as: $output"
  [[ $verdict == "$1" ]] || { echo "$2: $3: expected $1, was $verdict"; failures=$((failures + 1)); }
  rm "$tree/$2"
}

expect accepted base/x.cpp '#include "base/a.h"'
expect accepted base/x.cpp '#include <boost/container/small_vector.hpp>'
expect accepted base/x.h '#include <fmt/format.h>'
expect accepted planner/x.cpp '#include <xxhash.h>'
expect accepted planner/formats/x.cpp '#include <fstream>'
expect accepted offload/x.cpp '#include "runtime/a.h"'
for folder in base planner runtime offload shard tools tests; do
  expect accepted tests/x.cpp "#include \"$folder/a.h\""
  expect accepted tools/x.cpp "#include \"$folder/a.h\""
done
for folder in base planner runtime offload; do expect accepted shard/x.h "#include \"$folder/a.h\""; done

for folder in planner runtime offload shard tools tests; do expect refused base/x.h "#include \"$folder/a.h\""; done
for folder in runtime offload shard tools tests; do expect refused planner/x.cpp "#include \"$folder/a.h\""; done
for folder in planner offload shard tools tests; do expect refused runtime/x.cu "#include \"$folder/a.h\""; done
for folder in planner shard tools tests; do expect refused offload/x.cpp "#include \"$folder/a.h\""; done
for folder in tools tests; do expect refused shard/x.cpp "#include \"$folder/a.h\""; done
expect refused base/x.cpp '#include <unistd.h>'
expect refused base/x.cpp '#include <xxhash.h>'
expect refused planner/x.h '#  include   <runtime/a.h>'
expect refused planner/x.cpp '#include <thread>'
expect refused planner/x.cpp '#include <chrono>'
expect refused planner/x.cpp '#include <filesystem>'
expect refused planner/x.cpp '#include "a.h"'
expect refused planner/x.cpp '#include "../runtime/a.h"'
expect refused tools/x.cpp '#include "base/missing.h"'
expect refused tools/x.cpp '#include HEADER'

[[ $failures == 0 ]]
