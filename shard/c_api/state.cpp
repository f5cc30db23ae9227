#include <string>

#include "shard/c_api/handles.h"

namespace shardplan::c_api {
namespace {

shardplan_state_range range_of(const StateRange& range, const std::string& name, DType dtype, std::uint64_t elements) {
  return {.struct_size = sizeof(shardplan_state_range),
          .name = name.c_str(),
          .tensor = range.tensor,
          .kind = static_cast<shardplan_state_kind>(range.kind),
          .dtype = c_dtype(dtype),
          .first = range.first,
          .elements = elements};
}
static_assert(static_cast<int>(StateKind::parameter) == SHARDPLAN_STATE_PARAMETER);
static_assert(static_cast<int>(StateKind::first_moment) == SHARDPLAN_STATE_FIRST_MOMENT);
static_assert(static_cast<int>(StateKind::second_moment) == SHARDPLAN_STATE_SECOND_MOMENT);
static_assert(static_cast<int>(StateKind::ema) == SHARDPLAN_STATE_EMA);

}  // namespace
}  // namespace shardplan::c_api

extern "C" {

using namespace shardplan::c_api;  // NOLINT(google-build-using-namespace): the functions below have C's names

shardplan_status shardplan_optimizer_get_step_state(const shardplan_optimizer* optimizer, shardplan_step_state* state,
                                                    shardplan_error* error) {
  return guarded(error, [&] {
    const shardplan::StepState now = required(optimizer, "optimizer").optimizer->step_state();
    give(state,
         {.struct_size = sizeof *state,
          .steps_applied = now.steps_applied,
          .loss_scale = now.loss_scale,
          .clean_steps = now.clean_steps,
          .hysteresis_left = now.hysteresis_left},
         "state");
  });
}

shardplan_status shardplan_optimizer_visit_state(shardplan_optimizer* optimizer, shardplan_state_visitor visit,
                                                 void* user, shardplan_error* error) {
  return guarded(error, [&] {
    SHARDPLAN_CHECK(visit != nullptr, "visit is NULL");
    const auto act = [&](const shardplan::StateRange& range, const shardplan::ConstElements& values) {
      const std::string name(range.name);
      const shardplan_state_range told = range_of(range, name, values.dtype, values.elements);
      require_success("the state visitor", visit(user, &told, values.data));
    };
    required(optimizer, "optimizer").optimizer->visit_state(act);
  });
}

shardplan_status shardplan_optimizer_load_state(shardplan_optimizer* optimizer, const shardplan_step_state* state,
                                                shardplan_state_loader load, void* user, shardplan_error* error) {
  return guarded(error, [&] {
    SHARDPLAN_CHECK(load != nullptr, "load is NULL");
    const shardplan_step_state given = taken(state, "state");
    const auto act = [&](const shardplan::StateRange& range, const shardplan::Elements& values) {
      const std::string name(range.name);
      const shardplan_state_range told = range_of(range, name, values.dtype, values.elements);
      require_success("the state loader", load(user, &told, values.data));
    };
    required(optimizer, "optimizer")
        .optimizer->load_state({.steps_applied = given.steps_applied,
                                .loss_scale = given.loss_scale,
                                .clean_steps = given.clean_steps,
                                .hysteresis_left = given.hysteresis_left},
                               act);
  });
}

}  // extern "C"
