#!/bin/bash
# python_keywords.sh MEMCALC PLANNING_PY: the keywords of the Python package's plan(), fit() and simulate() are memcalc's flags, all of
# them and no others, but for those of its output. Needs no Python.
set -euo pipefail
memcalc=$1 source=$2

keywords() { sed -n "/^def $1(/,/^) ->/s/^    \([a-z_0-9]*\): .*/\1/p" "$source" | grep -vx model; }
flags() {
  "$memcalc" completion | sed -n "s/^ *$1) words=\"\(.*\)\" ;;/\1/p" | tr ' ' '\n' | sed -n 's/^--//p' | tr - _ |
    grep -vxE 'help|json|verbose|export|against|calibrate'
}

compare() { # COMMAND FUNCTION...
  local command=$1 function
  shift
  diff <(flags "$command" | sort) <(for function; do keywords "$function"; done | sort) || {
    echo "memcalc $command and tools/python/shardplan/planning.py differ: < only a flag, > only a keyword"
    exit 1
  }
}

compare plan plan
compare explain plan
compare fit plan fit
compare simulate plan simulate
