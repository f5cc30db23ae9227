// The tensors of a catalog as engines see them: those that own elements, each with its policy and its data ranks.
#pragma once

#include <cstdint>
#include <vector>

#include "base/checked.h"
#include "planner/catalog.h"
#include "planner/engines/engine.h"
#include "planner/optimizer_states.h"
#include "planner/policy.h"
#include "planner/setup.h"

namespace shardplan {

struct Owned {
  const Tensor* tensor = nullptr;  // of the catalog
  std::uint64_t elements = 0;
  // That share its states. 1 of scales: bitsandbytes keeps them in attributes of its parameters, not as parameters
  // (nn/modules.py, Params4bit.quant_state and Int8Params.SCB), so no engine shards or gathers them.
  std::uint64_t ranks = 1;
  Policy policy;          // after what the model fixes
  UpdatedTensor updated;  // as its optimizer sees it
};

// Equal units, as in the catalog.
struct OwnedRun {
  std::uint64_t count = 1;
  bool block = false;  // of a run that repeats
  std::vector<Owned> tensors;
};
std::vector<OwnedRun> owned_tensors(const Catalog& catalog, const Setup& setup);

// The sum over all tensors, folded.
template <typename Count>
std::uint64_t sum_elements(const std::vector<OwnedRun>& runs, Count&& count) {
  std::uint64_t sum = 0;
  for (const OwnedRun& run : runs) {
    for (const Owned& owned : run.tensors) {
      sum = checked_add(sum, checked_multiply(run.count, static_cast<std::uint64_t>(count(owned))));
    }
  }
  return sum;
}
template <typename Size>
Bytes sum_bytes(const std::vector<OwnedRun>& runs, Size&& size) {
  Bytes sum;
  for (const OwnedRun& run : runs) {
    for (const Owned& owned : run.tensors) sum += run.count * size(owned);
  }
  return sum;
}

// Every tensor in order, expanded.
template <typename Visitor>
void for_each_owned(const std::vector<OwnedRun>& runs, Visitor&& visit) {
  for (const OwnedRun& run : runs) {
    for (std::uint64_t i = 0; i < run.count; ++i) {
      for (const Owned& owned : run.tensors) visit(owned);
    }
  }
}
// Trainable tensors that one engine's flat buffer may hold together: the same ranks, the same dtypes and, where an
// optimizer treats hidden matrices apart, the same of those (DeepSpeed makes a parameter group of Muon's).
struct TensorGroup {
  std::uint64_t ranks = 1;
  Policy policy;
  bool hidden_matrices = false;
  std::uint64_t elements = 0;
  std::uint64_t largest = 0;  // tensor
};
std::vector<TensorGroup> trainable_groups(const std::vector<OwnedRun>& runs, const Setup& setup);
bool in_group(const Owned& owned, const TensorGroup& group, const Setup& setup);

// Bytes of the optimizer's states besides the master: of one tensor in its shape, and of so many elements of a flat
// buffer, in which no tensor has a shape any more.
Bytes moment_bytes(const Setup& setup, const Policy& policy, const UpdatedTensor& tensor);
Bytes flat_moment_bytes(const Setup& setup, const Policy& policy, std::uint64_t elements, bool hidden_matrices);

// Of a group's tensors, each whole and in its shape.
Bytes whole_moment_bytes(const Setup& setup, const std::vector<OwnedRun>& runs, const TensorGroup& group,
                         const Policy& policy);

Bytes largest_tensor_bytes(const std::vector<OwnedRun>& runs);  // trainable, in its parameter dtype

// Collects terms; those of 0 bytes are left out.
class TermList {
 public:
  explicit TermList(std::vector<Term>& terms) : terms_(terms) {}
  void add(Term term) {
    if (term.bytes > Bytes{}) terms_.push_back(std::move(term));
  }

 private:
  std::vector<Term>& terms_;
};

// "1,024 elements x 2 B (bf16)"
std::string counted(std::uint64_t elements, DType dtype);

}  // namespace shardplan
