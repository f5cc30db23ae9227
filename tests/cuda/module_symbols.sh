#!/usr/bin/env bash
# module_symbols.sh NM MODULE: the module exports its entry alone, and asks for no library of the NVIDIA driver's.
set -euo pipefail
exported=$("$1" -D --defined-only "$2" | awk '{ print $3 }')
[[ $exported == shardplan_cuda_module ]] || { echo "exported: $exported"; exit 1; }
needed=$(ldd "$2" | grep -E 'libcuda\.so|libnccl' || true)
[[ -z $needed ]] || { echo "linked with $needed"; exit 1; }
