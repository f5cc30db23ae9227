# Finds MPI (Open MPI or MPICH) where SHARDPLAN_MPI asks for it, and sets SHARDPLAN_WITH_MPI.
# Another one than the system's: -DMPI_CXX_COMPILER=mpicxx.mpich -DMPIEXEC_EXECUTABLE=/usr/bin/mpirun.mpich, or MPI_HOME.
set(SHARDPLAN_WITH_MPI OFF)
if(SHARDPLAN_MPI STREQUAL "AUTO" OR SHARDPLAN_MPI)
  set(MPI_CXX_SKIP_MPICXX ON)
  find_package(MPI QUIET COMPONENTS CXX)
  if(MPI_CXX_FOUND)
    set(SHARDPLAN_WITH_MPI ON)
  elseif(NOT SHARDPLAN_MPI STREQUAL "AUTO")
    message(FATAL_ERROR "SHARDPLAN_MPI=${SHARDPLAN_MPI}: no MPI is found. Install libopenmpi-dev and openmpi-bin (or libmpich-dev "
                        "and mpich), or say which one with -DMPI_CXX_COMPILER=... or -DMPI_HOME=...")
  endif()
endif()
