#include "tests/support/reference_optimizer.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <functional>
#include <map>
#include <utility>

#include "base/glob.h"
#include "shard/kernels/optimizer_update.h"
#include "tests/support/reference_reduction.h"

namespace shardplan::test {

float ReferenceOptimizer::Values::at(std::uint64_t i) const {
  return load(dtype, bytes.data() + i * bits(dtype) / 8);
}

void ReferenceOptimizer::Values::set(std::uint64_t i, float value) {
  store(dtype, value, bytes.data() + i * bits(dtype) / 8);
}

namespace {

// Sum of squares in 32 lanes (shard/kernels/arrays.h): value(i) for i < count.
double lane_sum(std::uint64_t count, const std::function<float(std::uint64_t)>& value) {
  std::array<double, 32> lanes{};
  for (std::uint64_t i = 0; i < count; ++i) {
    const double exact = value(i);
    lanes[i % 32] += exact * exact;
  }
  for (std::size_t half = 16; half > 0; half /= 2) {
    for (std::size_t k = 0; k < half; ++k) lanes[k] += lanes[k + half];
  }
  return lanes[0];
}

}  // namespace

ReferenceOptimizer::ReferenceOptimizer(const Catalog& catalog, const Setup& setup, ZeroOptions options)
    : setup_(setup),
      options_(std::move(options)),
      layout_(make_layout(catalog, shard_count(setup), setup.replicate)),
      scaler_(options_.loss_scaling) {
  add_tensors(catalog);
  const OptimizerStates& states = states_of(setup.optimizer);
  for (std::size_t t = 0; t < tensors_.size(); ++t) {
    TensorState& tensor = tensors_[t];
    if (tensor.owner != t) continue;
    std::vector<float> values(tensor.elements);
    synthetic_values({tensor.name, t, 0}, values);
    tensor.parameter = Values(tensor.policy.parameter, tensor.elements);
    const bool has_master = tensor.trainable && tensor.policy.master;
    if (has_master) tensor.master = Values(*tensor.policy.master, tensor.elements);
    for (std::uint64_t i = 0; i < tensor.elements; ++i) {
      tensor.parameter.set(i, values[i]);
      if (has_master) tensor.master.set(i, values[i]);
    }
    if (!tensor.trainable) continue;
    tensor.accumulator = Values(tensor.policy.gradient_accumulator, tensor.elements);
    tensor.gradient = Values(tensor.policy.gradient, tensor.elements);
    if (states.first_moment) tensor.first_moment = Values(tensor.policy.first_moment, tensor.elements);
    if (states.second_moment) tensor.second_moment = Values(tensor.policy.second_moment, tensor.elements);
    if (setup.ema) tensor.ema = values;
  }
}

void ReferenceOptimizer::add_tensors(const Catalog& catalog) {
  std::map<std::string, std::size_t> by_name;
  std::uint64_t unit = 0;
  for (const UnitRun& run : catalog.runs) {
    for (std::uint64_t i = 0; i < run.count; ++i, ++unit) {
      first_of_unit_.push_back(tensors_.size());
      const std::vector<BufferLayout>& buffers = run_of_unit(layout_, unit).unit.buffers;
      for (std::size_t t = 0; t < run.tensors.size(); ++t) {
        const Tensor& tensor = run.tensors[t];
        TensorState& state = tensors_.emplace_back();
        state.name = tensor_name(run, i, tensor);
        state.unit = unit;
        by_name[state.name] = tensors_.size() - 1;
        state.owner = tensor.tied_to.empty() ? tensors_.size() - 1 : by_name.at(tensor.tied_to);
        state.elements = elements(tensor.shape);
        state.trainable = tensor.trainable;
        state.policy = policy_for(setup_.policy, tensor.dtype);
        while (!glob_matches(options_.groups[state.group].match, state.name)) ++state.group;
        for (std::size_t b = 0; b < buffers.size(); ++b) {
          for (const TensorSlot& slot : buffers[b].tensors) {
            if (slot.tensor == t) std::tie(state.buffer, state.range) = std::pair(b, slot.range);
          }
        }
      }
    }
  }
  first_of_unit_.push_back(tensors_.size());
}

// What one rank's client writes: units from the last to the first, each use of a tied tensor added in the wire dtype.
ReferenceOptimizer::Values ReferenceOptimizer::contribution(const Script& script, GradientPlace place,
                                                            std::size_t owner) const {
  const auto loss_scale = static_cast<float>(scaler_.scale());
  Values sum(tensors_[owner].policy.wire, tensors_[owner].elements);
  for (std::uint64_t unit = layout_.units; unit-- > 0;) {
    if (!adds_gradient(script, place.step, unit)) continue;
    for (std::size_t t = first_of_unit_[unit]; t < first_of_unit_[unit + 1]; ++t) {
      if (tensors_[t].owner != owner) continue;
      place.unit = unit;
      place.tensor = t - first_of_unit_[unit];
      for (std::uint64_t i = 0; i < tensors_[t].elements; ++i) {
        sum.set(i, sum.at(i) + synthetic_gradient(script, place, i, tensors_[t].elements) * loss_scale);
      }
    }
  }
  return sum;
}

// Cadence step: sums in the accumulator dtype; the last one in the wire dtype, ready to be reduced.
void ReferenceOptimizer::accumulate_locally(Contributions& sums, const Contributions& parts, bool first,
                                            bool last) const {
  for (std::size_t rank = 0; rank < parts.size(); ++rank) {
    for (std::size_t t = 0; t < tensors_.size(); ++t) {
      if (!tensors_[t].trainable || tensors_[t].owner != t) continue;
      const Policy& policy = tensors_[t].policy;
      const Values before = first ? Values() : sums[rank][t];
      sums[rank][t] = Values(last ? policy.wire : policy.gradient_accumulator, tensors_[t].elements);
      for (std::uint64_t i = 0; i < tensors_[t].elements; ++i) {
        const float part = parts[rank][t].at(i);
        sums[rank][t].set(i, first ? part : before.at(i) + part);
      }
    }
  }
}

void ReferenceOptimizer::reduce(const Contributions& contributions, bool first, bool last) {
  const auto scale = static_cast<float>(1.0 / static_cast<double>(setup_.world_size * setup_.accumulation));
  const auto group = static_cast<int>(resolved_reduction_group(setup_));
  std::vector<float> values(setup_.world_size);
  for (std::size_t t = 0; t < tensors_.size(); ++t) {
    TensorState& tensor = tensors_[t];
    if (!tensor.trainable || tensor.owner != t) continue;
    for (std::uint64_t i = 0; i < tensor.elements; ++i) {
      for (std::size_t rank = 0; rank < values.size(); ++rank) values[rank] = contributions[rank][t].at(i);
      const float reduced = reduce_in_tree_order(values, group, scale);
      if (first && last) {
        tensor.gradient.set(i, reduced);
        continue;
      }
      tensor.accumulator.set(i, first ? reduced : tensor.accumulator.at(i) + reduced);
      if (last) tensor.gradient.set(i, tensor.accumulator.at(i));
    }
  }
}

// Of a unit's flat buffer, the part that a shard owns; padding is zero.
double ReferenceOptimizer::partial_norm(std::uint64_t shard, std::uint64_t unit, std::size_t buffer) const {
  const BufferLayout& layout = run_of_unit(layout_, unit).unit.buffers[buffer];
  const Range own = shard_range(layout, shard);
  std::vector<float> flat(own.size(), 0.0F);
  for (std::size_t t = first_of_unit_[unit]; t < first_of_unit_[unit + 1]; ++t) {
    const TensorState& tensor = tensors_[t];
    if (tensor.owner != t || tensor.buffer != buffer) continue;
    const Range held = intersect(tensor.range, own);
    for (std::uint64_t i = held.begin; i < held.end; ++i) {
      flat[i - own.begin] = tensor.gradient.at(i - tensor.range.begin);
    }
  }
  return lane_sum(flat.size(), [&](std::uint64_t i) { return flat[i]; });
}

double ReferenceOptimizer::group_partial(std::uint64_t shard, const TensorState& tensor) const {
  const BufferLayout& layout = run_of_unit(layout_, tensor.unit).unit.buffers[tensor.buffer];
  const Range held = intersect(tensor.range, shard_range(layout, shard));
  if (held.empty()) return 0;
  return lane_sum(held.size(),
                  [&](std::uint64_t i) { return tensor.gradient.at(held.begin - tensor.range.begin + i); });
}

std::vector<double> ReferenceOptimizer::sums_of_squares() const {
  const std::size_t groups = options_.groups.size();
  std::vector<double> sums(groups + 1, 0.0);
  for (std::uint64_t shard = 0; shard < layout_.shards; ++shard) {
    std::vector<double> partials(groups + 1, 0.0);
    for (std::uint64_t unit = 0; unit < layout_.units; ++unit) {
      const std::vector<BufferLayout>& buffers = run_of_unit(layout_, unit).unit.buffers;
      for (std::size_t b = 0; b < buffers.size(); ++b) {
        if (!buffers[b].trainable) continue;
        partials[0] += partial_norm(shard, unit, b);
        for (std::size_t t = first_of_unit_[unit]; t < first_of_unit_[unit + 1]; ++t) {
          if (tensors_[t].owner != t || tensors_[t].buffer != b) continue;
          partials[1 + tensors_[t].group] += group_partial(shard, tensors_[t]);
        }
      }
    }
    // One group's norm is the global one: over whole buffers.
    if (groups == 1) partials[1] = partials[0];
    for (std::size_t i = 0; i < sums.size(); ++i) sums[i] += partials[i];
  }
  return sums;
}

StepReport ReferenceOptimizer::run_step(const Script& script, std::uint64_t step) {
  const bool adds_locally = setup_.accumulation > 1 && resolved_cadence(setup_) == Cadence::step;
  const std::uint64_t count = script.micro_batches[step];
  Contributions sums(setup_.world_size, std::vector<Values>(tensors_.size()));
  for (std::uint64_t micro_batch = 0; micro_batch < count; ++micro_batch) {
    Contributions parts = Contributions(setup_.world_size, std::vector<Values>(tensors_.size()));
    for (std::size_t rank = 0; rank < parts.size(); ++rank) {
      for (std::size_t t = 0; t < tensors_.size(); ++t) {
        if (!tensors_[t].trainable || tensors_[t].owner != t) continue;
        const GradientPlace place{.step = step, .micro_batch = micro_batch, .rank = static_cast<int>(rank)};
        parts[rank][t] = contribution(script, place, t);
      }
    }
    const bool first = micro_batch == 0;
    const bool last = micro_batch + 1 == count;
    if (!adds_locally) {
      reduce(parts, first, last);
    } else {
      accumulate_locally(sums, parts, first, last);
      if (last) reduce(sums, true, true);
    }
  }

  StepReport report;
  const std::vector<double> sums_of_groups = sums_of_squares();
  const double scale = scaler_.scale();
  const auto norm_of = [&](std::size_t i) { return std::sqrt(sums_of_groups[i]) / scale; };
  report.skipped = !std::isfinite(sums_of_groups[0]);
  report.norm = norm_of(0);
  report.loss_scale = scale;
  std::vector<float> factors;
  for (std::size_t g = 0; g < options_.groups.size(); ++g) {
    report.group_norms[g] = norm_of(g + 1);
    const double measured = options_.clip == ClipNorm::global ? report.norm : report.group_norms[g];
    const double clip = options_.clip_norm > 0 ? std::min(1.0, options_.clip_norm / (measured + 1e-6)) : 1.0;
    report.clip_factor = std::min(report.clip_factor, clip);
    factors.push_back(static_cast<float>(clip / scale));
  }
  scaler_.update(!report.skipped);
  report.next_loss_scale = scaler_.scale();
  if (!report.skipped) ++steps_applied_;
  report.step = steps_applied_;
  if (report.skipped) return report;
  for (std::size_t t = 0; t < tensors_.size(); ++t) {
    TensorState& tensor = tensors_[t];
    if (tensor.trainable && tensor.owner == t) update(tensor, steps_applied_, factors[tensor.group]);
  }
  return report;
}

void ReferenceOptimizer::update(TensorState& tensor, std::uint64_t step, float factor) {
  const Hyperparameters& values = options_.groups[tensor.group].values;
  const auto elements_of = [&](Values& array) {
    return array.bytes.empty() ? Elements{} : Elements(array.dtype, array.bytes.data(), tensor.elements);
  };
  optimizer_update({.kind = setup_.optimizer,
                    .lr = values.learning_rate,
                    .beta1 = values.beta1,
                    .beta2 = values.beta2,
                    .momentum = values.beta1,
                    .eps = values.eps,
                    .weight_decay = values.weight_decay,
                    .step = step,
                    .gradient_factor = factor,
                    .ema_decay = options_.ema_decay},
                   {.parameter = elements_of(tensor.parameter),
                    .master = std::span(reinterpret_cast<float*>(tensor.master.bytes.data()),
                                        tensor.master.bytes.size() / sizeof(float)),
                    .gradient = elements_of(tensor.gradient),
                    .first_moment = elements_of(tensor.first_moment),
                    .second_moment = elements_of(tensor.second_moment),
                    .ema = tensor.ema});
}

std::vector<std::vector<float>> ReferenceOptimizer::parameters() const {
  std::vector<std::vector<float>> result;
  for (std::size_t t = 0; t < tensors_.size(); ++t) {
    const TensorState& tensor = tensors_[t];
    if (tensor.owner != t) continue;
    const Values& values = tensor.master.bytes.empty() ? tensor.parameter : tensor.master;
    std::vector<float>& whole = result.emplace_back(tensor.elements);
    for (std::uint64_t i = 0; i < tensor.elements; ++i) whole[i] = values.at(i);
  }
  return result;
}

std::uint64_t ReferenceOptimizer::parameter_digest(ProgramKind kind) const {
  std::uint64_t seen = kEmptyDigest;
  const auto visit = [&](std::uint64_t unit) {
    for (std::size_t t = first_of_unit_[unit]; t < first_of_unit_[unit + 1]; ++t) {
      seen = digest(tensors_[tensors_[t].owner].parameter.bytes, seen);
    }
  };
  for (std::uint64_t unit = 0; unit < layout_.units; ++unit) visit(unit);
  if (kind == ProgramKind::evaluate) return seen;
  for (std::uint64_t unit = layout_.units; unit-- > 0;) {
    if (setup_.recompute == Recompute::full) visit(unit);
    visit(unit);
  }
  return seen;
}

}  // namespace shardplan::test
