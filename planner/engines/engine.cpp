#include "planner/engines/engine.h"

#include <fmt/format.h>

#include <algorithm>

#include "base/error.h"
#include "planner/engines/deepspeed.h"
#include "planner/engines/fsdp2.h"
#include "planner/engines/megatron.h"

namespace shardplan {
namespace {

template <typename Predicate>
Bytes sum(const EngineTerms& terms, Predicate&& counts) {
  Bytes bytes;
  for (const Term& term : terms.terms) {
    if (counts(term)) bytes += term.bytes;
  }
  return bytes;
}

Bytes most(const EngineTerms& terms, Tier tier) {
  return std::max(held_at(terms, Span::backward, tier), held_at(terms, Span::update, tier));
}

}  // namespace

std::string_view name(Span span) {
  switch (span) {
    case Span::always:
      return "always";
    case Span::step:
      return "during the step";
    case Span::backward:
      return "in the backward";
    case Span::update:
      return "in the update";
  }
  return "";
}

EngineTerms terms_of(Engine engine, const Catalog& catalog, const Setup& setup, const EngineOptions& options) {
  validate(setup);
  if (setup.optimizer_in_backward && engine != Engine::fsdp2) {
    throw ConfigError("--optimizer-in-backward", "",
                      fmt::format("engine {} updates in its step, once all gradients are there: expected --engine "
                                  "fsdp2 or paper",
                                  name(engine)));
  }
  switch (engine) {
    case Engine::deepspeed:
      return deepspeed_terms(catalog, setup, options);
    case Engine::fsdp2:
      return fsdp2_terms(catalog, setup, options.fsdp2);
    case Engine::megatron:
      return megatron_terms(catalog, setup, options.megatron);
    case Engine::shardplan:
    case Engine::paper:
      break;
  }
  throw ConfigError("--engine", "", fmt::format("{} is not described by terms", name(engine)));
}

bool held(Span span, Span moment) {
  return span == Span::always || span == Span::step || span == moment;
}

Span peak_moment(const EngineTerms& terms) {
  return held_at(terms, Span::update, Tier::device) > held_at(terms, Span::backward, Tier::device) ? Span::update
                                                                                                   : Span::backward;
}

Bytes held_at(const EngineTerms& terms, Span moment, Tier tier) {
  return sum(terms, [&](const Term& term) { return term.tier == tier && held(term.span, moment); });
}

PeakMemory classes_held_at(const EngineTerms& terms, Span moment) {
  const auto of = [&](MemoryClass memory_class) {
    return sum(terms, [&](const Term& term) {
      return term.tier == Tier::device && term.memory_class == memory_class && held(term.span, moment);
    });
  };
  PeakMemory peak;
  peak.parameters = of(MemoryClass::parameters);
  peak.gathered_parameters = of(MemoryClass::gathered_parameters);
  peak.gradients = of(MemoryClass::gradients);
  peak.optimizer_states = of(MemoryClass::optimizer_states);
  peak.communication_buffers = of(MemoryClass::communication_buffers);
  return peak;
}

Report report_of(Engine engine, const Catalog& catalog, const Setup& setup, const EngineTerms& terms) {
  Report report{.engine = engine, .ranks = {}, .traffic = terms.traffic, .notes = catalog.notes};
  report.notes.insert(report.notes.end(), terms.notes.begin(), terms.notes.end());
  RankReport rank;
  rank.count = setup.world_size;
  DeviceMemory& device = rank.device;
  const auto states = [&](MemoryClass memory_class) {
    return sum(terms, [&](const Term& term) {
      return term.tier == Tier::device && term.memory_class == memory_class && held(term.span, Span::backward);
    });
  };
  device.parameters = states(MemoryClass::parameters);
  device.gradients = states(MemoryClass::gradients);
  device.optimizer_states = states(MemoryClass::optimizer_states);
  device.allocated_after_step =
      sum(terms, [](const Term& term) { return term.tier == Tier::device && term.span == Span::always; });
  // A count alone has no tensors that could be gathered or reduced.
  if (!catalog.count_only) {
    device.live_peak = most(terms, Tier::device);
    device.peak_at = peak_moment(terms) == Span::update ? "the optimizer's update" : "the end of the backward";
    device.at_peak = classes_held_at(terms, peak_moment(terms));
  }
  rank.host.pinned = most(terms, Tier::pinned);
  rank.host.pageable = most(terms, Tier::pageable);
  rank.host.total = *rank.host.pinned + *rank.host.pageable;
  rank.host.initialization_peak = terms.initialization_peak;
  rank.file = most(terms, Tier::file);
  report.ranks.push_back(rank);
  return report;
}

std::vector<Explanation> explain_terms(const EngineTerms& terms) {
  const Span moment = peak_moment(terms);
  std::vector<Explanation> lines;
  const auto add = [&](const Term& term, const std::string& where) {
    lines.push_back({fmt::format("{}{}", where, term.name), term.bytes, term.formula,
                     fmt::format("{}; held {}", term.inputs, name(term.span)), term.source});
  };
  for (const Term& term : terms.terms) {
    if (term.tier == Tier::device && held(term.span, moment)) add(term, "");
  }
  const bool update = moment == Span::update;
  lines.push_back({"peak", held_at(terms, moment, Tier::device), "the lines above",
                   fmt::format("at {}", update ? "the optimizer's update" : "the end of the backward"),
                   "docs/memory_model.md, 'Other engines'"});
  for (const Term& term : terms.terms) {
    if (term.tier != Tier::device) add(term, fmt::format("{}: ", name(term.tier)));
  }
  for (const Term& term : terms.terms) {
    if (term.tier == Tier::device && !held(term.span, moment)) add(term, "not at the peak: ");
  }
  return lines;
}

}  // namespace shardplan
