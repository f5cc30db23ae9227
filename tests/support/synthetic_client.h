// A client whose gradients are a pure function of (seed, step, micro-batch, rank, unit, tensor, element): spread over
// binary orders of magnitude and different in every element on every rank, so that neither a wrong offset nor
// another order of summation can pass.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "shard/zero_optimizer.h"

namespace shardplan::test {

struct GradientPlace {
  std::uint64_t step = 0;
  std::uint64_t micro_batch = 0;
  int rank = 0;
  std::uint64_t unit = 0;
  std::uint64_t tensor = 0;  // of the unit
  bool operator==(const GradientPlace&) const = default;
};

// What the clients of a run do.
struct Script {
  std::uint64_t seed = 1;
  // How many micro-batches each step has; fewer than the plan's is a short last accumulation.
  std::vector<std::uint64_t> micro_batches;
  // The middle element of one tensor's gradient gets this value.
  struct Poison {
    GradientPlace place;
    float value = 0;
  };
  std::vector<Poison> poisons;
  // In odd steps this unit is left without gradients.
  std::optional<std::uint64_t> silent_unit;
};

// Before the loss scale; magnitudes from 2^-12 to 1/2.
float synthetic_gradient(const Script& script, const GradientPlace& place, std::uint64_t element,
                         std::uint64_t elements);
bool adds_gradient(const Script& script, std::uint64_t step, std::uint64_t unit);

// For ZeroOptions::initial_values.
void synthetic_values(const TensorRange& range, std::span<float> values);

// FNV-1a, to go on from an earlier digest.
inline constexpr std::uint64_t kEmptyDigest = 0xcbf29ce484222325U;
std::uint64_t digest(std::span<const std::byte> bytes, std::uint64_t before = kEmptyDigest);

class SyntheticClient {
 public:
  SyntheticClient(const Script& script, const Setup& setup, std::uint64_t units, int rank)
      : script_(script), setup_(setup), units_(units), rank_(rank) {}

  // One program of micro-batch `micro_batch` of step `step`, both from 0.
  void run(ZeroOptimizer& optimizer, ProgramKind kind, std::uint64_t step, std::uint64_t micro_batch);
  // All programs of the step, then step().
  StepReport run_step(ZeroOptimizer& optimizer, std::uint64_t step);

  // Of the parameters that each program showed, in the order of its passes.
  const std::vector<std::uint64_t>& digests() const { return digests_; }
  // Calls of operator new inside of the optimizer's begin, enter, leave and step.
  std::uint64_t allocations() const { return allocations_; }

 private:
  template <typename Call>
  auto counted(Call&& call);
  void add_gradients(const UnitViews& views, const GradientPlace& unit, float loss_scale) const;

  const Script& script_;
  const Setup& setup_;
  std::uint64_t units_;
  int rank_;
  std::vector<std::uint64_t> digests_;
  std::uint64_t allocations_ = 0;
};

}  // namespace shardplan::test
