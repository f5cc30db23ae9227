#include "planner/cost/compute.h"

#include <fmt/format.h>

#include <algorithm>
#include <set>
#include <string>
#include <string_view>
#include <utility>

#include "base/error.h"
#include "planner/cost/module_cost.h"

namespace shardplan {
namespace {

// The modules of each unit, unit after unit.
class ModuleCursor {
 public:
  explicit ModuleCursor(const Model& model) : runs_(model.modules) {}

  struct Units {
    std::size_t run = 0;  // of the model's modules
    std::uint64_t count = 0;
  };
  // Whose modules the next units have, all the same, and how many of the next `units` they are.
  Units next(std::uint64_t units) {
    SHARDPLAN_CHECK(run_ < runs_.size(), "a unit has modules");
    const Units next{run_, std::min(units, runs_[run_].count - used_)};
    used_ += next.count;
    if (used_ == runs_[run_].count) {
      ++run_;
      used_ = 0;
    }
    return next;
  }

 private:
  const std::vector<ModuleRun>& runs_;
  std::size_t run_ = 0;
  std::uint64_t used_ = 0;
};

class FrozenTensors {
 public:
  explicit FrozenTensors(const UnitRun& run) {
    for (const Tensor& tensor : run.tensors) {
      if (tensor.trainable) {
        any_trainable_ = true;
      } else {
        frozen_.insert(tensor.name);
      }
    }
  }
  bool any_trainable() const { return any_trainable_; }
  bool is_trainable(const Module& module) const {
    return std::any_of(module.tensors.begin(), module.tensors.end(),
                       [&](const Tensor& tensor) { return !frozen_.contains(name_of_tensor(module, tensor)); });
  }

