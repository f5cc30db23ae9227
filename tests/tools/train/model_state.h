// The tensors of a catalog in memory, as an optimizer would hold them, without an optimizer.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "planner/catalog.h"
#include "shard/views.h"
#include "tools/train/gpt.h"

namespace shardplan::test {

class ModelState {
 public:
  // First values from the configuration, rounded to `dtype`; gradients of zero.
  explicit ModelState(const GptConfig& config, DType dtype = DType::f32);

  UnitViews views(std::uint64_t unit) const { return {unit_parameters_[unit], unit_gradients_[unit]}; }
  // Without gradients: for evaluation.
  UnitViews parameter_views(std::uint64_t unit) const { return {unit_parameters_[unit], {}}; }

  // Tensors in the catalog's order. A tied one's views are its owner's.
  const std::vector<TensorView>& parameters() const { return parameters_; }
  const std::vector<TensorView>& gradients() const { return gradients_; }
  bool owns(std::size_t tensor) const { return tensor < parameters_.size() - 1 || !tied_; }

  void zero_gradients();

 private:
  bool tied_;
  std::vector<std::vector<std::byte>> storage_;
  std::vector<TensorView> parameters_, gradients_;
  std::vector<std::span<const TensorView>> unit_parameters_, unit_gradients_;
};

// A tensor's elements in double.
std::vector<double> values_of(const TensorView& tensor);

// One training micro-batch, gradients added to the state's. Returns the loss.
double train_micro_batch(Gpt& gpt, std::span<const std::uint8_t> windows, const ModelState& state);

// Forward only.
double evaluate(Gpt& gpt, std::span<const std::uint8_t> windows, const ModelState& state);

// Text whose successors depend on more than the last byte: words out of a small vocabulary.
std::vector<std::uint8_t> words(std::size_t bytes, std::uint64_t seed);

}  // namespace shardplan::test
