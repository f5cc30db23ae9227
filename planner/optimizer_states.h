// What an optimizer keeps of one tensor besides its master copy, in its true shape.
//
//   adamw, adam, lion, sgd-momentum
//               an element of each moment per parameter, in the policy's dtypes.
//   adafactor   of a tensor with two dims or more the second moment is factored over the last two: a sum for each row
//               and one for each column; of others it is whole (Shazeer and Stern, arXiv 1804.04235, algorithm 4;
//               transformers optimization.py Adafactor, whose least dim to factor is 1: optax's is 128). No first moment
//               unless it is asked for (beta1).
//   adam8bit    both moments in 8 bits, with an fp32 scale for each block of 256 elements; of fewer than 4096 elements
//               both in fp32 (Dettmers et al., arXiv 2110.02861, sec. 2; bitsandbytes 0.45 optim/optimizer.py
//               Optimizer2State: min_8bit_size 4096, blocksize 256; 2048 before 0.44). transformers' Trainer keeps
//               embeddings in 32 bits besides, which is its choice and not counted here.
//               torchao's (0.18, optim/adam.py _new_buffer and subclass_8bit.py), which runs on FSDP2's shards: 8 bits
//               where a shard has 4096 elements or more and whole blocks, and 1 KiB of codes beside each moment; else
//               moments in the parameter's dtype.
//   muon        of hidden matrices (of a block, two dims or more) one momentum; of the rest AdamW's two moments
//               (Jordan et al. 2024, kellerjordan.github.io/posts/muon; Liu et al., arXiv 2502.16982, sec. 2).
#pragma once

#include <boost/container/small_vector.hpp>
#include <cstdint>
#include <string_view>

#include "base/bytes.h"
#include "planner/catalog.h"
#include "planner/policy.h"

namespace shardplan {

struct StateTensor {
  std::string_view name;  // "first moment", "rows of the second moment", "scales of the first moment"
  DType dtype = DType::f32;
  std::uint64_t elements = 0;
  bool operator==(const StateTensor&) const = default;
};
using StateTensors = boost::container::small_vector<StateTensor, 5>;

// What of a tensor an optimizer looks at. A flat shard of a buffer is a shape of one dim that is no hidden matrix.
struct UpdatedTensor {
  Shape shape;
  bool hidden_matrix = false;
};
UpdatedTensor updated_tensor(const UnitRun& run, const Tensor& tensor);

struct OptimizerChoice {
  OptimizerKind kind = OptimizerKind::adamw;
  bool adafactor_first_moment = false;
  bool torchao = false;  // whose adam8bit: bitsandbytes' otherwise
  bool operator==(const OptimizerChoice&) const = default;
};

// `policy` is after what the model fixes (policy_for).
StateTensors state_tensors(const UpdatedTensor& tensor, const OptimizerChoice& optimizer, const Policy& policy);

// Their bytes together. Throws ArithmeticOverflow.
Bytes state_bytes(const UpdatedTensor& tensor, const OptimizerChoice& optimizer, const Policy& policy);

}  // namespace shardplan
