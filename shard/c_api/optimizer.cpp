#include <fmt/format.h>

#include <cmath>
#include <string_view>
#include <utility>

#include "shard/c_api/handles.h"

namespace shardplan::c_api {
namespace {

std::size_t most_tensors(const Catalog& catalog) {
  std::size_t most = 0;
  for (const UnitRun& run : catalog.runs) most = std::max(most, run.tensors.size());
  return most;
}

// Hybrid sharding: groups of consecutive ranks, and across them the ranks that hold the same shard.
void split_world(const Setup& setup, shardplan_optimizer& handle) {
  if (setup.replicate == 1) return;
  Communicator& world = *handle.world->communicator;
  const RankPlace place = place_of_rank(handle.plan->plan.layout, static_cast<std::uint64_t>(world.rank()));
  handle.shard_group = world.split(static_cast<int>(place.replica), world.rank());
  handle.replicas = world.split(static_cast<int>(place.shard), world.rank());
}

// The world must fit before it can be split.
void require_world(const Setup& setup, const Communicator& world) {
  if (static_cast<std::uint64_t>(world.size()) == setup.world_size) return;
  throw ConfigError("options", "world_size",
                    fmt::format("{}, but the communicator has {} ranks", setup.world_size, world.size()));
}

// The device is the communicator's; naming it says that the caller knows where the arena will be.
void require_device(std::string_view device, const CommunicatorState& world) {
  if (device == "cuda") {
    load_cuda_backend().gpus();  // why there is none, where that is so
    if (world.cuda != nullptr) return;
    throw ConfigError("device", "", "'cuda': expected a communicator of shardplan_communicator_create_nccl");
  }
  if (device != "cpu") throw ConfigError("device", "", fmt::format("'{}' is not known: expected cpu or cuda", device));
  if (world.cuda != nullptr) throw ConfigError("device", "", "'cpu': expected 'cuda', for the communicator is of GPUs");
}

std::unique_ptr<shardplan_optimizer> make_optimizer(std::shared_ptr<const PlanState> plan, std::string_view device,
                                                    std::shared_ptr<CommunicatorState> world,
                                                    shardplan_initial_values initial_values, void* user) {
  require_device(device, *world);
  SHARDPLAN_CHECK(initial_values != nullptr, "initial_values is NULL");
  require_world(plan->plan.setup, *world->communicator);
  auto handle = std::make_unique<shardplan_optimizer>();
  handle->plan = std::move(plan);
  handle->world = std::move(world);
  split_world(handle->plan->plan.setup, *handle);
  ZeroOptions options = handle->plan->options;
  options.initial_values = [=](const TensorRange& range, std::span<float> values) {
    const std::string whole_name(range.name);
    require_success("initial_values",
                    initial_values(user, whole_name.c_str(), range.tensor, range.first, values.data(), values.size()));
  };
  if (handle->world->cuda != nullptr) options.kernels = &handle->world->cuda->kernels();
  Communicator* const communicator = handle->world->communicator.get();
  const Communicators groups{.world = communicator,
                             .shard_group = handle->shard_group ? handle->shard_group.get() : communicator,
                             .replicas = handle->replicas.get()};
  handle->optimizer = std::make_unique<ZeroOptimizer>(handle->plan->catalog, handle->plan->plan, *handle->world->device,
                                                      groups, std::move(options));
  handle->parameters.reserve(most_tensors(handle->plan->catalog));
  handle->gradients.reserve(most_tensors(handle->plan->catalog));
  handle->contributions.reserve(tensor_count(handle->plan->catalog));
  return handle;
}

ProgramKind program_of(shardplan_program program) {
  switch (program) {
    case SHARDPLAN_TRAIN_MICRO_BATCH:
      return ProgramKind::train_micro_batch;
    case SHARDPLAN_LAST_MICRO_BATCH:
      return ProgramKind::last_micro_batch;
    case SHARDPLAN_EVALUATE:
      return ProgramKind::evaluate;
    default:
      throw CheckFailure(fmt::format("{} is no program", program));
  }
}

Pass pass_of(shardplan_pass pass) {
  switch (pass) {
    case SHARDPLAN_FORWARD:
      return Pass::forward;
    case SHARDPLAN_RECOMPUTE:
      return Pass::recompute;
    case SHARDPLAN_BACKWARD:
      return Pass::backward;
    default:
      throw CheckFailure(fmt::format("{} is no pass", pass));
  }
}

void copy_views(std::span<const TensorView> from, std::vector<shardplan_view>& to) {
  to.clear();
  for (const TensorView& view : from) to.push_back({view.data, view.elements, c_dtype(view.dtype)});
}

shardplan_unit_views give_views(shardplan_optimizer& handle, const UnitViews& views) {
  copy_views(views.parameters, handle.parameters);
  copy_views(views.gradients, handle.gradients);
  return {.parameters = handle.parameters.data(),
          .gradients = handle.gradients.empty() ? nullptr : handle.gradients.data(),
          .count = handle.parameters.size()};
}

void reduce(shardplan_optimizer& handle, ProgramKind program, std::span<const shardplan_view> gradients) {
  handle.contributions.clear();
  for (const shardplan_view& view : gradients) {
    ConstElements& gradient = handle.contributions.emplace_back();
    if (view.elements == 0) continue;
    const auto* data = static_cast<const std::byte*>(view.data);
    gradient = ConstElements(dtype_of(view.dtype), &required(data, "a gradient's data"), view.elements);
  }
  handle.optimizer->reduce_gradients(program, handle.contributions);
}

shardplan_step_report report_of(const StepReport& report, std::size_t groups) {
  shardplan_step_report result{.struct_size = sizeof result,
                               .step = report.step,
                               .skipped = report.skipped ? 1 : 0,
                               .groups = static_cast<int32_t>(groups),
                               .norm = report.norm,
                               .group_norms = {},
                               .clip_factor = report.clip_factor,
                               .loss_scale = report.loss_scale,
                               .next_loss_scale = report.next_loss_scale,
                               .sent_bytes = report.sent.count(),
                               .communication_seconds = report.communication_seconds,
                               .update_seconds = report.update_seconds};
  static_assert(std::size(decltype(result.group_norms){}) == kMostGroups);
  std::copy(report.group_norms.begin(), report.group_norms.end(), result.group_norms);
  return result;
}

ZeroOptimizer& optimizer_of(shardplan_optimizer* handle) {
  return *required(handle, "optimizer").optimizer;
}

}  // namespace
}  // namespace shardplan::c_api

