#include "planner/cost/module_cost.h"

#include <algorithm>
#include <cmath>

#include "base/error.h"

namespace shardplan {
namespace {

// Rows of the tiles that products are cut into: what is begun is computed whole (NVIDIA, Matrix Multiplication
// Background User's Guide, "Tile Quantization").
constexpr double kTileRows = 128;
// Flops per channel, state and token of a selective scan: discretise, update, read out (Gu and Dao 2023, sec. 3).
constexpr double kScanFlops = 9;

double as_double(std::uint64_t count) {
  return static_cast<double>(count);
}

DType wide(DType compute) {
  return bits(compute) == 8 ? DType::bf16 : compute;
}

// The matrix that a token meets; null for modules without one.
const Tensor* matrix_of(const Module& module) {
  const bool product =
      module.kind == ModuleKind::linear || module.kind == ModuleKind::router || module.kind == ModuleKind::convolution;
  return product && !module.tensors.empty() ? &module.tensors[0] : nullptr;
}

// Of the tokens that pass a module, those that one expert of it computes on, over all the ranks that share the experts out.
double rows_of(const Module& module, double tokens, const Work& work) {
  if (!module.routing) return tokens;
  const Routing& routing = *module.routing;
  return load_of_rank(work.expert_ranks, routing.experts, routing.chosen, work.expert_load) * tokens *
         as_double(work.expert_ranks) * as_double(routing.chosen) / as_double(routing.experts);
}

}  // namespace

// What passes a module. Of attention: keys and values, and with how many of them each token's scores are computed.
struct ModuleCost::Flow {
  double tokens = 0;
  double keys = 0;
  double scores = 0;
};

// `copies` equal products of `rows` rows.
struct ModuleCost::Product {
  double rows;
  double input;
  double output;
  double weights;
  double copies = 1;
  double kernels = 1;
  bool wide = false;
  bool grouped = false;
};

ModuleCost::ModuleCost(const Architecture& architecture, const Work& work, const Cluster& cluster)
    : architecture_(architecture),
      work_(work),
      efficiency_(cluster.efficiency),
      width_(as_double(bits(wide(work.compute))) / 8),
      gradient_bytes_(as_double(bits(work.gradient)) / 8 * (work.accumulates ? 2 : 1)),
      memory_rate_(memory_rate(cluster)),
      product_rate_(matmul_rate(cluster, work.compute)),
      wide_rate_(matmul_rate(cluster, wide(work.compute))),
      vector_rate_(as_double(cluster.gpu.fp32_flops.value_or(0))) {
  SHARDPLAN_CHECK(work.expert_ranks > 0, "someone has the experts");
}

ModuleCost::Flow ModuleCost::flow_of(const ModuleRows& rows) const {
  Flow flow;
  flow.tokens = rows.rows > 0 ? as_double(rows.rows) * work_.samples : as_double(work_.tokens);
  flow.keys = rows.keys > 0 ? as_double(rows.keys) * work_.samples : as_double(work_.tokens);
  flow.scores = as_double(rows.keys > 0 ? rows.keys : work_.sequence);
  if (rows.keys > 0 ? rows.causal : work_.causal) flow.scores /= 2;
  return flow;
}

double ModuleCost::kernel(double flops, double rate, double bytes, double kernels) const {
  if (flops <= 0 && bytes <= 0) return 0;
  const double arithmetic = flops > 0 ? flops / rate : 0;
  return std::max(arithmetic, bytes / memory_rate_) + kernels * efficiency_.kernel_seconds;
}

PassSeconds ModuleCost::passes(double elements, double forward, double backward, double kernels) const {
  return {kernel(0, 0, elements * forward * width_, kernels), kernel(0, 0, elements * backward * width_, kernels)};
}

double ModuleCost::plain(double weights) const {
  return kernel(2 * weights * as_double(work_.tokens), product_rate_, weights * width_);
}

PassSeconds ModuleCost::product(const Product& p, bool trained) const {
  if (p.rows <= 0) return {};
  const double rows = std::ceil(p.rows / kTileRows) * kTileRows;
  const double flops = 2 * rows * p.weights * p.copies;
  const bool narrow = !p.wide && bits(work_.compute) == 8;
  const double operand = narrow ? 1 : width_;
  const double rate = (p.wide ? wide_rate_ : product_rate_) * (p.grouped ? efficiency_.grouped : 1);
  const double activations = p.copies * p.rows * (p.input + p.output);
  const double weights = p.copies * p.weights;
  PassSeconds seconds;
  seconds.forward = kernel(flops, rate, activations * width_ + weights * operand, p.kernels);
  seconds.backward = seconds.forward;
  if (trained) {
    seconds.backward += kernel(flops, rate, activations * operand + weights * gradient_bytes_, p.kernels);
  }
  if (narrow) {  // operands are read in 16 bit and written in 8, once as they are and once transposed
    seconds.forward += kernel(0, 0, p.copies * p.rows * p.input * (width_ + 2), p.kernels);
    seconds.backward += kernel(0, 0, p.copies * p.rows * p.output * (width_ + 2), p.kernels);
  }
  return seconds;
}

PassSeconds ModuleCost::linear(const Module& module, double rows, bool trained) const {
  const double weights = as_double(elements(matrix_of(module)->shape));
  Product p{rows, as_double(module.input), as_double(module.output), weights};
  p.wide = is_vocabulary_head(module) || module.kind == ModuleKind::router;
  if (module.routing) {
    // One expert of many, each a module; or all of them in one. Either way one kernel computes them together.
    const bool fused = module.routing->fused;
    const double experts = as_double(module.routing->experts);
    const double modules = fused ? experts : 1;
    p.input /= modules;
    p.output /= modules;
    p.weights /= modules;
    p.copies = modules / as_double(work_.expert_ranks);
    p.kernels = fused ? 1 : 1 / experts;
    p.grouped = true;
  }
  return product(p, trained);
}

PassSeconds ModuleCost::embedding(const Module& module, double tokens, bool trained) const {
  const double row = as_double(module.output);
  PassSeconds seconds;
  seconds.forward = kernel(0, 0, 2 * tokens * row * width_);
  if (trained) {
    // The gradient of the whole table, mostly zeros.
    const double table = as_double(module.input) * row * gradient_bytes_;
    seconds.backward = kernel(0, 0, table + tokens * row * width_);
  }
  return seconds;
}

PassSeconds ModuleCost::attention(const AttentionSizes& sizes, const Flow& flow) const {
  const double value = as_double(sizes.value_size > 0 ? sizes.value_size : sizes.head_size);
  const double key = as_double(sizes.head_size);
  const double heads = as_double(sizes.heads);
  const double kv_heads = as_double(sizes.kv_heads);
  const double pairs = 2 * flow.tokens * flow.scores * heads;
  const double elements = (flow.tokens * heads + flow.keys * kv_heads) * (key + value);
  PassSeconds seconds;
  seconds.forward = kernel(pairs * (key + value), wide_rate_ * efficiency_.attention_forward, elements * width_);
  // Scores again; gradients of scores, queries, keys and values (Dao 2023, arXiv 2307.08691, sec. 2.3.2 and 4.1).
  seconds.backward =
      kernel(pairs * (3 * key + 2 * value), wide_rate_ * efficiency_.attention_backward, 2 * elements * width_);
  if (sizes.rotary) seconds += passes(key * (flow.tokens * heads + flow.keys * kv_heads), 2, 2);
  return seconds;
}

PassSeconds ModuleCost::scan(const Module& module, double tokens) const {
  const double channels = as_double(module.output);
  const double flops = vector_rate_ > 0 ? kScanFlops * tokens * as_double(module.input) : 0;
  PassSeconds seconds;
  seconds.forward = kernel(flops, vector_rate_, 4 * tokens * channels * width_);
  seconds.backward = kernel(2 * flops, vector_rate_, 8 * tokens * channels * width_);
  return seconds;
}

bool ModuleCost::is_vocabulary_head(const Module& module) const {
  return module.kind == ModuleKind::linear && architecture_.vocabulary > 0 &&
         module.output == architecture_.vocabulary && module.input == architecture_.hidden;
}

// Logits are read and written in fp32 for softmax, and their gradient takes their place.
PassSeconds ModuleCost::loss(double tokens) const {
  const double logits = tokens * as_double(architecture_.vocabulary);
  return {kernel(0, 0, logits * (width_ + 4)), kernel(0, 0, logits * (4 + width_))};
}

PassSeconds ModuleCost::seconds(const Module& module, const ModuleRows& known, bool trained) const {
  const Flow flow = flow_of(known);
  const double of_all_ranks = rows_of(module, flow.tokens, work_);
  if (matrix_of(module) != nullptr) {
    PassSeconds seconds = linear(module, of_all_ranks, trained);
    if (is_vocabulary_head(module)) seconds += loss(flow.tokens);
    return seconds;
  }
  // Of all ranks' tokens for an expert, the part that this rank computes.
  const double rows = of_all_ranks / (module.routing ? as_double(work_.expert_ranks) : 1);
  const double kernels = module.routing ? 1 / as_double(module.routing->experts) : 1;
  const double output = rows * as_double(module.output);
  switch (module.kind) {
    case ModuleKind::embedding:
      return embedding(module, flow.tokens, trained);
    case ModuleKind::layer_norm:
    case ModuleKind::rms_norm:
    case ModuleKind::group_norm:
    case ModuleKind::activation:
      return passes(output, 2, 3, kernels);  // x -> y; x, dy -> dx
    case ModuleKind::multiply:
      return passes(output, 3, 5, kernels);  // a, b -> y; a, b, dy -> da, db
    case ModuleKind::attention:
      return attention(*module.attention, flow);
    case ModuleKind::scan:
      return scan(module, flow.tokens);
    case ModuleKind::linear:
    case ModuleKind::router:
    case ModuleKind::convolution:
    case ModuleKind::dropout:
    case ModuleKind::residual:
    case ModuleKind::parameter:
      return {};  // without a matrix: added or looked up as a part of its neighbours
  }
  SHARDPLAN_CHECK(false, "an unknown kind of module");
  return {};
}

PassSeconds ModuleCost::between_modules(const Modules& modules, const std::vector<ModuleRows>& rows,
                                        bool is_block) const {
  PassSeconds seconds;
  if (!is_block) return seconds;
  double sums = 0;
  double summed = 0;  // tokens of all sums
  double chosen = 0;
  for (std::size_t i = 0; i < modules.size(); ++i) {
    const Module& module = modules[i];
    const double tokens = flow_of(i < rows.size() ? rows[i] : ModuleRows{}).tokens;
    const bool norm = module.kind == ModuleKind::layer_norm || module.kind == ModuleKind::rms_norm;
    if (norm && module.output == architecture_.hidden) {
      ++sums;
      summed += tokens;
    }
    if (module.routing) {
      chosen = as_double(module.routing->experts) * rows_of(module, tokens, work_) / as_double(work_.expert_ranks);
    }
  }
  const double features = as_double(architecture_.hidden);
  if (sums > 0) seconds += passes(summed * features, 3, 3, sums);
  // To the experts and back: each a copy, in either direction.
  if (chosen > 0) seconds += passes(chosen * features, 4, 4, 2);
  return seconds;
}

}  // namespace shardplan
