#!/usr/bin/env bash
# abi.sh check LIBRARY     compares the interface of libshardplan.so with what is written down here
# abi.sh refresh LIBRARY   writes it down
#
# Functions, symbol versions and types, as abidw (libabigail) reads them from the library's debug information; and the
# constants of the header, which are in no library.
set -euo pipefail
here=$(dirname "$(readlink -f "$0")")
header=$(readlink -f "$here/../../shard/c_api/shardplan.h")
word=$1 library=$2

write() {  # FOLDER
  abidw --header-file "$header" --drop-private-types --exported-interfaces-only --no-show-locs --no-comp-dir-path \
    --no-corpus-path --no-elf-needed --no-parameter-names --out-file "$1/x86_64.abi" "$library"
  sed -i "s|path='[^']*/shard/c_api/|path='shard/c_api/|" "$1/x86_64.abi"  # wherever it was built
  grep -oE 'SHARDPLAN_[A-Z0-9_]+ = -?[0-9]+' "$header" >"$1/constants.txt"
}

case $word in
  refresh) write "$here" ;;
  check)
    now=$(mktemp -d)
    trap 'rm -rf "$now"' EXIT
    write "$now"
    abidiff --harmless "$here/x86_64.abi" "$now/x86_64.abi" && diff "$here/constants.txt" "$now/constants.txt" || {
      echo "The C interface has changed. Where that is meant: CONTRIBUTING.md, \"The C interface\"."
      exit 1
    }
    ;;
  *) exit 2 ;;
esac
