// The Exchange of make_mpi_communicator, for programs that have an MPI communicator of their own to build upon.
#pragma once

#include <mpi.h>

#include <memory>

#include "runtime/mpi/mpi_communicator.h"
#include "runtime/staged/exchange.h"

namespace shardplan {

// Collective over `parent`, which is duplicated and not used again.
std::unique_ptr<Exchange> make_mpi_exchange(MPI_Comm parent, const MpiOptions& options);

}  // namespace shardplan
