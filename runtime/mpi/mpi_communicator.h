// The communicator of an MPI program's ranks: StagedCommunicator over MPI's point-to-point messages, so with canonical
// reductions and the bits of every other communicator. Needs the library shardplan::mpi, and a plan of transport staged.
//
//   MPI_Init_thread(...);                      // the program's business, like MPI_Finalize
//   auto world = make_mpi_communicator({.deadline = 30s});
//
// Over MPI_COMM_WORLD, on a communicator of its own (MPI_Comm_dup, with MPI_ERRORS_RETURN): collective, and nothing that the
// program sends can be mistaken for it. All communicators must be gone before MPI_Finalize.
//
// Threads. MPI is called by the rank's own thread only, so MPI_THREAD_FUNNELED is enough for a rank that is the main
// thread; otherwise MPI_THREAD_SERIALIZED. abort() from another thread is told to the peers at once with
// MPI_THREAD_MULTIPLE, else by the rank's own next call or destructor. No thread works in the background: a rank's messages
// move while it is in a call.
//
// Failures. MPI has no way to take a message back. After a CommunicationError say so, then end the program with MPI_Abort:
// MPI_Finalize waits for ranks that may never come.
#pragma once

#include <chrono>
#include <memory>
#include <optional>

#include "runtime/communicator.h"

namespace shardplan {

struct MpiOptions {
  // Of each wait for a peer. Longer than the longest computation between two collectives; shorter finds a stopped rank
  // sooner.
  std::chrono::milliseconds deadline{60'000};
  // Whether a rank that waits gives its processor to others at once. Unset: if a node has more ranks than processors.
  std::optional<bool> yield;
};

// Throws CommunicationError if MPI is not initialized, or refuses.
std::unique_ptr<Communicator> make_mpi_communicator(const MpiOptions& options = {});

}  // namespace shardplan
