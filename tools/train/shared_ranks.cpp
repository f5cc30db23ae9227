// Ranks that are processes of this machine: forked here, before there is a thread or a large allocation.
#include <fmt/format.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <chrono>
#include <csignal>
#include <cstdio>
#include <cstring>
#include <new>
#include <string>
#include <thread>
#include <vector>

#include "base/error.h"
#include "runtime/cpu_device.h"
#include "runtime/shared/shared_communicator.h"
#include "tools/train/ranks.h"
#include "tools/train/stop_signal.h"

namespace shardplan::train {
namespace {

using Clock = std::chrono::steady_clock;

constexpr int kMostRanks = 256;
constexpr int kFailed = 3;
// For the others to end by themselves after one has failed: they see it at once, unless they have been stopped.
constexpr std::chrono::seconds kGrace{5};

// Memory that the processes have in common from the fork on: how ranks find each other, and what went wrong.
class Board {
 public:
  Board() {
    void* const memory = mmap(nullptr, sizeof(Content), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED) throw OutOfMemory("host", Bytes{sizeof(Content)}, 0_B);
    content_ = new (memory) Content;
  }
  ~Board() { munmap(content_, sizeof(Content)); }
  Board(const Board&) = delete;
  Board& operator=(const Board&) = delete;

  // All-gathers of one rank. A record waits in one of two places: whoever writes the third has read all of the second, which
  // nobody wrote before having read the first.
  ExchangeBlobs exchange(int rank, int ranks, std::chrono::milliseconds deadline) {
    return [this, rank, ranks, deadline, round = 0](std::span<const std::byte> mine, std::span<std::byte> all) mutable {
      SHARDPLAN_CHECK(mine.size() <= kRecord, "a record that is too long for the board");
      std::copy(mine.begin(), mine.end(), content_->ranks[rank].records[round % 2]);
      content_->ranks[rank].rounds.store(++round);
      const auto end = Clock::now() + deadline;
      for (int peer = 0; peer < ranks; ++peer) {
        while (content_->ranks[peer].rounds.load() < round) {
          if (Clock::now() > end) throw CommunicationError(peer, "start", deadline, "has not come up");
          std::this_thread::sleep_for(std::chrono::milliseconds{1});
        }
        const std::byte* const record = content_->ranks[peer].records[(round - 1) % 2];
        std::copy_n(record, mine.size(), all.begin() + static_cast<std::ptrdiff_t>(peer) * std::ssize(mine));
      }
    };
  }

  void fail(int rank, const std::string& problem) {
    Rank& mine = content_->ranks[rank];
    mine.problem[problem.copy(mine.problem, sizeof(mine.problem) - 1)] = '\0';
    int none = -1;
    content_->first_failed.compare_exchange_strong(none, rank);
  }
  int first_failed() const { return content_->first_failed.load(); }
  std::string problem_of(int rank) const { return content_->ranks[rank].problem; }

 private:
  static constexpr std::size_t kRecord = 1024;
  struct Rank {
    std::atomic<int> rounds{0};
    std::byte records[2][kRecord]{};
    char problem[1024]{};
  };
  struct Content {
    std::atomic<int> first_failed{-1};
    Rank ranks[kMostRanks];
  };
  Content* content_;
};

void train_as(int rank, const Training& training, Board& board, const Show& show) {
  const TrainingOptions& options = training.options;
  const int ranks = static_cast<int>(options.ranks);
  const auto world = make_shared_communicator(rank, ranks, board.exchange(rank, ranks, options.deadline),
                                              {.deadline = options.deadline});
  RankResult result;
  try {
    CpuDevice cpu(HostPages::shareable);
    result = train_rank(training, *world, cpu);
  } catch (const std::exception& error) {
    world->abort(error.what());
    throw;
  }
  if (rank == 0) show(training, result);
}

// The parent's death is this process's, so that nothing is left when the command is killed.
[[noreturn]] void be_rank(int rank, pid_t parent, const Training& training, Board& board, const Show& show) {
  int status = 0;
  prctl(PR_SET_PDEATHSIG, SIGKILL);
  if (getppid() != parent) _exit(kFailed);
  try {
    train_as(rank, training, board, show);
  } catch (const std::exception& error) {
    board.fail(rank, error.what());
    status = kFailed;
  }
  std::fflush(nullptr);
  _exit(status);
}

// The processes of all ranks. None of them outlives it.
class Processes {
 public:
  ~Processes() {
    for (const Rank& rank : ranks_) {
      if (rank.runs) kill(rank.process, SIGKILL);
    }
    while (running() > 0) collect(0);
  }
  Processes() = default;
  Processes(const Processes&) = delete;
  Processes& operator=(const Processes&) = delete;

