// The end of a step: norm, agreement, commit, update. See the invariants in zero_optimizer.h.
#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <functional>
#include <utility>

#include "base/error.h"
#include "shard/zero_optimizer.h"

namespace shardplan {
namespace {

// What each rank says before the commit: its shard's sums of squares. 64 bytes, as the plan's control buffer has it.
using Record = std::array<double, 8>;
static_assert(sizeof(Record) == kControlRecord.count() && kMostGroups + 1 <= 8);

double clip_factor(double norm, double limit) {
  return limit > 0 ? std::min(1.0, limit / (norm + 1e-6)) : 1.0;  // torch.nn.utils.clip_grad_norm_
}

}  // namespace

StepReport ZeroOptimizer::step() {
  if (commit_) return roll_forward();
  SHARDPLAN_CHECK(last_done_ && !program_, "step() before the last micro-batch has ended");
  try {
    if (file_) file_->check();
    if (passing_gradients_) {
      // What the norm is of is what the file gives back: a gradient that it lost is found before the commit.
      passing_gradients_->settle();
      passing_gradients_->forget();
    }
    sum_norms();
    agree();
  } catch (...) {
    forget_step();
    throw;
  }
  return roll_forward();
}

// Sums of squares over this rank's shard: each (unit, flat buffer) in element order, added up over units in order.
void ZeroOptimizer::sum_norms() {
  const auto timer = meter_.update();
  partials_ = {};
  events_.join();
  ProgramCursor cursor(plan_.programs[static_cast<std::size_t>(ProgramKind::update)]);
  for (; cursor.operation().kind != OperationKind::agree; cursor.advance()) {
    const std::uint64_t unit = cursor.operation().unit;
    if (cursor.operation().kind == OperationKind::fetch) {
      fetch_gradient(cursor.operation(), cursor);
      continue;
    }
    const std::size_t run = run_index_of_unit(plan_.layout, unit);
    for (std::size_t b = 0; b < plan_.buffers[run].size(); ++b) {
      if (!plan_.buffers[run][b].trainable) continue;
      const BufferLayout& layout = plan_.layout.runs[run].unit.buffers[b];
      const DType dtype = plan_.buffers[run][b].policy.gradient;
      const std::byte* gradient = memory_.data(reducer_.own_gradient(unit, b));
      partials_[0] += kernels().sum_of_squares(events_.compute(), {dtype, gradient, layout.shard_elements});
      if (options_.groups.size() == 1) continue;
      const Range own = shard_range(layout, own_shard());
      for (const TensorPlace& tensor : index_.tensors(unit)) {
        if (tensor.tied || tensor.buffer != b) continue;
        const Range held = intersect(tensor.range, own);
        if (held.empty()) continue;
        const std::byte* first = gradient + bytes_for(dtype, held.begin - own.begin).count();
        partials_[1 + tensor.group] += kernels().sum_of_squares(events_.compute(), {dtype, first, held.size()});
      }
    }
    if (passing_gradients_ && passing_gradients_->has(unit)) passing_gradients_->used(unit, events_.compute());
  }
  if (options_.groups.size() == 1) partials_[1] = partials_[0];
}

// One collective over all ranks; what follows from it is the same everywhere.
void ZeroOptimizer::agree() {
  const auto timer = meter_.communication();
  Record mine{};
  std::copy(partials_.begin(), partials_.end(), mine.begin());
  bool finite = true;
  NormSums norms{};
  const auto take = [&](int rank, std::span<const std::byte> bytes) {
    Record record;
    std::memcpy(record.data(), bytes.data(), sizeof record);
    finite = finite && std::isfinite(record[0]);
    if (static_cast<std::uint64_t>(rank) >= plan_.layout.shards) return;  // the other replicas' are the same
    for (std::size_t i = 0; i < norms.size(); ++i) norms[i] += record[i];
  };
  const std::span<std::byte> scratch(memory_.data(memory_.control()), plan_.setup.world_size * sizeof(Record));
  communicators_.world->visit_records(std::as_bytes(std::span(mine)), scratch, std::ref(take));
  for (double& norm : norms) norm = std::sqrt(norm) / scaler_.scale();
  commit(norms, finite);
}

// The commit point. Nothing here can fail: it fixes what the rest of the step does.
void ZeroOptimizer::commit(const NormSums& norms, bool finite) {
  Commit commit;
  commit.report.skipped = !finite;
  commit.report.norm = norms[0];
  commit.report.loss_scale = scaler_.scale();
  for (std::size_t i = 0; i < options_.groups.size(); ++i) {
    commit.groups[i] = options_.groups[i].values;
    commit.report.group_norms[i] = norms[i + 1];
    const double measured = options_.clip == ClipNorm::global ? norms[0] : norms[i + 1];
    const double clip = clip_factor(measured, options_.clip_norm);
    commit.report.clip_factor = std::min(commit.report.clip_factor, clip);
    commit.gradient_factors[i] = static_cast<float>(clip / scaler_.scale());
  }
  commit.next = ProgramCursor(plan_.programs[static_cast<std::size_t>(ProgramKind::update)]);
  while (commit.next.operation().kind != OperationKind::agree) commit.next.advance();
  commit.next.advance();
  scaler_.update(finite);
  if (finite) ++steps_applied_;
  commit.report.step = steps_applied_;
  commit.report.next_loss_scale = scaler_.scale();
  micro_batches_ = 0;
  last_done_ = false;
  commit_ = commit;
}

StepReport ZeroOptimizer::roll_forward() {
  Commit& commit = *commit_;
  if (states_) states_->retry();
  if (passing_parameters_) passing_parameters_->retry();
  while (!commit.report.skipped && !commit.next.done()) {
    const Operation operation = commit.next.operation();
    events_.before(operation);
    if (operation.kind == OperationKind::fetch) {
      const auto timer = meter_.update();
      fetch_for_update(operation, commit.next);
    } else if (operation.kind == OperationKind::evict) {
      const auto timer = meter_.update();
      evict(operation, true);
    } else if (operation.kind == OperationKind::update) {
      const auto timer = meter_.update();
      if (states_ && states_->has(operation.unit)) {
        update_blocks(operation.unit);
      } else {
        update(operation.unit);
      }
      if (passing_gradients_ && passing_gradients_->has(operation.unit)) {
        passing_gradients_->used(operation.unit, events_.compute());
      }
    } else {
      const auto timer = meter_.communication();
      gather(operation, commit.done_in_unit);
      meter_.add_sent(operation.sent);
    }
    events_.after(operation);
    commit.next.advance();
    commit.done_in_unit = 0;
  }
  {
    const auto timer = meter_.update();
    if (states_) states_->settle();
    if (passing_parameters_) passing_parameters_->settle();
  }
  StepReport report = commit.report;
  commit_.reset();
  report.sent = meter_.sent();
  report.communication_seconds = meter_.communication_seconds();
  report.update_seconds = meter_.update_seconds();
  meter_.reset();
  if (options_.on_step) options_.on_step(report);
  return report;
}

// Tensor by tensor, over what this rank holds of the optimizer states; goes on after the last one that was done.
void ZeroOptimizer::update(std::uint64_t unit) {
  Commit& commit = *commit_;
  const std::span<const TensorPlace> tensors = index_.tensors(unit);
  for (; commit.done_in_unit < tensors.size(); ++commit.done_in_unit) {
    const TensorPlace& tensor = tensors[commit.done_in_unit];
    const std::size_t run = run_index_of_unit(plan_.layout, unit);
    if (tensor.tied || !plan_.buffers[run][tensor.buffer].trainable) continue;
    const BufferLayout& layout = plan_.layout.runs[run].unit.buffers[tensor.buffer];
    const Range whole{0, layout.padded_elements};
    const Range own = shard_range(layout, own_shard());
    const Range held = intersect(tensor.range, optimizer_states_sharded(plan_) ? own : whole);
    if (!held.empty()) update_tensor(unit, tensor, held, nullptr);
  }
}

// Block by block, and in each the tensors that have elements there. What is done counts tensors, and a block once it is put.
void ZeroOptimizer::update_blocks(std::uint64_t unit) {
  Commit& commit = *commit_;
  const std::size_t run = run_index_of_unit(plan_.layout, unit);
  const std::span<const TensorPlace> tensors = index_.tensors(unit);
  std::size_t piece = 0;
  for (std::size_t b = 0; b < plan_.buffers[run].size(); ++b) {
    if (!plan_.buffers[run][b].trainable) continue;
    const BufferLayout& layout = plan_.layout.runs[run].unit.buffers[b];
    const std::uint64_t origin = optimizer_states_sharded(plan_) ? shard_range(layout, own_shard()).begin : 0;
    const std::uint64_t elements = state_elements(plan_, unit, b);
    const std::uint64_t blocks = states_->blocks_of(unit, b);
    for (std::uint64_t k = 0; k < std::max<std::uint64_t>(blocks, 1); ++k) {
      const BlockPlace block{unit, b, k};
      const Range part = blocks == 0 ? Range{0, elements} : block_range(plan_, elements, k);
      const Range covered{origin + part.begin, origin + part.end};
      const auto held_of = [&](const TensorPlace& tensor) {
        return tensor.tied || tensor.buffer != b ? Range{} : intersect(tensor.range, covered);
      };
      const auto pieces = static_cast<std::size_t>(std::count_if(
          tensors.begin(), tensors.end(), [&](const TensorPlace& tensor) { return !held_of(tensor).empty(); }));
      if (commit.done_in_unit > piece + pieces) {  // put already
        piece += pieces + 1;
        continue;
      }
      if (blocks > 0) states_->take(block, commit.report.step);
      for (const TensorPlace& tensor : tensors) {
        const Range held = held_of(tensor);
        if (held.empty() || piece++ < commit.done_in_unit) continue;
        update_tensor(unit, tensor, held, blocks == 0 ? nullptr : &block);
        ++commit.done_in_unit;
      }
      if (blocks > 0) {
        events_.compute().synchronize();
        states_->put(block, commit.report.step);
      }
      commit.done_in_unit = ++piece;
    }
  }
}

void ZeroOptimizer::update_tensor(std::uint64_t unit, const TensorPlace& tensor, Range held, const BlockPlace* block) {
  const std::size_t run = run_index_of_unit(plan_.layout, unit);
  const Range own = shard_range(plan_.layout.runs[run].unit.buffers[tensor.buffer], own_shard());
  // An array holds the whole buffer or this rank's shard; `held` begins so many elements into it.
  const auto elements = [&](BufferRole role, DType dtype, bool sharded) {
    std::byte* first = memory_.data(memory_.resident(role, unit, tensor.buffer));
    return Elements(dtype, first + bytes_for(dtype, held.begin - (sharded ? own.begin : 0)).count(), held.size());
  };
  const auto state = [&](BufferRole role, DType dtype) {
    const auto place = resident_place(plan_, role, unit, tensor.buffer);
    if (!place) return Elements{};
    const bool sharded = optimizer_states_sharded(plan_);
    if (block == nullptr) return elements(role, dtype, sharded);
    const std::uint64_t first = (sharded ? own.begin : 0) + block->block * plan_.blocks.block_elements;
    return Elements(dtype, states_->taken(role, *block) + bytes_for(dtype, held.begin - first).count(), held.size());
  };
  const auto floats = [](const Elements& array) {
    return std::span<float>(reinterpret_cast<float*>(array.data), array.elements);
  };
  const Policy& policy = plan_.buffers[run][tensor.buffer].policy;
  const Hyperparameters& group = commit_->groups[tensor.group];
  kernels().update(events_.compute(),
                   {.kind = plan_.setup.optimizer,
                    .lr = group.learning_rate,
                    .beta1 = group.beta1,
                    .beta2 = group.beta2,
                    .momentum = group.beta1,
                    .eps = group.eps,
                    .weight_decay = group.weight_decay,
                    .step = commit_->report.step,
                    .gradient_factor = commit_->gradient_factors[tensor.group],
                    .ema_decay = options_.ema_decay},
                   {.parameter = elements(BufferRole::parameter, policy.parameter, parameters_sharded(plan_)),
                    .master = floats(state(BufferRole::master, DType::f32)),
                    .master_rest = {},
                    .gradient = elements(BufferRole::gradient, policy.gradient, gradients_sharded(plan_)),
                    .first_moment = state(BufferRole::first_moment, policy.first_moment),
                    .second_moment = state(BufferRole::second_moment, policy.second_moment),
                    .ema = floats(state(BufferRole::ema, DType::f32))});
}

}  // namespace shardplan
