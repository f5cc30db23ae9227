// For clients that ignore units. See zero_optimizer.h.
#include <fmt/format.h>

#include "base/error.h"
#include "shard/zero_optimizer.h"

namespace shardplan {

std::span<const TensorView> ZeroOptimizer::parameters(std::uint64_t unit) {
  require_whole_state("parameters()");
  SHARDPLAN_CHECK(!parameters_in_slots(plan_),
                  "parameters(): the plan shards or offloads them; they are whole on the device inside of enter()");
  SHARDPLAN_CHECK(unit < plan_.layout.units, fmt::format("no unit {}", unit));
  return make_views(unit, false).parameters;
}

void ZeroOptimizer::check_gradients(std::span<const ConstElements> gradients) const {
  SHARDPLAN_CHECK(!parameters_in_slots(plan_),
                  "reduce_gradients(): the plan shards or offloads parameters, which takes enter()");
  SHARDPLAN_CHECK(gradients.size() == tensor_count(catalog_),
                  fmt::format("reduce_gradients(): {} gradients, expected one for each of {} tensors", gradients.size(),
                              tensor_count(catalog_)));
  std::size_t next = 0;
  std::uint64_t unit = 0;
  for (const UnitRun& run : catalog_.runs) {
    for (std::uint64_t i = 0; i < run.count; ++i, ++unit) {
      for (std::size_t t = 0; t < run.tensors.size(); ++t, ++next) {
        const ConstElements& gradient = gradients[next];
        if (gradient.elements == 0) continue;
        const TensorPlace& place = index_.tensors(unit)[t];
        const bool trainable = plan_.buffers[run_index_of_unit(plan_.layout, place.unit)][place.buffer].trainable;
        SHARDPLAN_CHECK(trainable && gradient.elements == place.range.size(),
                        fmt::format("reduce_gradients(): {} elements for {}, expected {}", gradient.elements,
                                    tensor_name(run, i, run.tensors[t]), trainable ? place.range.size() : 0));
        check_kernel_dtype(gradient.dtype);
      }
    }
  }
}

void ZeroOptimizer::reduce_gradients(ProgramKind kind, std::span<const ConstElements> gradients) {
  SHARDPLAN_CHECK(kind != ProgramKind::evaluate, "reduce_gradients(evaluate): there are no gradients");
  check_gradients(gradients);
  begin(kind);
  for (std::uint64_t unit = 0; unit < plan_.layout.units; ++unit) {
    enter(unit, Pass::forward);
    leave(unit);
  }
  std::size_t end = gradients.size();
  for (std::uint64_t unit = plan_.layout.units; unit-- > 0;) {
    if (plan_.setup.recompute == Recompute::full) {
      enter(unit, Pass::recompute);
      leave(unit);
    }
    const UnitViews views = enter(unit, Pass::backward);
    const std::size_t first = end - views.gradients.size();
    try {
      for (std::size_t t = 0; t < views.gradients.size(); ++t) {
        const TensorView& view = views.gradients[t];
        const ConstElements& gradient = gradients[first + t];
        if (gradient.elements == 0) continue;
        kernels().accumulate(events_.compute(), {view.dtype, view.data, view.elements}, gradient);
      }
    } catch (...) {
      forget_step();
      throw;
    }
    leave(unit);
    end = first;
  }
}

}  // namespace shardplan
