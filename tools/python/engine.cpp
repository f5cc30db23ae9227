#include "tools/python/engine.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>
#include <utility>

#include "base/error.h"
#include "planner/formats/tensor_list.h"
#include "shard/checkpoint/together.h"

namespace shardplan::python {
namespace {

std::byte* element(const ClientTensor& tensor, std::uint64_t first) {
  return reinterpret_cast<std::byte*>(tensor.address) + bytes_for(tensor.dtype, first).count();
}

const ClientTensor& find(const ClientTensors& tensors, std::string_view name, std::string_view what) {
  const auto found = tensors.find(name);
  if (found == tensors.end()) throw ConfigError(std::string(name), "", fmt::format("has no {}", what));
  return found->second;
}

ZeroOptions with_values(ZeroOptions options, const ClientTensors& initial) {
  options.initial_values = [&initial](const TensorRange& range, std::span<float> values) {
    const ClientTensor& tensor = find(initial, range.name, "initial values");
    cast(values, ConstElements(tensor.dtype, element(tensor, range.first), values.size()));
  };
  return options;
}

ZeroOptions with_groups(ZeroOptions options, const Catalog& catalog, const ClientGroups& groups) {
  for_each_tensor(catalog,
                  [&](const std::string& name, const Tensor&) { options.group_of_tensor.push_back(groups.at(name)); });
  return options;
}

std::vector<UnitNamesOfTensors> units_of(const Catalog& catalog) {
  std::vector<UnitNamesOfTensors> units;
  for (const UnitRun& run : catalog.runs) {
    for (std::uint64_t i = 0; i < run.count; ++i) {
      UnitNamesOfTensors& unit = units.emplace_back(UnitNamesOfTensors{unit_name(run, i), {}});
      for (const Tensor& tensor : run.tensors) unit.tensors.push_back(tensor_name(run, i, tensor));
    }
  }
  return units;
}

std::vector<std::uintptr_t> addresses(std::span<const TensorView> views) {
  std::vector<std::uintptr_t> result;
  result.reserve(views.size());
  for (const TensorView& view : views) result.push_back(reinterpret_cast<std::uintptr_t>(view.data));
  return result;
}

}  // namespace

Engine::Engine(const std::string& tensors, const ClientGroups& groups, const Setup& setup, ZeroOptions options,
               Communicator& communicator, const ClientTensors& initial)
    : catalog_(model_from_tensor_list(tensors, "parameters").catalog),
      plan_(make_step_plan(catalog_, setup)),
      units_(units_of(catalog_)),
      device_(communicator.size() > 1 ? HostPages::shareable : HostPages::own),
      communicator_(communicator),
      optimizer_(catalog_, plan_, device_, {.world = &communicator, .shard_group = &communicator, .replicas = nullptr},
                 with_groups(with_values(std::move(options), initial), catalog_, groups)) {}

std::vector<std::uintptr_t> Engine::resident_parameters(std::uint64_t unit) {
  return addresses(optimizer_.parameters(unit));
}

void Engine::begin(bool evaluate) {
  if (evaluate) {
    optimizer_.begin(ProgramKind::evaluate);
    return;
  }
  const bool last = begun_ + 1 >= plan_.setup.accumulation;
  optimizer_.begin(last ? ProgramKind::last_micro_batch : ProgramKind::train_micro_batch);
  begun_ = last ? 0 : begun_ + 1;
}

std::vector<std::uintptr_t> Engine::enter(std::uint64_t unit, Pass pass) {
  const UnitViews views = optimizer_.enter(unit, pass);
  gradients_ = views.gradients;
  return addresses(views.parameters);
}

void Engine::pass_forward() {
  for (std::uint64_t unit = 0; unit < plan_.layout.units; ++unit) {
    optimizer_.enter(unit, Pass::forward);
    optimizer_.leave(unit);
  }
}

void Engine::contribute(std::size_t tensor, const ClientTensor& gradient) {
  SHARDPLAN_CHECK(tensor < gradients_.size(), "a gradient outside of its unit's backward");
  const TensorView& view = gradients_[tensor];
  SHARDPLAN_CHECK(view.data != nullptr, "a gradient of a frozen tensor");
  cast(Elements(view.dtype, view.data, view.elements),
       ConstElements(gradient.dtype, element(gradient, 0), view.elements));
}

// Every element is visited on exactly one rank and zero on the others, so a bitwise "or" over the ranks puts tensors
// together.
void Engine::read_state(StateKind kind, const ClientTensors& into) {
  std::map<std::string, std::uint64_t, std::less<>> elements_of;
  for_each_tensor(catalog_, [&](const std::string& name, const Tensor& tensor) {
    if (!into.contains(name)) return;
    const std::uint64_t count = elements(tensor.shape);
    elements_of.emplace(name, count);
    std::memset(element(into.at(name), 0), 0, bytes_for(into.at(name).dtype, count).count());
  });
  optimizer_.visit_state([&](const StateRange& range, const ConstElements& values) {
    const auto found = range.kind == kind ? into.find(range.name) : into.end();
    if (found == into.end()) return;
    cast(Elements(found->second.dtype, element(found->second, range.first), values.elements), values);
  });
  const auto ranks = static_cast<std::size_t>(communicator_.size());
  if (ranks == 1) return;
  constexpr std::size_t kBlock = 1 << 20;
  std::vector<std::byte> all(kBlock * ranks);
  for (const auto& [name, count] : elements_of) {
    const ClientTensor& tensor = into.at(name);
    const std::span<std::byte> bytes(element(tensor, 0), bytes_for(tensor.dtype, count).count());
    for (std::size_t first = 0; first < bytes.size(); first += kBlock) {
      const std::span<std::byte> mine = bytes.subspan(first, std::min(kBlock, bytes.size() - first));
      communicator_.all_gather_bytes(mine, std::span(all).first(mine.size() * ranks));
      for (std::size_t i = 0; i < mine.size(); ++i) {
        for (std::size_t rank = 0; rank < ranks; ++rank) mine[i] |= all[rank * mine.size() + i];
      }
    }
  }
}

void Engine::write_state(const StepState& step_state, const std::map<StateKind, ClientTensors>& from) {
  begun_ = 0;
  optimizer_.load_state(step_state, [&](const StateRange& range, const Elements& values) {
    const ClientTensor& tensor = find(from.at(range.kind), range.name, name(range.kind));
    cast(values, ConstElements(tensor.dtype, element(tensor, range.first), values.elements));
  });
}

std::string Engine::save(const std::string& folder, const SaveOptions& options) {
  return save_checkpoint(optimizer_, communicator_, files_, folder, options);
}

void Engine::save_in_background(const std::string& folder, const SaveOptions& options) {
  if (!background_) {
    succeed_together(communicator_, folder, [&] {
      background_ = std::make_unique<BackgroundSave>(optimizer_, communicator_, files_, device_);
    });
  }
  background_->start(folder, options);
}

std::optional<std::string> Engine::finish_save(bool wait) {
  if (!background_) return "";
  if (wait) background_->finish();
  if (!background_->poll()) return std::nullopt;
  return background_->published();
}

LoadReport Engine::load(const std::string& folder) {
  begun_ = 0;
  return load_checkpoint(optimizer_, communicator_, files_, folder);
}

}  // namespace shardplan::python
