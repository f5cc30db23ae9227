#include "planner/policy.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <array>
#include <vector>

#include "base/error.h"

namespace shardplan {
namespace {

constexpr DType kF32 = DType::f32;
constexpr DType kF16 = DType::f16;
constexpr DType kBf16 = DType::bf16;

// name, compute, parameter, gradient, accumulator, master, first moment, second moment, wire
// The comment is bytes per parameter with AdamW: parameter + gradient + optimizer states.
const std::array<Policy, 9> kPolicies{{
    {"fp32", kF32, kF32, kF32, kF32, std::nullopt, kF32, kF32, kF32},                // 4 + 4 + 8
    {"fp16-mixed", kF16, kF16, kF16, kF32, kF32, kF32, kF32, kF16},                  // 2 + 2 + 12: ZeRO, sec. 3.1
    {"bf16-mixed", kBf16, kBf16, kBf16, kF32, kF32, kF32, kF32, kBf16},              // 2 + 2 + 12
    {"bf16-mixed-fp32grad", kBf16, kBf16, kF32, kF32, kF32, kF32, kF32, kF32},       // 2 + 4 + 12: Megatron-LM
    {"amp-fp16", kF16, kF32, kF32, kF32, std::nullopt, kF32, kF32, kF32},            // 4 + 4 + 8: torch.autocast
    {"amp-bf16", kBf16, kF32, kF32, kF32, std::nullopt, kF32, kF32, kF32},           // 4 + 4 + 8
    {"bf16", kBf16, kBf16, kBf16, kF32, std::nullopt, kBf16, kBf16, kBf16},          // 2 + 2 + 4: pure bf16
    {"bf16-fp32state", kBf16, kBf16, kBf16, kF32, std::nullopt, kF32, kF32, kBf16},  // 2 + 2 + 8
    {"fp8-mixed", DType::f8_e4m3, kBf16, kF32, kF32, kF32, kF32, kF32, kF32},        // 2 + 4 + 12: Transformer Engine
}};

constexpr std::array<OptimizerStates, 8> kOptimizers{{
    {OptimizerKind::adamw, "adamw", true, true, "Loshchilov and Hutter, arXiv 1711.05101, algorithm 2: m and v"},
    {OptimizerKind::adam, "adam", true, true, "Kingma and Ba, arXiv 1412.6980, algorithm 1: m and v"},
    {OptimizerKind::sgd, "sgd", false, false, "no state"},
    {OptimizerKind::sgd_momentum, "sgd-momentum", true, false, "torch.optim.SGD: momentum_buffer"},
    {OptimizerKind::lion, "lion", true, false, "Chen et al., arXiv 2302.06675, algorithm 2: m"},
    {OptimizerKind::adafactor, "adafactor", false, false,
     "Shazeer and Stern, arXiv 1804.04235, algorithm 4: sums of rows and of columns of v", true},
    {OptimizerKind::adam8bit, "adam8bit", false, false,
     "Dettmers et al., arXiv 2110.02861, sec. 2: m and v in 8 bits, a scale for each block", true},
    {OptimizerKind::muon, "muon", false, false,
     "Liu et al., arXiv 2502.16982, sec. 2: m of hidden matrices, else m and v", true},
}};

template <typename Table>
[[noreturn]] void unknown(const char* flag, const char* what, std::string_view name, const Table& table) {
  std::vector<std::string_view> known;
  for (const auto& row : table) known.emplace_back(row.name);
  throw ConfigError(flag, "", fmt::format("'{}' is not {}: expected one of {}", name, what, fmt::join(known, ", ")));
}

}  // namespace

Policy policy_named(std::string_view name) {
  for (const Policy& policy : kPolicies) {
    if (policy.name == name) return policy;
  }
  unknown("--precision", "a known precision", name, kPolicies);
}

std::span<const Policy> all_policies() {
  return kPolicies;
}

Policy policy_for(const Policy& policy, std::optional<DType> fixed_dtype) {
  if (!fixed_dtype || *fixed_dtype == policy.parameter) return policy;
  Policy result = policy;
  result.parameter = *fixed_dtype;
  result.compute = *fixed_dtype;
  result.gradient = *fixed_dtype;
  result.wire = *fixed_dtype;
  if (result.master && bits(*fixed_dtype) >= bits(*result.master)) result.master.reset();
  for (DType* moment : {&result.first_moment, &result.second_moment}) {
    const bool narrow = !policy.master && *moment == policy.parameter && bits(*moment) < 32;
    if (narrow && bits(*fixed_dtype) >= 32) *moment = DType::f32;
  }
  return result;
}

const OptimizerStates& optimizer_named(std::string_view name) {
  for (const OptimizerStates& optimizer : kOptimizers) {
    if (optimizer.name == name) return optimizer;
  }
  unknown("--optimizer", "a known optimizer", name, kOptimizers);
}

const OptimizerStates& states_of(OptimizerKind kind) {
  return kOptimizers[static_cast<std::size_t>(kind)];
}

std::span<const OptimizerStates> all_optimizers() {
  return kOptimizers;
}

}  // namespace shardplan
