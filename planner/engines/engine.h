// Engines that are not ours: what DeepSpeed, FSDP2 and Megatron hold, as a list of terms.
//
// A term is one buffer or one kind of buffer of that engine: how many bytes, on which tier, when in the step, and the
// place in the engine's source that allocates it. Report and explanation are both folds of the list, so they cannot
// disagree. An engine is a pure function of (catalog of one kind of rank, setup, options).
//
// Which ranks shard a tensor is data_ranks(setup, tensor) (planner/setup.h): experts may have fewer. Where ranks differ,
// a term is that of the rank that holds most, which is the first.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "planner/engines/options.h"
#include "planner/explain.h"
#include "planner/report.h"
#include "planner/tier.h"

namespace shardplan {

// When a term is held. A step has two moments that can be the worst: the end of the backward, and the update.
enum class Span : std::uint8_t {
  always,    // between steps too
  step,      // from the backward to the end of the update
  backward,  // until the backward has ended
  update,    // in the optimizer's step
};
std::string_view name(Span span);

struct Term {
  std::string name;
  MemoryClass memory_class = MemoryClass::parameters;
  Tier tier = Tier::device;
  Span span = Span::always;
  Bytes bytes;
  std::string formula;
  std::string inputs;
  std::string source;
};

struct EngineTerms {
  std::vector<Term> terms;  // none of 0 bytes
  // On the host of one node while the engine is set up; nothing where the engine has no part in it.
  std::optional<Bytes> initialization_peak;
  Traffic traffic;
  std::vector<std::string> notes;
};

// Throws ConfigError where the engine refuses the setup, and for an engine that has no terms (shardplan, paper). Which
// optimizers an engine runs, and how it holds their states, is said in its header.
EngineTerms terms_of(Engine engine, const Catalog& catalog, const Setup& setup, const EngineOptions& options);

// What is held at a moment (Span::backward or Span::update) on a tier.
Bytes held_at(const EngineTerms& terms, Span moment, Tier tier);

// The same on the device, by class; what is no engine's is nothing.
PeakMemory classes_held_at(const EngineTerms& terms, Span moment);

// The moment at which most is held on the device.
Span peak_moment(const EngineTerms& terms);
bool held(Span span, Span moment);  // whether a term of that span is held then

Report report_of(Engine engine, const Catalog& catalog, const Setup& setup, const EngineTerms& terms);

// The device's terms at the peak, which add up to the last line ("peak"); then those of the other tiers.
std::vector<Explanation> explain_terms(const EngineTerms& terms);

}  // namespace shardplan
