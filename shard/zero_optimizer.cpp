#include "shard/zero_optimizer.h"

#include <fmt/format.h>
#include <fmt/ranges.h>
#define XXH_INLINE_ALL
#include <xxhash.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <functional>
#include <memory>
#include <utility>

#include "base/error.h"
#include "planner/arena_plan.h"
#include "planner/passage.h"
#include "shard/host_buffer.h"

namespace shardplan {
namespace {

constexpr std::size_t kInitialChunk = 1 << 16;  // elements asked of the client at once

// What the kernels can do: fp32, bf16 and fp16, with masters in fp32.
void check_dtypes(const StepPlan& plan) {
  const auto computable = [](DType dtype) {
    return dtype == DType::f32 || dtype == DType::bf16 || dtype == DType::f16;
  };
  for (const auto& run : plan.buffers) {
    for (const BufferPlan& buffer : run) {
      const Policy& policy = buffer.policy;
      const bool known = computable(policy.parameter) && computable(policy.gradient) && computable(policy.wire) &&
                         computable(policy.gradient_accumulator) && computable(policy.first_moment) &&
                         computable(policy.second_moment) && policy.master.value_or(DType::f32) == DType::f32;
      if (known || !buffer.trainable) continue;
      throw ConfigError("plan", policy.name,
                        "can be planned, not trained: expected fp32, bf16 or fp16, masters in fp32");
    }
  }
}

void compare_between_ranks(Communicator& world, const char* what, const std::string& mine) {
  const std::size_t bytes = mine.size() * static_cast<std::size_t>(world.size());
  const auto scratch = std::make_unique_for_overwrite<std::byte[]>(bytes);
  std::string difference;
  const auto compare = [&](int rank, std::span<const std::byte> record) {
    const std::string_view other(reinterpret_cast<const char*>(record.data()), record.size());
    if (other == mine || !difference.empty()) return;
    difference =
        fmt::format("rank {} has {}, rank {} has {}: expected the same on every rank", world.rank(), mine, rank, other);
  };
  world.visit_records(std::as_bytes(std::span(mine)), {scratch.get(), bytes}, std::ref(compare));
  if (!difference.empty()) throw ConfigError(what, "", difference);
}

// What must be equal on every rank, for its bits decide the result's: all options but the functions.
std::string digest_of(const ZeroOptions& options) {
  std::string text = fmt::format("{} {} {} {}", options.clip_norm, static_cast<int>(options.clip), options.ema_decay,
                                 options.groups.size());
  for (const ParameterGroup& group : options.groups) {
    const Hyperparameters& h = group.values;
    text += fmt::format("|{} {} {} {} {} {}", group.match, h.learning_rate, h.beta1, h.beta2, h.eps, h.weight_decay);
  }
  text += fmt::format("|{}", fmt::join(options.group_of_tensor, " "));
  const LossScaling& scaling = options.loss_scaling;
  text += fmt::format("|{} {} {} {} {} {} {}", static_cast<int>(scaling.rule), scaling.initial, scaling.growth,
                      scaling.backoff, scaling.window, scaling.hysteresis, scaling.minimum);
  const XXH128_hash_t hash = XXH3_128bits(text.data(), text.size());
  return fmt::format("{:016x}{:016x}", hash.high64, hash.low64);
}

// What the communicators can do of the plan's way of reducing. One that sums in the tree's order, and cannot read peers'
// contributions where they lie, needs the staging that plans of `staged` and `canonical` have; one that sums in the
// vendor's order keeps no promise but that of `fast`.
void check_reduction(const Communicator& world, const Setup& setup) {
  if (world.size() == 1) return;
  if (!world.keeps_tree() && setup.reduction == Reduction::canonical) {
    throw ConfigError("--reduction", "", "canonical: expected fast, for these ranks' sums are in the vendor's order");
  }
  if (world.reads_peers()) return;
  const Reduction possible = world.keeps_tree() ? Reduction::canonical : Reduction::fast;
  if (setup.transport == Transport::staged && setup.reduction == possible) return;
  throw ConfigError("--transport", "",
                    fmt::format("{} with {} reductions: expected staged and {}, for these ranks do not read each "
                                "other's memory",
                                name(setup.transport), name(setup.reduction), name(possible)));
}

// Ranks of one plan, and the same one: before anything is allocated.
Communicators checked(const Communicators& communicators, const StepPlan& plan) {
  check_dtypes(plan);
  const auto size = [](const Communicator* communicator) {
    return communicator == nullptr ? 0 : static_cast<std::uint64_t>(communicator->size());
  };
  if (size(communicators.world) != plan.setup.world_size || size(communicators.shard_group) != plan.layout.shards ||
      size(communicators.replicas) != (plan.layout.replicas > 1 ? plan.layout.replicas : 0)) {
    throw ConfigError("communicators", "",
                      fmt::format("the plan is for {} ranks, {} shards and {} replicas", plan.setup.world_size,
                                  plan.layout.shards, plan.layout.replicas));
  }
  check_reduction(*communicators.world, plan.setup);
  compare_between_ranks(*communicators.world, "plan", plan.hash);
  return communicators;
}

ZeroOptions checked(ZeroOptions options, Communicator& world) {
  if (!options.initial_values) throw ConfigError("options", "initial_values", "expected a function");
  if (options.groups.empty()) throw ConfigError("options", "groups", "expected one group or more");
  if (options.groups.size() > kMostGroups) {
    throw ConfigError("options", "groups", fmt::format("{} are more than {}", options.groups.size(), kMostGroups));
  }
  compare_between_ranks(world, "options", digest_of(options));
  return options;
}

std::string describe(const Operation& operation) {
  return fmt::format("{} {}", name(operation.pass), operation.unit);
}

}  // namespace

ZeroOptimizer::ZeroOptimizer(const Catalog& catalog, const StepPlan& plan, Device& device,
                             const Communicators& communicators, ZeroOptions options)
    : device_(device),
      catalog_(catalog),
      plan_(plan),
      communicators_(checked(communicators, plan)),
      options_(checked(std::move(options), *communicators.world)),
      place_(place_of_rank(plan.layout, static_cast<std::uint64_t>(communicators.world->rank()))),
      events_(plan, device),
      memory_(plan, device, *communicators.world),
      index_(catalog, plan, options_),
      reducer_(plan, memory_, communicators_, kernels(), events_, place_.shard),
      scaler_(options_.loss_scaling),
      prepared_(plan.layout.units, false),
      parameter_views_(index_.most_tensors()),
      gradient_views_(index_.most_tensors()) {
  if (plan.file.bytes > Bytes{}) {
    file_ = std::make_unique<OffloadFile>(plan, memory_, options_.offload, communicators.world->world_rank());
    const auto passing = [&](MemoryClass which) {
      if (passing_slots(plan, which) == 0) return std::unique_ptr<PassingUnits>{};
      return std::make_unique<PassingUnits>(plan, memory_, *file_, device, which, place_.shard);
    };
    if (plan.blocks.ring_slots > 0) states_ = std::make_unique<OffloadedStates>(plan, memory_, *file_);
    passing_parameters_ = passing(MemoryClass::parameters);
    passing_gradients_ = passing(MemoryClass::gradients);
  }
  if (!kernels().hold_values()) return;
  fill_initial_values();
}

void ZeroOptimizer::synchronize() {
  events_.join();
  events_.compute().synchronize();
}

void ZeroOptimizer::fill_initial_values() {
  const HostBuffer chunk = values_buffer();
  std::uint64_t unit = 0;
  for (const UnitRun& run : catalog_.runs) {
    for (std::uint64_t i = 0; i < run.count; ++i, ++unit) {
      const LayoutRun& layout = run_of_unit(plan_.layout, unit);
      for (std::size_t t = 0; t < run.tensors.size(); ++t) {
        const TensorPlace& place = index_.tensors(unit)[t];
        if (place.tied) continue;
        const BufferLayout& buffer = layout.unit.buffers[place.buffer];
        // What this rank holds of it: its shard of the parameter or the master, or all of it.
        const Range held =
            parameters_sharded(plan_) ? intersect(place.range, shard_range(buffer, own_shard())) : place.range;
        const std::string whole_name = tensor_name(run, i, run.tensors[t]);
        for (std::uint64_t first = held.begin; first < held.end; first += kInitialChunk) {
          const std::span<float> values =
              chunk.floats().first(std::min<std::uint64_t>(kInitialChunk, held.end - first));
          options_.initial_values({whole_name, place.ordinal, first - place.range.begin}, values);
          store_initial(unit, place.buffer, first, values);
          events_.compute().synchronize();
        }
      }
    }
  }
  close_states();
}

HostBuffer ZeroOptimizer::values_buffer() {
  const std::span<std::byte> planned = memory_.host_buffer(BufferRole::values);
  if (planned.empty()) return {device_, kValuesBuffer};
  return HostBuffer(planned);
}

// `first` is an element of the flat buffer.
void ZeroOptimizer::store_initial(std::uint64_t unit, std::size_t buffer, std::uint64_t first,
                                  std::span<const float> values) {
  const BufferLayout& layout = run_of_unit(plan_.layout, unit).unit.buffers[buffer];
  const Range own = shard_range(layout, own_shard());
  for (const BufferRole role : {BufferRole::parameter, BufferRole::master, BufferRole::ema}) {
    if (!resident_place(plan_, role, unit, buffer)) continue;
    const bool sharded = role == BufferRole::parameter ? parameters_sharded(plan_) : optimizer_states_sharded(plan_);
    const Policy& policy = plan_.buffers[run_index_of_unit(plan_.layout, unit)][buffer].policy;
    const StateArray array{.role = role,
                           .unit = unit,
                           .buffer = buffer,
                           .dtype = role == BufferRole::parameter ? policy.parameter : DType::f32,
                           .held = sharded ? own : Range{0, layout.padded_elements}};
    store_state(array, {first, first + values.size()}, ConstElements(values));
  }
}

void ZeroOptimizer::begin(ProgramKind kind) {
  if (commit_) roll_forward();
  SHARDPLAN_CHECK(!half_loaded_, "begin() after a load_state() that failed: expected load_state()");
  SHARDPLAN_CHECK(!program_, fmt::format("begin({}) inside of program {}", name(kind), name(*program_)));
  SHARDPLAN_CHECK(kind != ProgramKind::update, "begin(update): the update is step()'s");
  const Program& program = plan_.programs[static_cast<std::size_t>(kind)];
  SHARDPLAN_CHECK(!program.segments.empty(),
                  fmt::format("the plan has no program {}: it has one micro-batch per step", name(kind)));
  if (kind != ProgramKind::evaluate) {
    SHARDPLAN_CHECK(!last_done_, fmt::format("begin({}) after the last micro-batch: expected step()", name(kind)));
    SHARDPLAN_CHECK(
        micro_batches_ < plan_.setup.accumulation,
        fmt::format("begin({}): the plan has {} micro-batches per step", name(kind), plan_.setup.accumulation));
    ++micro_batches_;
    ++gradient_number_;
  }
  try {
    close_states();  // that a visitor which threw has left open
    events_.join();
  } catch (...) {
    forget_step();
    throw;
  }
  program_ = kind;
  cursor_ = ProgramCursor(program);
  std::fill(prepared_.begin(), prepared_.end(), false);
}

UnitViews ZeroOptimizer::enter(std::uint64_t unit, Pass pass) {
  SHARDPLAN_CHECK(program_.has_value(),
                  fmt::format("enter({} {}) outside of a program: expected begin()", name(pass), unit));
  SHARDPLAN_CHECK(!entered_,
                  fmt::format("enter({} {}) inside of {}: expected leave()", name(pass), unit, describe(*entered_)));
  try {
    if (!cursor_.done()) memory_.release_ended(kPhases * step_of_next_compute());
    while (!cursor_.done() && cursor_.operation().kind != OperationKind::compute) {
      execute(cursor_.operation());
      cursor_.advance();
    }
    SHARDPLAN_CHECK(!cursor_.done(),
                    fmt::format("enter({} {}) at the end of program {}", name(pass), unit, name(*program_)));
    const Operation expected = cursor_.operation();
    SHARDPLAN_CHECK(expected.unit == unit && expected.pass == pass,
                    fmt::format("enter({} {}): the plan's next operation is {}", name(pass), unit, describe(expected)));
    const bool with_gradients = pass == Pass::backward;
    events_.before(expected);
    if (with_gradients) prepare_gradients(unit);
    entered_ = expected;
    cursor_.advance();
    return make_views(unit, with_gradients);
  } catch (...) {
    forget_step();
    throw;
  }
}

std::uint64_t ZeroOptimizer::step_of_next_compute() const {
  ProgramCursor ahead = cursor_;
  while (!ahead.done() && ahead.operation().kind != OperationKind::compute) ahead.advance();
  return ahead.done() ? 2 * plan_.layout.units : ahead.operation().step;
}

void ZeroOptimizer::leave(std::uint64_t unit) {
  SHARDPLAN_CHECK(
      entered_ && entered_->unit == unit,
      fmt::format("leave({}): {}", unit, entered_ ? "inside of " + describe(*entered_) : "no unit is entered"));
  try {
    events_.after(*entered_);
    entered_.reset();
    // What belongs to the step that ends: all up to the next step's gathers.
    while (!cursor_.done()) {
      const Operation operation = cursor_.operation();
      const bool next_step = operation.kind == OperationKind::compute ||
                             (operation.subject == Subject::parameter &&
                              (operation.kind == OperationKind::gather || operation.kind == OperationKind::fetch));
      if (next_step) break;
      execute(operation);
      cursor_.advance();
    }
  } catch (...) {
    forget_step();
    throw;
  }
  if (!cursor_.done()) return;
  memory_.release_all();
  last_done_ = last_done_ || program_ == ProgramKind::last_micro_batch;
  program_.reset();
}

// Back to before the step's first micro-batch. Gradients and accumulators are overwritten by the next one.
void ZeroOptimizer::forget_step() {
  memory_.release_all();
  program_.reset();
  entered_.reset();
  micro_batches_ = 0;
  last_done_ = false;
  if (passing_parameters_) passing_parameters_->forget();
  if (passing_gradients_) passing_gradients_->forget();
}

void ZeroOptimizer::execute(const Operation& operation) {
  const auto timer = meter_.communication();
  events_.before(operation);
  const GradientReducer::MicroBatch micro_batch{.first = micro_batches_ == 1,
                                                .last = program_ == ProgramKind::last_micro_batch};
  switch (operation.kind) {
    case OperationKind::gather: {
      std::size_t done = 0;
      gather(operation, done);
      if (operation.subject == Subject::parameter) used_parameters(operation.unit);
      break;
    }
    case OperationKind::fetch:
      fetch(operation, micro_batch.first);
      break;
    case OperationKind::evict:
      evict(operation, micro_batch.last);
      break;
    case OperationKind::release:
      memory_.release(BufferRole::gathered_parameter, operation.unit);
      break;
    case OperationKind::accumulate:
      hold_gradient(operation.unit);
      reducer_.accumulate(operation.unit, micro_batch);
      break;
    case OperationKind::reduce:
      hold_gradient(operation.unit);
      reducer_.reduce(operation, micro_batch);
      break;
    default:
      SHARDPLAN_CHECK(false,
                      fmt::format("operation {} has no place in program {}", name(operation.kind), name(*program_)));
  }
  events_.after(operation);
  meter_.add_sent(operation.sent);
}

// Into a slot (stage 3), into the resident parameters (after an update), or of the reduced gradient (stage 0).
void ZeroOptimizer::gather(const Operation& operation, std::size_t& done) {
  const std::uint64_t unit = operation.unit;
  const std::size_t run = run_index_of_unit(plan_.layout, unit);
  const bool of_gradient = operation.subject == Subject::gradient;
  const bool into_slot = !of_gradient && parameters_sharded(plan_);
  if (into_slot) memory_.acquire(BufferRole::gathered_parameter, operation.step, unit, UINT64_MAX);
  for (; done < plan_.layout.runs[run].unit.buffers.size(); ++done) {
    const std::size_t i = done;
    const BufferLayout& layout = plan_.layout.runs[run].unit.buffers[i];
    const BufferPlan& buffer = plan_.buffers[run][i];
    if (!into_slot && !buffer.trainable) continue;
    const DType dtype = of_gradient ? buffer.policy.gradient : buffer.policy.parameter;
    const ArenaPlace resident = memory_.resident(of_gradient ? BufferRole::gradient : BufferRole::parameter, unit, i);
    if (into_slot) {
      gather_buffer(resident, memory_.slot(BufferRole::gathered_parameter, unit, i), dtype, layout);
    } else {
      ArenaPlace own = resident;
      own.offset += bytes_for(dtype, shard_range(layout, own_shard()).begin).count();
      gather_buffer(own, resident, dtype, layout);
    }
  }
}

void ZeroOptimizer::gather_buffer(const ArenaPlace& input, const ArenaPlace& output, DType dtype,
                                  const BufferLayout& buffer) {
  const Range own = shard_range(buffer, own_shard());
  communicators_.shard_group->all_gather({.dtype = dtype,
                                          .input = input,
                                          .output = output,
                                          .elements = buffer.padded_elements,
                                          .mine = {own.begin, own.size()},
                                          .equal_pieces = true},
                                         events_.communication());
}

// A unit's own contribution, and those of the owners of its tied tensors: zero until somebody adds.
void ZeroOptimizer::prepare_gradients(std::uint64_t unit) {
  const auto prepare = [&](std::uint64_t owner) {
    if (prepared_[owner]) return;
    reducer_.prepare(owner);
    prepared_[owner] = true;
  };
  for (const TensorPlace& tensor : index_.tensors(unit)) {
    if (tensor.tied) prepare(tensor.unit);
  }
  prepare(unit);
  reducer_.prepare_reduction(unit);
}

UnitViews ZeroOptimizer::make_views(std::uint64_t unit, bool with_gradients) {
  const std::span<const TensorPlace> tensors = index_.tensors(unit);
  for (std::size_t t = 0; t < tensors.size(); ++t) {
    const TensorPlace& tensor = tensors[t];
    const BufferPlan& buffer = plan_.buffers[run_index_of_unit(plan_.layout, tensor.unit)][tensor.buffer];
    const auto view = [&](const ArenaPlace& place, DType dtype) {
      return TensorView{memory_.data(place) + bytes_for(dtype, tensor.range.begin).count(), dtype, tensor.range.size()};
    };
    const ArenaPlace parameter = parameters_in_slots(plan_)
                                     ? memory_.slot(BufferRole::gathered_parameter, tensor.unit, tensor.buffer)
                                     : memory_.resident(BufferRole::parameter, tensor.unit, tensor.buffer);
    parameter_views_[t] = view(parameter, buffer.policy.parameter);
    gradient_views_[t] = with_gradients && buffer.trainable
                             ? view(reducer_.contribution(tensor.unit, tensor.buffer), buffer.policy.wire)
                             : TensorView{};
  }
  return {std::span(parameter_views_).first(tensors.size()),
          with_gradients ? std::span<const TensorView>(gradient_views_).first(tensors.size())
                         : std::span<const TensorView>{}};
}

void ZeroOptimizer::set_learning_rate(std::size_t group, double learning_rate) {
  SHARDPLAN_CHECK(group < options_.groups.size(), "no such parameter group");
  options_.groups[group].values.learning_rate = learning_rate;
}

void ZeroOptimizer::set_hyperparameters(std::size_t group, const Hyperparameters& values) {
  SHARDPLAN_CHECK(group < options_.groups.size(), "no such parameter group");
  options_.groups[group].values = values;
}

void ZeroOptimizer::visit_parameters(const std::function<void(const TensorRange&, std::span<const float>)>& visit) {
  require_whole_state("visit_parameters()");
  events_.join();
  constexpr std::size_t kChunk = 1 << 14;
  const HostBuffer mine = values_buffer();
  std::vector<float> all(kChunk * plan_.layout.shards);
  std::uint64_t unit = 0;
  for (const UnitRun& run : catalog_.runs) {
    for (std::uint64_t i = 0; i < run.count; ++i, ++unit) {
      const std::vector<BufferLayout>& buffers = run_of_unit(plan_.layout, unit).unit.buffers;
      std::vector<std::vector<float>> values(buffers.size());
      for (std::size_t b = 0; b < buffers.size(); ++b) {
        const Policy& policy = plan_.buffers[run_index_of_unit(plan_.layout, unit)][b].policy;
        const bool has_master = resident_place(plan_, BufferRole::master, unit, b).has_value();
        const BufferRole role = has_master ? BufferRole::master : BufferRole::parameter;
        const DType dtype = has_master ? *policy.master : policy.parameter;
        const bool sharded = has_master ? optimizer_states_sharded(plan_) : parameters_sharded(plan_);
        values[b].resize(buffers[b].padded_elements);
        const std::uint64_t held = sharded ? buffers[b].shard_elements : buffers[b].padded_elements;
        const StateArray array{.role = role, .unit = unit, .buffer = b, .dtype = dtype, .held = {0, held}};
        for (std::uint64_t first = 0, count = 0; first < held; first += count) {
          count = together(array, first, std::min<std::uint64_t>(kChunk, held - first));
          const std::span<float> part = mine.floats().first(count);
          kernels().cast(events_.compute(), Elements(part),
                         ConstElements(dtype, state_at(array, first, Access::read), count));
          events_.compute().synchronize();
          if (!sharded) {
            std::copy_n(part.data(), count, values[b].data() + first);
            continue;
          }
          const std::span<float> gathered = std::span(all).first(count * plan_.layout.shards);
          communicators_.shard_group->all_gather_bytes(std::as_bytes(part), std::as_writable_bytes(gathered));
          for (std::uint64_t s = 0; s < plan_.layout.shards; ++s) {
            std::copy_n(gathered.data() + s * count, count, values[b].data() + s * held + first);
          }
        }
      }
      for (std::size_t t = 0; t < run.tensors.size(); ++t) {
        const TensorPlace& place = index_.tensors(unit)[t];
        if (place.tied) continue;
        const std::string whole_name = tensor_name(run, i, run.tensors[t]);
        visit({whole_name, place.ordinal, 0},
              std::span<const float>(values[place.buffer]).subspan(place.range.begin, place.range.size()));
      }
    }
  }
  close_states();
}

}  // namespace shardplan
