#!/usr/bin/env bash
# exports.sh LIBRARY HEADER: the library exports the functions that the header marks SHARDPLAN_API, in one version of the
# interface, and nothing else.
set -euo pipefail
library=$1 header=$2
marked=$(tr '\n' ' ' <"$header" | grep -oE 'SHARDPLAN_API [a-z][^;(]*\(' | grep -oE 'shardplan_[a-z0-9_]+\($' | tr -d '(' | sort)
[[ $(wc -l <<<"$marked") -gt 10 ]] || { echo "no marked functions in $header"; exit 1; }
exported=$(nm -D --defined-only --with-symbol-versions "$library" | awk '$2 != "A" { print $3 }' | sort)
diff <(sed 's/$/@@SHARDPLAN_0.1/' <<<"$marked") <(echo "$exported")
