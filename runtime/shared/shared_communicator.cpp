#include "runtime/shared/shared_communicator.h"

#include <fmt/format.h>
#include <sched.h>
#include <sys/stat.h>
#include <unistd.h>

#include <bitset>
#include <fstream>
#include <numeric>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "base/error.h"
#include "runtime/direct/direct_communicator.h"
#include "runtime/shared/process_neighbours.h"

namespace shardplan {
namespace {

constexpr char kOperation[] = "make_shared_communicator";

using Processors = std::bitset<1024>;
using Problem = FixedText<400>;

// What a rank tells the others first. Plain data.
struct Hello {
  int rank = 0;
  int size = 0;
  pid_t process = 0;
  FixedText<64> machine{};  // differs from one boot of a system to the next
  std::uint64_t process_namespace = 0;
  Processors processors{};  // that it may use
  SharedHandle world{};     // of rank 0
  SharedHandle group{};     // of rank 0
  Problem problem{};        // why there are none
};
static_assert(std::is_trivially_copyable_v<Hello>);

template <typename T>
std::vector<T> exchange_all(const ExchangeBlobs& exchange, const T& mine, int size) {
  std::vector<T> all(static_cast<std::size_t>(size));
  exchange(std::as_bytes(std::span(&mine, 1)), std::as_writable_bytes(std::span(all)));
  return all;
}

Processors allowed_processors() {
  cpu_set_t set;
  CPU_ZERO(&set);
  Processors processors;
  if (sched_getaffinity(0, sizeof(set), &set) != 0) return processors;
  for (std::size_t i = 0; i < processors.size(); ++i) processors[i] = CPU_ISSET(i, &set);
  return processors;
}

// What the ranks have in common, from rank 0.
struct Common {
  CommonMemory world;
  CommonMemory group;
};

Hello hello_of(int rank, int size, Common& common) {
  Hello hello{.rank = rank, .size = size, .process = getpid(), .processors = allowed_processors()};
  std::string boot;
  std::ifstream("/proc/sys/kernel/random/boot_id") >> boot;
  hello.machine = boot;
  struct stat status{};
  if (stat("/proc/self/ns/pid", &status) == 0) hello.process_namespace = status.st_ino;
  if (boot.empty() || hello.process_namespace == 0) {
    hello.problem = "/proc is not mounted: expected /proc/sys/kernel/random/boot_id and /proc/self/ns/pid";
    return hello;
  }
  if (rank != 0) return hello;
  try {
    common = {ProcessNeighbours::make_common_memory(WorldBlock::bytes(size)),
              ProcessNeighbours::make_common_memory(DirectGroup::common_bytes(size))};
    hello.world = common.world.offer.handle;
    hello.group = common.group.offer.handle;
  } catch (const Error& error) {
    hello.problem = error.what();
  }
  return hello;
}

// Every rank finds the same in the same hellos.
void check_hellos(const std::vector<Hello>& hellos, const SharedOptions& options) {
  const auto refuse = [&](std::size_t rank, const std::string& problem) {
    throw CommunicationError(static_cast<int>(rank), kOperation, options.deadline, problem);
  };
  const Hello& first = hellos.front();
  const std::string_view machine = first.machine.c_str();
  for (std::size_t rank = 0; rank < hellos.size(); ++rank) {
    const Hello& hello = hellos[rank];
    if (*hello.problem.c_str() != '\0') refuse(rank, hello.problem.c_str());
    if (hello.rank != static_cast<int>(rank) || hello.size != static_cast<int>(hellos.size())) {
      refuse(rank, fmt::format("the exchange gave rank {} of {} where rank {} of {} was expected", hello.rank,
                               hello.size, rank, hellos.size()));
    }
    if (hello.machine.c_str() != machine) refuse(rank, "is on another machine than rank 0");
    if (hello.process_namespace != first.process_namespace) refuse(rank, "is in another pid namespace than rank 0");
  }
}

bool a_processor_for_each(const std::vector<Hello>& hellos) {
  Processors all;
  for (const Hello& hello : hellos) all |= hello.processors;
  return all.count() >= hellos.size();
}

}  // namespace

std::unique_ptr<Communicator> make_shared_communicator(int rank, int size, const ExchangeBlobs& exchange,
                                                       const SharedOptions& options) {
  SHARDPLAN_CHECK(size >= 1 && rank >= 0 && rank < size, fmt::format("rank {} of {}", rank, size));
  Common common;
  const std::vector<Hello> hellos = exchange_all(exchange, hello_of(rank, size, common), size);
  check_hellos(hellos, options);

  std::shared_ptr<ProcessNeighbours> neighbours;
  Problem problem;
  try {
    std::vector<pid_t> processes;
    for (const Hello& hello : hellos) processes.push_back(hello.process);
    neighbours = std::make_shared<ProcessNeighbours>(processes);
    if (rank != 0) {
      common.world.bytes = neighbours->open_common(0, {.handle = hellos.front().world});
      common.group.bytes = neighbours->open_common(0, {.handle = hellos.front().group});
    }
  } catch (const Error& error) {
    problem = error.what();
  }
  // All have opened rank 0's memory once all have said so.
  const std::vector<Problem> problems = exchange_all(exchange, problem, size);
  for (std::size_t peer = 0; peer < problems.size(); ++peer) {
    if (*problems[peer].c_str() == '\0') continue;
    throw CommunicationError(static_cast<int>(peer), kOperation, options.deadline, problems[peer].c_str());
  }

  std::vector<int> world_ranks(static_cast<std::size_t>(size));
  std::iota(world_ranks.begin(), world_ranks.end(), 0);
  const DirectOptions direct{.deadline = options.deadline, .spin = options.spin && a_processor_for_each(hellos)};
  auto world = std::make_shared<DirectWorld>(neighbours, std::move(common.world.bytes), rank, size, direct);
  auto communicator = std::make_unique<DirectCommunicator>(std::move(world), std::move(common.group.bytes),
                                                           std::move(world_ranks), rank);
  communicator->barrier();
  return communicator;
}

}  // namespace shardplan
