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
  for (; cursor.operation().kind == OperationKind::norm; cursor.advance()) {
    const std::uint64_t unit = cursor.operation().unit;
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
  while (!commit.report.skipped && !commit.next.done()) {
    const Operation operation = commit.next.operation();
    events_.before(operation);
    if (operation.kind == OperationKind::update) {
      const auto timer = meter_.update();
      update(operation.unit);
    } else {
      const auto timer = meter_.communication();
      gather(operation, commit.done_in_unit);
      meter_.add_sent(operation.sent);
    }
    events_.after(operation);
    commit.next.advance();
    commit.done_in_unit = 0;
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
    if (held.empty()) continue;
    // An array holds the whole buffer or this rank's shard; `held` begins so many elements into it.
    const auto elements = [&](BufferRole role, DType dtype, bool sharded) {
      std::byte* first = memory_.data(memory_.resident(role, unit, tensor.buffer));
      return Elements(dtype, first + bytes_for(dtype, held.begin - (sharded ? own.begin : 0)).count(), held.size());
    };
    const auto optional_elements = [&](BufferRole role, DType dtype) {
      const bool planned = resident_range(plan_, role, unit, tensor.buffer).has_value();
      return planned ? elements(role, dtype, optimizer_states_sharded(plan_)) : Elements{};
    };
    const auto floats = [](const Elements& array) {
      return std::span<float>(reinterpret_cast<float*>(array.data), array.elements);
    };
    const Policy& policy = plan_.buffers[run][tensor.buffer].policy;
    const Hyperparameters& group = commit.groups[tensor.group];
    kernels().update(events_.compute(),
                     {.kind = plan_.setup.optimizer,
                      .lr = group.learning_rate,
                      .beta1 = group.beta1,
                      .beta2 = group.beta2,
                      .momentum = group.beta1,
                      .eps = group.eps,
                      .weight_decay = group.weight_decay,
                      .step = commit.report.step,
                      .gradient_factor = commit.gradient_factors[tensor.group],
                      .ema_decay = options_.ema_decay},
                     {.parameter = elements(BufferRole::parameter, policy.parameter, parameters_sharded(plan_)),
                      .master = floats(optional_elements(BufferRole::master, DType::f32)),
                      .master_rest = {},
                      .gradient = elements(BufferRole::gradient, policy.gradient, gradients_sharded(plan_)),
                      .first_moment = optional_elements(BufferRole::first_moment, policy.first_moment),
                      .second_moment = optional_elements(BufferRole::second_moment, policy.second_moment),
                      .ema = floats(optional_elements(BufferRole::ema, DType::f32))});
  }
}

}  // namespace shardplan