 private:
  std::set<std::string, std::less<>> frozen_;
  bool any_trainable_ = false;
};

PassSeconds seconds_of_tensors(const UnitRun& run, const ModuleCost& cost, bool inputs_need_gradient) {
  double all = 0;
  double trainable = 0;
  for (const Tensor& tensor : run.tensors) {
    const auto size = static_cast<double>(elements(tensor.shape));
    all += size;
    if (tensor.trainable) trainable += size;
  }
  PassSeconds seconds;
  seconds.forward = cost.plain(all);
  seconds.backward = cost.plain(trainable + (inputs_need_gradient ? all : 0));
  return seconds;
}

// Of the modules of one run; empty where no forward enters it.
std::vector<ModuleRows> rows_of_run(const Work& work, std::size_t run, std::size_t modules) {
  if (work.rows == nullptr || work.rows->empty()) return std::vector<ModuleRows>(modules);
  SHARDPLAN_CHECK(run < work.rows->size(), "rows are of this model");
  const std::vector<ModuleRows>& rows = (*work.rows)[run];
  SHARDPLAN_CHECK(rows.empty() || rows.size() == modules, "rows are of this model");
  return rows;
}

double bytes_of(DType dtype) {
  return static_cast<double>(bits(dtype)) / 8;
}

double pass_seconds(std::uint64_t elements, double bytes_each, const Cluster& cluster) {
  if (elements == 0) return 0;
  return static_cast<double>(elements) * bytes_each / memory_rate(cluster) + cluster.efficiency.kernel_seconds;
}

}  // namespace

PassSeconds& PassSeconds::operator+=(const PassSeconds& other) {
  forward += other.forward;
  backward += other.backward;
  return *this;
}

std::vector<UnitRunSeconds> unit_seconds(const Model& model, const Work& work, const Cluster& cluster) {
  const ModuleCost cost(model.architecture, work, cluster);
  ModuleCursor cursor(model);
  std::vector<UnitRunSeconds> runs;
  bool gradient_flows = false;  // something before this unit is trained, so its inputs need a gradient
  for (const UnitRun& run : model.catalog.runs) {
    const FrozenTensors frozen(run);
    gradient_flows = gradient_flows || frozen.any_trainable();
    if (model.modules.empty()) {
      runs.push_back({run.count, seconds_of_tensors(run, cost, gradient_flows)});
      continue;
    }
    // Blocks with the same tensors may differ in modules that have none: in some, attention knows no positions.
    for (std::uint64_t done = 0; done < run.count;) {
      const auto [of, count] = cursor.next(run.count - done);
      const Modules& modules = model.modules[of].modules;
      const std::vector<ModuleRows> rows = rows_of_run(work, of, modules.size());
      UnitRunSeconds unit{count, {}};
      if (!rows.empty()) unit.each = cost.between_modules(modules, rows, run.numbered);
      for (std::size_t i = 0; i < rows.size(); ++i) {
        unit.each += cost.seconds(modules[i], rows[i], frozen.is_trainable(modules[i]));
      }
      if (!gradient_flows) unit.each.backward = 0;
      const auto uses = static_cast<double>(run.numbered ? model.architecture.block_uses : 1);
      unit.each = {uses * unit.each.forward, uses * unit.each.backward};
      runs.push_back(unit);
      done += count;
    }
  }
  return runs;
}

const PassSeconds& seconds_of_unit(const std::vector<UnitRunSeconds>& runs, std::uint64_t unit) {
  for (const UnitRunSeconds& run : runs) {
    if (unit < run.count) return run.each;
    unit -= run.count;
  }
  SHARDPLAN_CHECK(false, "no such unit");
  return runs.front().each;
}

PassSeconds sum(const std::vector<UnitRunSeconds>& runs) {
  PassSeconds total;
  for (const UnitRunSeconds& run : runs) {
    total.forward += static_cast<double>(run.count) * run.each.forward;
    total.backward += static_cast<double>(run.count) * run.each.backward;
  }
  return total;
}

double matmul_rate(const Cluster& cluster, DType compute) {
  const Gpu& gpu = cluster.gpu;
  double peak = 0;
  if (compute == DType::bf16) peak = static_cast<double>(gpu.bf16_flops.value_or(0));
  if (compute == DType::f16) peak = static_cast<double>(gpu.fp16_flops.value_or(0));
  if (compute == DType::f32) peak = static_cast<double>(gpu.fp32_flops.value_or(0));
  if (bits(compute) == 8) peak = cluster.fp8_flops.value_or(0);
  if (peak <= 0) {
    throw ConfigError("--gpu", "", fmt::format("how fast {} computes in {} is not known", gpu.name, name(compute)));
  }
  return peak * (bits(compute) == 8 ? cluster.efficiency.fp8_matmul : cluster.efficiency.matmul);
}

double memory_rate(const Cluster& cluster) {
  if (!cluster.gpu.bandwidth_bytes_per_second) {
    throw ConfigError("--gpu", "", fmt::format("the memory bandwidth of {} is not known", cluster.gpu.name));
  }
  return static_cast<double>(*cluster.gpu.bandwidth_bytes_per_second) * cluster.efficiency.memory;
}

double update_seconds(std::uint64_t elements, const Policy& policy, OptimizerKind optimizer, const Cluster& cluster) {
  const OptimizerStates& states = states_of(optimizer);
  double bytes = bytes_of(policy.gradient);
  bytes += 2 * bytes_of(policy.master.value_or(policy.parameter));
  if (policy.master) bytes += bytes_of(policy.parameter);
  if (states.first_moment) bytes += 2 * bytes_of(policy.first_moment);
  if (states.second_moment) bytes += 2 * bytes_of(policy.second_moment);
  return pass_seconds(elements, bytes, cluster);
}

double cast_seconds(std::uint64_t elements, DType from, DType to, const Cluster& cluster) {
  return pass_seconds(elements, bytes_of(from) + bytes_of(to), cluster);
}

double accumulate_seconds(std::uint64_t elements, DType contribution, DType accumulator, const Cluster& cluster) {
  return pass_seconds(elements, bytes_of(contribution) + 2 * bytes_of(accumulator), cluster);
}

double norm_seconds(std::uint64_t elements, DType gradient, const Cluster& cluster) {
  return pass_seconds(elements, bytes_of(gradient), cluster);
}

double zero_seconds(Bytes bytes, const Cluster& cluster) {
  return pass_seconds(bytes.count(), 1, cluster);
}

}  // namespace shardplan
