#!/bin/sh
# run_mpi.sh MPIEXEC RANKS PROGRAM ARGUMENTS...: the program on so many processes of this machine, fewer processors or not.
set -e
mpiexec=$1 ranks=$2
shift 2
# Open MPI: as root it wants to be asked twice, and more processes than processors is something to ask for too.
export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
export OMPI_MCA_rmaps_base_oversubscribe=1 OMPI_MCA_mpi_yield_when_idle=1 OMPI_MCA_hwloc_base_binding_policy=none
export PRTE_MCA_rmaps_default_mapping_policy=:oversubscribe
exec "$mpiexec" -n "$ranks" "$@"
