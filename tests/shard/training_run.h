// Whole training runs of every rank, and what is expected of each: the reference's bits, the plan's bytes, no allocation.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "runtime/recording_device.h"
#include "tests/support/reference_optimizer.h"
#include "tests/support/synthetic_client.h"

namespace shardplan::test {

// Units of one element, of none, without a tensor, without a trainable one; ties across units, within a unit, and from
// two units to one owner; frozen tensors and fixed dtypes among others; one unit large enough for a granule of 64.
Catalog odd_catalog();

// The groups of ranks that a setup wants.
class RankGroups {
 public:
  RankGroups(Communicator& world, const Setup& setup);
  const Communicators& communicators() const { return communicators_; }

 private:
  std::unique_ptr<Communicator> shard_group_;
  std::unique_ptr<Communicator> replicas_;
  Communicators communicators_;
};

// What a run came to.
struct Trained {
  std::vector<StepReport> reports;
  std::vector<std::vector<float>> parameters;
  std::vector<std::uint64_t> digests;  // of the parameters seen, program by program
};

// Bit for bit; the bytes sent and the times apart.
std::string difference(const StepReport& actual, const StepReport& expected);
std::string difference(const Trained& actual, const Trained& expected);
std::vector<std::vector<float>> parameters_of(ZeroOptimizer& optimizer);

// Every step of the script, then an evaluation.
Trained run_reference(const Catalog& catalog, const Setup& setup, const ZeroOptions& options, const Script& script);

// What a run may put between the optimizer and the runtime, for each rank.
struct Adaptors {
  std::function<std::unique_ptr<Device>(Device&, int rank)> device;
  std::function<std::unique_ptr<Communicator>(std::unique_ptr<Communicator>)> communicator;
};

// The same by all ranks, over the transport that the setup names, with these expectations: every rank's outcome is `expected`, its memory is the plan's, and no
// call of the optimizer allocated.
void expect_run(const Catalog& catalog, const Setup& setup, const ZeroOptions& options, const Script& script,
                const Trained& expected, const Adaptors& adaptors = {});

}  // namespace shardplan::test
