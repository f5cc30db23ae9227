#include "tests/support/run_processes.h"

#include <fmt/format.h>
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <cstdio>
#include <cstring>
#include <exception>

#include "base/error.h"
#include "tests/support/temporary_folder.h"

namespace shardplan::test {
namespace {

struct Slot {
  Outcome::Kind kind;
  int rank;
  char operation[64];
  char message[2000];
  bool told;
  bool expectations_failed;
};

// Memory of all processes, in which each leaves its outcome.
class Slots {
 public:
  explicit Slots(std::size_t count) : bytes_(count * sizeof(Slot)) {
    memory_ = mmap(nullptr, bytes_, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    SHARDPLAN_CHECK(memory_ != MAP_FAILED, "no memory for the outcomes of a test");
  }
  ~Slots() { munmap(memory_, bytes_); }
  Slots(const Slots&) = delete;
  Slots& operator=(const Slots&) = delete;
  Slot& operator[](std::size_t index) const { return static_cast<Slot*>(memory_)[index]; }

 private:
  std::size_t bytes_;
  void* memory_;
};

[[noreturn]] void be_process(int rank, const std::function<void(int rank)>& body, Slot& slot) {
  prctl(PR_SET_PDEATHSIG, SIGKILL);
  const bool failed_before = testing::Test::HasFailure();  // what is inherited has been told
  Outcome outcome;
  try {
    body(rank);
  } catch (...) {
    outcome = outcome_of(std::current_exception());
  }
  slot.kind = outcome.kind;
  slot.rank = outcome.rank;
  slot.operation[outcome.operation.copy(slot.operation, sizeof(slot.operation) - 1)] = '\0';
  slot.message[outcome.message.copy(slot.message, sizeof(slot.message) - 1)] = '\0';
  slot.expectations_failed = testing::Test::HasFailure() && !failed_before;
  slot.told = true;
  std::fflush(nullptr);
  _exit(0);
}

Outcome outcome_in(const Slot& slot, std::size_t rank, int status) {
  if (slot.expectations_failed) ADD_FAILURE() << "in the process of rank " << rank << ", as it printed";
  if (WIFSIGNALED(status)) return {Outcome::Kind::died, -1, {}, fmt::format("signal {}", WTERMSIG(status))};
  if (!slot.told) return {Outcome::Kind::died, -1, {}, fmt::format("exit status {}", WEXITSTATUS(status))};
  return {slot.kind, slot.rank, slot.operation, slot.message};
}

}  // namespace

std::vector<Outcome> run_processes(int processes, const std::function<void(int rank)>& body,
                                   const std::function<void(const std::vector<pid_t>&)>& watch) {
  const Slots slots(static_cast<std::size_t>(processes));
  std::fflush(nullptr);
  std::vector<pid_t> ids;
  for (int rank = 0; rank < processes; ++rank) {
    const pid_t id = fork();
    SHARDPLAN_CHECK(id >= 0, "a process for a test");
    if (id == 0) be_process(rank, body, slots[static_cast<std::size_t>(rank)]);
    ids.push_back(id);
  }
  if (watch) watch(ids);
  std::vector<Outcome> outcomes;
  for (std::size_t rank = 0; rank < ids.size(); ++rank) {
    int status = 0;
    SHARDPLAN_CHECK(waitpid(ids[rank], &status, 0) == ids[rank], "the end of a process of a test");
    outcomes.push_back(outcome_in(slots[rank], rank, status));
  }
  return outcomes;
}

std::vector<Outcome> run_shared_ranks(int ranks, const std::function<void(std::unique_ptr<Communicator>)>& body,
                                      const SharedOptions& options,
                                      const std::function<void(const std::vector<pid_t>&)>& watch) {
  const test_support::TemporaryFolder folder;
  return run_processes(
      ranks,
      [&](int rank) {
        body(make_shared_communicator(rank, ranks, exchange_through_folder(folder.path(), rank, ranks), options));
      },
      watch);
}

}  // namespace shardplan::test
