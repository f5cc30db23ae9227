#!/usr/bin/env bash
# kernel_symbols.sh NM OBJECT...: fails if an object that is compiled for one level of processor defines a function that
# the linker could choose for all of them (weak or unique: inline functions and templates with external linkage), or any
# other function with external linkage.
set -euo pipefail
nm=$1
shift
(($# > 0)) || { echo "no objects"; exit 1; }
status=0
for object in "$@"; do
  symbols=$("$nm" --defined-only --extern-only --demangle "$object")
  [[ -n $symbols ]] || { echo "$object: no symbols at all"; status=1; }
  if found=$(grep -E '^[0-9a-f]+ [TWu] ' <<<"$symbols"); then
    printf '%s: must have internal linkage:\n%s\n' "$object" "$found"
    status=1
  fi
done
exit $status
