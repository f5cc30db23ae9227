#include "tools/memcalc/together.h"

#include <fmt/format.h>

#include <algorithm>
#include <utility>

#include "base/error.h"
#include "tools/memcalc/plan_flags.h"

namespace shardplan::memcalc {
namespace {

std::optional<Bytes> sum_of(const std::optional<Bytes>& a, const std::optional<Bytes>& b) {
  if (!a || !b) return std::nullopt;
  return *a + *b;
}

// Adds a resident model to what another holds at its peak, by class; alignment and packing of its arena are workspace.
void add_resident(PeakMemory& held, const DeviceMemory& device, Bytes resident) {
  const auto add = [](std::optional<Bytes>& sum, Bytes bytes) { sum = sum.value_or(Bytes{}) + bytes; };
  add(held.parameters, device.parameters);
  add(held.gradients, device.gradients);
  add(held.optimizer_states, device.optimizer_states);
  add(held.workspace, resident - std::min(device.model_states(), resident));
}

class Turns {
 public:
  Turns(const std::vector<const RankReport*>& ranks, const std::vector<std::string>& names, Bytes libraries)
      : ranks_(ranks), names_(names), libraries_(libraries) {}

  RankReport together() const {
    if (ranks_.size() == 1) return *ranks_.front();
    RankReport all = *ranks_.front();
    for (std::size_t i = 1; i < ranks_.size(); ++i) add_what_stays(all, *ranks_[i]);
    DeviceMemory& device = all.device;
    device.live_peak = std::nullopt;
    device.peak_allocated = device.peak_reserved = device.total = std::nullopt;
    for (std::size_t i = 0; i < ranks_.size(); ++i) {
      if (!take_turn(i, device)) return without_peak(std::move(all));
    }
    for (const RankReport* rank : ranks_) {
      if (rank->device.context) device.context = std::max(device.context.value_or(Bytes{}), *rank->device.context);
    }
    device.total = sum_of(device.peak_reserved, device.context);
    return all;
  }

 private:
  void add_what_stays(RankReport& all, const RankReport& rank) const {
    DeviceMemory& device = all.device;
    device.parameters += rank.device.parameters;
    device.gradients += rank.device.gradients;
    device.optimizer_states += rank.device.optimizer_states;
    device.allocated_after_step = sum_of(device.allocated_after_step, resident_bytes(rank, libraries_));
    all.host.pinned = sum_of(all.host.pinned, rank.host.pinned);
    all.host.pageable = sum_of(all.host.pageable, rank.host.pageable);
    all.host.total = sum_of(all.host.total, rank.host.total);
    all.host.initialization_peak = std::nullopt;
    all.file = sum_of(all.file, rank.file);
    if (all.arenas && rank.arenas) {
      all.arenas = Arenas{.device = all.arenas->device + rank.arenas->device,
                          .pinned = all.arenas->pinned + rank.arenas->pinned,
                          .host = all.arenas->host + rank.arenas->host,
                          .file = all.arenas->file + rank.arenas->file};
    }
  }

  // Whether it is known what is held while model i computes.
  bool take_turn(std::size_t i, DeviceMemory& device) const {
    const DeviceMemory& own = ranks_[i]->device;
    if (!own.peak_allocated) return false;
    PeakMemory held = own.at_peak;
    Bytes others;
    for (std::size_t k = 0; k < ranks_.size(); ++k) {
      if (k == i) continue;
      const std::optional<Bytes> stays = resident_bytes(*ranks_[k], libraries_);
      if (!stays) return false;
      add_resident(held, ranks_[k]->device, *stays);
      others += *stays;
    }
    const Bytes peak = *own.peak_allocated + others;
    if (!device.peak_allocated || peak > *device.peak_allocated) {
      device.peak_allocated = peak;
      device.at_peak = held;
      device.peak_at = fmt::format("{} of {}", own.peak_at, names_[i]);
    }
    if (own.peak_reserved) {
      device.peak_reserved = std::max(device.peak_reserved.value_or(Bytes{}), *own.peak_reserved + others);
    }
    return true;
  }

  static RankReport without_peak(RankReport all) {
    all.device.peak_allocated = all.device.peak_reserved = all.device.context = all.device.total = std::nullopt;
    all.device.at_peak = {};
    all.device.peak_at.clear();
    return all;
  }