  void start(const Training& training, Board& board, const Show& show) {
    const pid_t parent = getpid();
    std::fflush(nullptr);  // or each would write what is waiting
    for (int rank = 0; rank < static_cast<int>(training.options.ranks); ++rank) {
      const pid_t process = fork();
      if (process < 0) throw Error(fmt::format("rank {} cannot be started: {}", rank, std::strerror(errno)));
      if (process == 0) be_rank(rank, parent, training, board, show);
      ranks_.push_back({.process = process});
    }
  }

  // Until all have ended; those that are still there some time after the first failure are killed.
  void wait() {
    while (running() > 0 && !failed()) {
      if (!watches_stop_signal()) {
        collect(0);
      } else if (!collect(WNOHANG)) {
        std::this_thread::sleep_for(std::chrono::milliseconds{5});
        pass_on_stop_signal();
      }
    }
    for (const auto end = Clock::now() + kGrace; running() > 0 && Clock::now() < end;) {
      if (!collect(WNOHANG)) std::this_thread::sleep_for(std::chrono::milliseconds{5});
    }
    for (Rank& rank : ranks_) {
      if (!rank.runs) continue;
      rank.killed_here = true;
      kill(rank.process, SIGKILL);
    }
    while (running() > 0) collect(0);
  }

  // Empty, or what to tell of a run that failed.
  std::string problem(const Board& board) const {
    const int first = board.first_failed();
    const std::string seen = first < 0 ? "" : board.problem_of(first);
    for (std::size_t rank = 0; rank < ranks_.size(); ++rank) {
      const int status = ranks_[rank].status;
      if (!WIFSIGNALED(status) || ranks_[rank].killed_here) continue;
      return fmt::format("rank {} was killed by signal {} ({}){}{}", rank, WTERMSIG(status),
                         strsignal(WTERMSIG(status)), seen.empty() ? "" : "; the others: ", seen);
    }
    if (first >= 0) return fmt::format("rank {} failed: {}", first, seen);
    for (std::size_t rank = 0; rank < ranks_.size(); ++rank) {
      if (ranks_[rank].status != 0) return fmt::format("rank {} ended before its time", rank);
    }
    return {};
  }

 private:
  struct Rank {
    pid_t process = 0;
    bool runs = true;
    bool killed_here = false;
    int status = 0;
  };

  std::ptrdiff_t running() const {
    return std::count_if(ranks_.begin(), ranks_.end(), [](const Rank& rank) { return rank.runs; });
  }
  bool failed() const {
    return std::any_of(ranks_.begin(), ranks_.end(), [](const Rank& rank) { return !rank.runs && rank.status != 0; });
  }
  bool collect(int flags) {
    int status = 0;
    const pid_t process = waitpid(-1, &status, flags);
    for (Rank& rank : ranks_) {
      if (rank.process != process || process <= 0) continue;
      rank.runs = false;
      rank.status = status;
    }
    return process > 0;
  }

  // One rank that knows is enough.
  void pass_on_stop_signal() {
    if (stop_passed_on_ || !stop_asked()) return;
    stop_passed_on_ = true;
    for (const Rank& rank : ranks_) {
      if (rank.runs) kill(rank.process, SIGTERM);
    }
  }

  std::vector<Rank> ranks_;
  bool stop_passed_on_ = false;
};

std::uint64_t world_size(std::optional<std::uint64_t> asked) {
  if (asked > kMostRanks) throw ConfigError("--ranks", "", fmt::format("more than {} processes", kMostRanks));
  return asked.value_or(1);
}

void train(const TrainingOptions& options, const Show& show) {
  std::signal(SIGCHLD, SIG_DFL);  // where it is inherited as ignored, nobody could be waited for
  const Training training = make_training(options);
  Board board;
  Processes processes;
  processes.start(training, board, show);
  processes.wait();
  if (const std::string problem = processes.problem(board); !problem.empty()) throw Error(problem);
}

}  // namespace

RankKind shared_ranks() {
  return {.name = "shared",
          .what = "processes of this machine over shared memory",
          .own_processes = true,
          .world_size = world_size,
          .train = train};
}

}  // namespace shardplan::train