extern "C" {

using namespace shardplan::c_api;  // NOLINT(google-build-using-namespace): the functions below have C's names

shardplan_status shardplan_optimizer_create(const shardplan_plan* plan, const char* device,
                                            shardplan_communicator* world, shardplan_initial_values initial_values,
                                            void* user, shardplan_optimizer** optimizer, shardplan_error* error) {
  return guarded(error, [&] {
    required(optimizer, "optimizer") = nullptr;
    *optimizer = make_optimizer(required(plan, "plan").state, &required(device, "device"),
                                required(world, "world").state, initial_values, user)
                     .release();
  });
}

void shardplan_optimizer_free(shardplan_optimizer* optimizer) {
  delete optimizer;
}

shardplan_status shardplan_optimizer_begin(shardplan_optimizer* optimizer, shardplan_program program,
                                           shardplan_error* error) {
  return guarded(error, [&] { optimizer_of(optimizer).begin(program_of(program)); });
}

shardplan_status shardplan_optimizer_enter(shardplan_optimizer* optimizer, uint64_t unit, shardplan_pass pass,
                                           shardplan_unit_views* views, shardplan_error* error) {
  return guarded(error, [&] {
    const shardplan::UnitViews entered = optimizer_of(optimizer).enter(unit, pass_of(pass));
    optimizer->optimizer->synchronize();
    required(views, "views") = give_views(*optimizer, entered);
  });
}

shardplan_status shardplan_optimizer_leave(shardplan_optimizer* optimizer, uint64_t unit, shardplan_error* error) {
  return guarded(error, [&] { optimizer_of(optimizer).leave(unit); });
}

shardplan_status shardplan_optimizer_get_parameters(shardplan_optimizer* optimizer, uint64_t unit,
                                                    shardplan_unit_views* views, shardplan_error* error) {
  return guarded(error, [&] {
    required(views, "views") = give_views(*optimizer, {optimizer_of(optimizer).parameters(unit), {}});
  });
}

shardplan_status shardplan_optimizer_reduce(shardplan_optimizer* optimizer, shardplan_program program,
                                            const shardplan_view* gradients, size_t count, shardplan_error* error) {
  return guarded(error, [&] {
    SHARDPLAN_CHECK(count == 0 || gradients != nullptr, "gradients is NULL");
    reduce(required(optimizer, "optimizer"), program_of(program), {gradients, count});
    optimizer->optimizer->synchronize();
  });
}

shardplan_status shardplan_optimizer_step(shardplan_optimizer* optimizer, shardplan_step_report* report,
                                          shardplan_error* error) {
  return guarded(error, [&] {
    const shardplan::StepReport result = optimizer_of(optimizer).step();
    optimizer->optimizer->synchronize();
    if (report != nullptr) give(report, report_of(result, optimizer->plan->options.groups.size()), "report");
  });
}

shardplan_status shardplan_optimizer_set_learning_rate(shardplan_optimizer* optimizer, size_t group,
                                                       double learning_rate, shardplan_error* error) {
  return guarded(error, [&] {
    if (!(learning_rate >= 0) || !std::isfinite(learning_rate)) {
      throw shardplan::ConfigError("learning_rate", "", "expected a number from 0");
    }
    optimizer_of(optimizer).set_learning_rate(group, learning_rate);
  });
}

shardplan_status shardplan_optimizer_visit_parameters(shardplan_optimizer* optimizer, shardplan_parameter_visitor visit,
                                                      void* user, shardplan_error* error) {
  return guarded(error, [&] {
    SHARDPLAN_CHECK(visit != nullptr, "visit is NULL");
    optimizer_of(optimizer).visit_parameters([&](const shardplan::TensorRange& range, std::span<const float> values) {
      const std::string name(range.name);
      require_success("the parameter visitor", visit(user, name.c_str(), range.tensor, values.data(), values.size()));
    });
  });
}

}  // extern "C"