  const std::vector<const RankReport*>& ranks_;
  const std::vector<std::string>& names_;
  Bytes libraries_;
};

void add_notes(PlannedTogether& together) {
  std::vector<std::string>& notes = together.notes;
  for (const Planned& model : together.models) {
    for (const std::string& note : model.report.notes) {
      if (std::find(notes.begin(), notes.end(), note) == notes.end()) notes.push_back(note);
    }
  }
  notes.emplace_back(kTurnsNote);
}

}  // namespace

std::string name_beside_others(const Catalog& model) {
  return model.name + (trainable_elements(model) > 0 ? "" : " (frozen)");
}

std::optional<Bytes> resident_bytes(const RankReport& rank, Bytes libraries) {
  if (!rank.device.allocated_after_step) return std::nullopt;
  return *rank.device.allocated_after_step - (rank.device.peak_allocated ? libraries : Bytes{});
}

// Not all model states are there at once: gradients of one may be gone when the other computes.
Bytes least_together_bytes(const RankReport& together) {
  const DeviceMemory& device = together.device;
  if (device.total) return *device.total;
  if (device.peak_reserved) return *device.peak_reserved;
  return device.peak_allocated.value_or(device.model_states());
}

std::vector<PlanOptions> options_of_models(const PlanOptions& options) {
  std::vector<PlanOptions> of_models{options};
  for (const std::string& model : options.others) {
    PlanOptions& other = of_models.emplace_back(options);
    other.freeze.clear();
    set_model(other, model);
  }
  if (of_models.size() == 1) return of_models;
  for (PlanOptions& of_one : of_models) {
    of_one.others.clear();
    settle_frozen(of_one);
  }
  return of_models;
}

void settle_frozen(PlanOptions& of_one) {
  if (of_one.freeze.empty()) return;
  of_one.lora.reset();
  of_one.client.recompute = RecomputeKind::none;
  of_one.setup.recompute = Recompute::none;
}

RankReport rank_together(const std::vector<const RankReport*>& ranks, const std::vector<std::string>& names,
                         Bytes libraries) {
  return Turns(ranks, names, libraries).together();
}

PlannedTogether make_together(const PlanOptions& options) {
  std::vector<PlanOptions> of_models = options_of_models(options);
  std::vector<Model> models;
  for (const PlanOptions& of_one : of_models) models.push_back(read_planned_model(of_one));
  return make_together(std::move(of_models), models);
}

PlannedTogether make_together(std::vector<PlanOptions> options, const std::vector<Model>& models) {
  SHARDPLAN_CHECK(options.size() == models.size() && !models.empty(), "each model has a set-up");
  PlannedTogether together;
  together.options = std::move(options);
  std::vector<std::string> names;
  for (std::size_t i = 0; i < models.size(); ++i) {
    const PlanOptions& of_one = together.options[i];
    together.models.push_back(make_planned(of_one, models[i]));
    names.push_back(name_beside_others(models[i].catalog));
  }
  const Bytes libraries = shared_libraries(together.options.front());
  const std::size_t stages = together.models.front().report.ranks.size();
  for (std::size_t stage = 0; stage < stages; ++stage) {
    std::vector<const RankReport*> ranks;
    for (const Planned& model : together.models) {
      SHARDPLAN_CHECK(model.report.ranks.size() == stages, "as many kinds of ranks as stages");
      ranks.push_back(&model.report.ranks[stage]);
    }
    together.ranks.push_back(rank_together(ranks, names, libraries));
    if (least_together_bytes(together.ranks.back()) > least_together_bytes(together.ranks[together.worst]))
      together.worst = stage;
  }
  together.gpu = together.models.front().gpu;
  const RankReport& worst = together.ranks[together.worst];
  if (together.gpu && least_together_bytes(worst) > together.gpu->bytes) {
    together.fits = false;
  } else if (together.gpu && std::all_of(together.ranks.begin(), together.ranks.end(),
                                         [](const RankReport& rank) { return rank.device.total.has_value(); })) {
    together.fits = true;
  }
  add_notes(together);
  return together;
}

}  // namespace shardplan::memcalc
