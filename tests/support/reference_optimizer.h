// What ZeroOptimizer must equal, bit for bit: one thread, no shards, no stages, every tensor in arrays of its own.
//
// It follows docs/numerics.md word for word. Of the layout it asks only where the norm's shards are cut.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "shard/options.h"
#include "shard/step_report.h"
#include "tests/support/synthetic_client.h"

namespace shardplan::test {

class ReferenceOptimizer {
 public:
  ReferenceOptimizer(const Catalog& catalog, const Setup& setup, ZeroOptions options);

  // The clients of all ranks, then the step. `sent` and the times of the report stay empty.
  StepReport run_step(const Script& script, std::uint64_t step);

  // In full precision, in catalog order, tied tensors left out.
  std::vector<std::vector<float>> parameters() const;
  // What SyntheticClient sees in one program.
  std::uint64_t parameter_digest(ProgramKind kind) const;

 private:
  // In a dtype of the policy; values are what the dtype can hold.
  struct Values {
    DType dtype = DType::f32;
    std::vector<std::byte> bytes;
    Values() = default;
    Values(DType type, std::uint64_t elements) : dtype(type), bytes(bytes_for(type, elements).count()) {}
    float at(std::uint64_t i) const;
    void set(std::uint64_t i, float value);
  };
  struct TensorState {
    std::string name;
    std::uint64_t unit = 0;
    std::size_t owner = 0;  // itself, if not tied
    std::uint64_t elements = 0;
    std::size_t buffer = 0;
    Range range;  // of the flat buffer
    bool trainable = true;
    std::size_t group = 0;
    Policy policy;
    Values parameter, master, accumulator, gradient, first_moment, second_moment;
    std::vector<float> ema;
  };
  using Contributions = std::vector<std::vector<Values>>;  // [rank][tensor]

  void add_tensors(const Catalog& catalog);
  Values contribution(const Script& script, GradientPlace place, std::size_t owner) const;
  void reduce(const Contributions& contributions, bool first, bool last);
  void accumulate_locally(Contributions& sums, const Contributions& parts, bool first, bool last) const;
  double partial_norm(std::uint64_t shard, std::uint64_t unit, std::size_t buffer) const;
  double group_partial(std::uint64_t shard, const TensorState& tensor) const;
  std::vector<double> sums_of_squares() const;  // of all, then of each group
  void update(TensorState& tensor, std::uint64_t step, float factor);

  Setup setup_;
  ZeroOptions options_;
  Layout layout_;
  std::vector<TensorState> tensors_;
  std::vector<std::size_t> first_of_unit_;  // and the end
  LossScaler scaler_;
  std::uint64_t steps_applied_ = 0;
};

}  // namespace shardplan::test
