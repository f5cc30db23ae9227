// Communicators among processes of one machine, which read each other's arenas directly: nothing is staged.
//
//   CpuDevice device(HostPages::shareable);
//   auto communicator = make_shared_communicator(rank, size, exchange_through_folder("/tmp/run-17", rank, size));
//
// Memory. Arenas and what the ranks tell each other lie in files without names (memfd), which peers open through
// /proc/<pid>/fd. So nothing is left behind, however the processes end, and a rank that dies takes away nothing that another
// one is reading. It needs Linux 5.3, one user, one pid namespace and /proc; make_shared_communicator says what is missing.
// make_arena throws ConfigError for a device whose memory cannot be mapped by others. A process's resident size counts its
// peers' arenas too, once it has read them; its proportional size (Pss) counts each page by its share.
//
// Failures, beyond the contract: a process that ends (SIGKILL) is found within some hundredths of a second, not only at the
// deadline; one that is stopped, at the deadline. Ranks allocate their arenas one after the other.
//
// A waiting rank first spins, if the ranks may use at least as many processors as there are of them, then sleeps. It spends
// no processor time on a peer that is late.
#pragma once

#include <chrono>
#include <cstddef>
#include <filesystem>
#include <functional>
#include <memory>
#include <span>

#include "runtime/communicator.h"

namespace shardplan {

// How the ranks find each other: an all-gather of one small record per rank (some hundred bytes, the same on every rank, as
// Communicator::all_gather_bytes has it). MPI_Allgather, a torch store, another communicator, a folder.
using ExchangeBlobs = std::function<void(std::span<const std::byte> mine, std::span<std::byte> all)>;

struct SharedOptions {
  // Of each wait for a peer. Longer than the longest computation between two collectives; shorter finds a stopped rank
  // sooner.
  std::chrono::milliseconds deadline{60'000};
  bool spin = true;  // false: always sleep at once
};

// Collective over `size` processes, each with its own rank: calls `exchange` twice. When it returns on one rank, the exchange
// has ended on all. Throws CommunicationError, the same on
// every rank, if the ranks are on different machines, or one of them cannot reach another one's memory; and whatever
// `exchange` throws.
std::unique_ptr<Communicator> make_shared_communicator(int rank, int size, const ExchangeBlobs& exchange,
                                                       const SharedOptions& options = {});

// An exchange through files in a folder that is there, that all ranks can write, and that no other run uses or has used:
// records are written under other names and renamed. The folder is the caller's to remove. Throws IoError, and
// CommunicationError that names a rank which has written nothing before the deadline.
ExchangeBlobs exchange_through_folder(std::filesystem::path folder, int rank, int size,
                                      std::chrono::milliseconds deadline = std::chrono::milliseconds{60'000});

}  // namespace shardplan
