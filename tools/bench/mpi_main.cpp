// shardplan-bench-mpi [MEGABYTES [PAIRS]], under mpirun: our collectives on the processes of one machine against MPI's own, in
// alternation, in one run. Ours are the shared-memory communicator, bootstrapped over MPI, and the one over MPI's messages.
// Prints, for each, the full vector's GB/s (medians) and the median of the ratios of each pair.
#include <fmt/format.h>
#include <mpi.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <vector>

#include "base/error.h"
#include "runtime/cpu_device.h"
#include "runtime/mpi/mpi_communicator.h"
#include "runtime/shared/shared_communicator.h"
#include "tools/mpi/mpi_session.h"

namespace shardplan {
namespace {

// The slowest rank's time, from when all are there.
double seconds_of(const std::function<void()>& call) {
  MPI_Barrier(MPI_COMM_WORLD);
  const double start = MPI_Wtime();
  call();
  double seconds = MPI_Wtime() - start;
  MPI_Allreduce(MPI_IN_PLACE, &seconds, 1, MPI_DOUBLE, MPI_MAX, MPI_COMM_WORLD);
  return seconds;
}

double median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

// A communicator's buffers: `input` and `output` of all elements, both fp32, and staging where it needs some.
class Bench {
 public:
  Bench(Communicator& communicator, Device& device, std::uint64_t elements)
      : communicator_(communicator), elements_(elements), stream_(device.make_stream()) {
    const auto ranks = static_cast<std::uint64_t>(communicator.size());
    mine_ = {elements / ranks * static_cast<std::uint64_t>(communicator.rank()), elements / ranks};
    output_ = round_up(elements * 4, 4096) + 4096;  // not congruent with the input
    staging_ = 2 * output_;
    staging_bytes_ = communicator.reads_peers() ? 0 : elements * 4;
    const Bytes all = Bytes{staging_ + staging_bytes_} + kArenaShiftRoom;
    arena_ = communicator.make_arena(device, {.tier = MemoryTier::device, .bytes = all});
    lease_ = arena_->take(0, Bytes{staging_ + staging_bytes_});
    std::fill_n(input(), elements, 1.0F);
  }

  float* input() const { return reinterpret_cast<float*>(arena_->data()); }
  float* output() const { return reinterpret_cast<float*>(arena_->data() + output_); }
  int piece() const { return static_cast<int>(mine_.count); }

  void reduce_scatter() {
    communicator_.reduce_scatter({.input = {arena_.get(), 0},
                                  .elements = elements_,
                                  .mine = mine_,
                                  .equal_pieces = true,
                                  .output = {.place = {arena_.get(), output_ + mine_.first * 4}},
                                  .staging = {arena_.get(), staging_},
                                  .staging_bytes = staging_bytes_},
                                 *stream_);
  }
  void all_gather() {
    communicator_.all_gather({.input = {arena_.get(), output_ + mine_.first * 4},
                              .output = {arena_.get(), output_},
                              .elements = elements_,
                              .mine = mine_,
                              .equal_pieces = true},
                             *stream_);
  }

 private:
  Communicator& communicator_;
  std::uint64_t elements_;
  std::unique_ptr<Stream> stream_;
  Piece mine_;
  std::uint64_t output_ = 0;
  std::uint64_t staging_ = 0;
  std::uint64_t staging_bytes_ = 0;
  std::unique_ptr<SymmetricArena> arena_;
  Lease lease_;
};

void compare(const MpiSession& session, const char* name, double bytes, int pairs, const std::function<void()>& ours,
             const std::function<void()>& theirs) {
  std::vector<double> our_seconds;
  std::vector<double> their_seconds;
  std::vector<double> ratios;
  for (int pair = -1; pair < pairs; ++pair) {
    const double mine = seconds_of(ours);
    const double other = seconds_of(theirs);
    if (pair < 0) continue;  // warms both
    our_seconds.push_back(mine);
    their_seconds.push_back(other);
    ratios.push_back(other / mine);
  }
  if (session.rank() != 0) return;
  fmt::print("{:<24} {:>8.2f} {:>8.2f} {:>8.2f}\n", name, bytes / median(our_seconds) / 1e9,
             bytes / median(their_seconds) / 1e9, median(ratios));
}

void compare_all(const MpiSession& session, const std::string& kind, Bench& bench, std::uint64_t elements, int pairs) {
  const double bytes = static_cast<double>(elements) * 4;
  std::vector<float> sum(elements);
  const int all = static_cast<int>(elements);
  compare(
      session, (kind + " all_reduce").c_str(), bytes, pairs,
      [&] {
        bench.reduce_scatter();
        bench.all_gather();
      },
      [&] { MPI_Allreduce(bench.input(), sum.data(), all, MPI_FLOAT, MPI_SUM, MPI_COMM_WORLD); });
  compare(
      session, (kind + " reduce_scatter").c_str(), bytes, pairs, [&] { bench.reduce_scatter(); },
      [&] { MPI_Reduce_scatter_block(bench.input(), sum.data(), bench.piece(), MPI_FLOAT, MPI_SUM, MPI_COMM_WORLD); });
  compare(
      session, (kind + " all_gather").c_str(), bytes, pairs, [&] { bench.all_gather(); },
      [&] {
        MPI_Allgather(bench.input(), bench.piece(), MPI_FLOAT, sum.data(), bench.piece(), MPI_FLOAT, MPI_COMM_WORLD);
      });
  const auto expected = static_cast<float>(session.size());
  SHARDPLAN_CHECK(std::all_of(bench.output(), bench.output() + elements, [&](float x) { return x == expected; }),
                  "the sums are wrong");
}

void run(const MpiSession& session, double megabytes, int pairs) {
  const auto ranks = static_cast<std::uint64_t>(session.size());
  const std::uint64_t elements = static_cast<std::uint64_t>(megabytes * 1e6 / 4) / ranks * ranks;
  if (session.rank() == 0) {
    fmt::print("{} processes, {:.1f} MB, {}\n{:<24} {:>8} {:>8} {:>8}\n", ranks, static_cast<double>(elements) * 4e-6,
               session.library(), "GB/s of the vector", "ours", "MPI's", "ratio");
  }
  CpuDevice device(HostPages::shareable);
  {
    const auto shared = make_shared_communicator(
        session.rank(), session.size(),
        [&](std::span<const std::byte> mine, std::span<std::byte> all) { session.all_gather(mine, all); });
    Bench bench(*shared, device, elements);
    compare_all(session, "shared", bench, elements, pairs);
  }
  const auto messages = make_mpi_communicator();
  Bench bench(*messages, device, elements);
  compare_all(session, "mpi", bench, elements, pairs);
}

}  // namespace
}  // namespace shardplan

int main(int argc, char** argv) {
  const shardplan::MpiSession session;
  try {
    shardplan::run(session, argc > 1 ? std::atof(argv[1]) : 64, argc > 2 ? std::atoi(argv[2]) : 11);
    return 0;
  } catch (const std::exception& error) {
    fmt::print(stderr, "shardplan-bench-mpi: rank {}: {}\n", session.rank(), error.what());
    session.abort(1);
  }
}
