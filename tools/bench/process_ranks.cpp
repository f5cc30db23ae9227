#include "tools/bench/process_ranks.h"

#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <csignal>
#include <cstdlib>
#include <exception>
#include <filesystem>
#include <string>

#include "base/error.h"
#include "runtime/cpu_device.h"
#include "runtime/shared/shared_communicator.h"

namespace shardplan::bench {
namespace {

// The gate has one rank more, which would keep the others from spinning: so they have a communicator of their own. Ends when
// the measuring process leaves the gate.
[[noreturn]] void serve(Communicator& gate, std::uint64_t bytes, Collective what) {
  const auto part = gate.split(0, 0);
  auto communicator = make_shared_communicator(
      part->rank(), part->size(),
      [&](std::span<const std::byte> mine, std::span<std::byte> all) { part->all_gather_bytes(mine, all); });
  CpuDevice device(HostPages::shareable);
  CollectiveRank rank(std::move(communicator), device, bytes);
  for (;;) {
    gate.barrier();
    rank.run(what);
    gate.barrier();
  }
}

}  // namespace

ProcessRanks::ProcessRanks(int ranks, std::uint64_t bytes, Collective what) {
  std::string folder = (std::filesystem::temp_directory_path() / "shardplan-bench-XXXXXX").string();
  SHARDPLAN_CHECK(mkdtemp(folder.data()) != nullptr, "a folder for ranks to meet in");
  const pid_t parent = getpid();
  for (int rank = 0; rank < ranks; ++rank) {
    const pid_t process = fork();
    SHARDPLAN_CHECK(process >= 0, "a process for each rank");
    if (process != 0) {
      processes_.push_back(process);
      continue;
    }
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (getppid() != parent) _exit(1);
    try {
      const auto gate = make_shared_communicator(rank, ranks + 1, exchange_through_folder(folder, rank, ranks + 1));
      serve(*gate, bytes, what);
    } catch (const std::exception&) {
      _exit(0);  // the measuring process has left; whatever else went wrong, the gate has told it
    }
  }
  gate_ = make_shared_communicator(ranks, ranks + 1, exchange_through_folder(folder, ranks, ranks + 1));
  std::filesystem::remove_all(folder);
  gate_->split(-1, 0);
}

ProcessRanks::~ProcessRanks() {
  gate_.reset();
  for (const pid_t process : processes_) waitpid(process, nullptr, 0);
}

double ProcessRanks::seconds() {
  gate_->barrier();
  const auto start = std::chrono::steady_clock::now();
  gate_->barrier();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

}  // namespace shardplan::bench
