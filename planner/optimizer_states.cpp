#include "planner/optimizer_states.h"

#include "base/checked.h"
#include "planner/lora.h"

namespace shardplan {
namespace {

constexpr std::uint64_t kLeast8BitElements = 4096;
constexpr std::uint64_t kScaleBlock = 256;

void add_adafactor(StateTensors& states, const Shape& shape, bool first_moment, const Policy& policy) {
  const std::uint64_t whole = elements(shape);
  if (first_moment) states.push_back({"first moment", policy.first_moment, whole});
  if (shape.size() < 2 || whole == 0) {
    states.push_back({"second moment", policy.second_moment, whole});
    return;
  }
  states.push_back({"rows of the second moment", policy.second_moment, whole / shape.back()});
  states.push_back({"columns of the second moment", policy.second_moment, whole / shape[shape.size() - 2]});
}

void add_adam8bit(StateTensors& states, std::uint64_t count) {
  if (count < kLeast8BitElements) {
    states.push_back({"first moment", DType::f32, count});
    states.push_back({"second moment", DType::f32, count});
    return;
  }
  const std::uint64_t blocks = divide_up(count, kScaleBlock);
  states.push_back({"first moment", DType::u8, count});
  states.push_back({"second moment", DType::u8, count});
  states.push_back({"scales of the first moment", DType::f32, blocks});
  states.push_back({"scales of the second moment", DType::f32, blocks});
}

void add_torchao_adam8bit(StateTensors& states, std::uint64_t count, DType updated) {
  constexpr std::uint64_t kCodes = 256;
  if (count < kLeast8BitElements || count % kScaleBlock != 0) {
    states.push_back({"first moment", updated, count});
    states.push_back({"second moment", updated, count});
    return;
  }
  add_adam8bit(states, count);
  states.push_back({"codes of both moments", DType::f32, 2 * kCodes});
}

}  // namespace

UpdatedTensor updated_tensor(const UnitRun& run, const Tensor& tensor) {
  return {.shape = tensor.shape,
          .hidden_matrix = run.numbered && tensor.shape.size() >= 2 && !names_embedding(tensor.name)};
}

StateTensors state_tensors(const UpdatedTensor& tensor, const OptimizerChoice& optimizer, const Policy& policy) {
  StateTensors states;
  const std::uint64_t count = elements(tensor.shape);
  switch (optimizer.kind) {
    case OptimizerKind::adafactor:
      add_adafactor(states, tensor.shape, optimizer.adafactor_first_moment, policy);
      break;
    case OptimizerKind::adam8bit:
      if (optimizer.torchao) {
        add_torchao_adam8bit(states, count, policy.master.value_or(policy.parameter));
      } else {
        add_adam8bit(states, count);
      }
      break;
    case OptimizerKind::muon:
      states.push_back({"first moment", policy.first_moment, count});
      if (!tensor.hidden_matrix) states.push_back({"second moment", policy.second_moment, count});
      break;
    case OptimizerKind::adamw:
    case OptimizerKind::adam:
    case OptimizerKind::sgd:
    case OptimizerKind::sgd_momentum:
    case OptimizerKind::lion: {
      const OptimizerStates& kept = states_of(optimizer.kind);
      if (kept.first_moment) states.push_back({"first moment", policy.first_moment, count});
      if (kept.second_moment) states.push_back({"second moment", policy.second_moment, count});
      break;
    }
  }
  return states;
}

Bytes state_bytes(const UpdatedTensor& tensor, const OptimizerChoice& optimizer, const Policy& policy) {
  Bytes bytes;
  for (const StateTensor& state : state_tensors(tensor, optimizer, policy)) {
    bytes += bytes_for(state.dtype, state.elements);
  }
  return bytes;
}

}  // namespace shardplan
