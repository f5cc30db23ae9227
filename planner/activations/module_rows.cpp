#include "planner/activations/module_rows.h"

#include <algorithm>
#include <map>
#include <string>
#include <utility>

#include "base/bytes.h"
#include "base/checked.h"
#include "planner/activations/activity.h"
#include "planner/activations/hf/hf_modules.h"
#include "planner/activations/profiles.h"
#include "planner/activations/tape.h"

namespace shardplan {
namespace {

using autograd::Tape;

// What the forward did in one unit.
struct UnitRows {
  std::map<std::string, std::uint64_t> elements;  // that the modules put out, by name; of several times the most
  std::vector<autograd::Attention> attention;     // in order
};

// Of each unit that the forward enters.
std::map<std::string, UnitRows> rows_of_units(const Tape& tape) {
  std::map<std::string, UnitRows> units;
  for (const autograd::TapeUnit& unit : tape.units()) units[unit.name];
  for (const autograd::Made& made : tape.made()) {
    const std::string& unit = tape.units()[made.unit].name;
    std::uint64_t& most = units[unit].elements[module_of(made.parameter, unit)];
    most = std::max(most, made.elements);
  }
  for (const autograd::Attention& attention : tape.attention()) {
    units[tape.units()[attention.unit].name].attention.push_back(attention);
  }
  return units;
}

// A kernel that is called for one part of the tokens after another, as towers do with windows: one call between as many pairs in all.
void join_calls(UnitRows& unit, const Modules& modules) {
  if (unit.attention.size() < 2) return;
  std::uint64_t most = 0;  // tokens that a module in this unit sees
  for (const Module& module : modules) {
    const auto noted = unit.elements.find(module.name);
    if (noted != unit.elements.end() && module.output != 0 && !module.routing)
      most = std::max(most, noted->second / module.output);
  }
  std::uint64_t queries = 0;
  std::uint64_t pairs = 0;
  for (const autograd::Attention& call : unit.attention) {
    queries = checked_add(queries, call.queries);
    pairs = checked_add(pairs, checked_multiply(call.queries, call.keys));
  }
  if (queries != most || unit.attention.front().queries == most) return;
  unit.attention = {{unit.attention.front().unit, queries, divide_up(pairs, queries), unit.attention.front().causal}};
}

std::vector<ModuleRows> rows_in(UnitRows unit, const Modules& modules) {
  join_calls(unit, modules);
  std::vector<ModuleRows> rows(modules.size());
  const auto attentions = static_cast<std::size_t>(
      std::count_if(modules.begin(), modules.end(), [](const Module& module) { return module.attention.has_value(); }));
  // More than once each where the unit is used again and again; else what was noted is not of these modules.
  const bool matched = attentions > 0 && unit.attention.size() % attentions == 0 && !unit.attention.empty();
  std::size_t attended = 0;
  for (std::size_t i = 0; i < modules.size(); ++i) {
    const Module& module = modules[i];
    if (module.attention && matched) {
      const autograd::Attention& attention = unit.attention[attended++];
      rows[i] = {attention.queries, attention.keys, attention.causal};
    }
    const auto noted = unit.elements.find(module.name);
    if (noted == unit.elements.end() || module.routing || module.output == 0) continue;
    rows[i].rows = noted->second / module.output;
  }
  std::uint64_t last = 0;
  for (ModuleRows& row : rows) {
    if (row.rows == 0) row.rows = last;
    last = row.rows;
  }
  const auto first = std::find_if(rows.begin(), rows.end(), [](const ModuleRows& row) { return row.rows > 0; });
  if (first != rows.end()) std::for_each(rows.begin(), first, [&](ModuleRows& row) { row.rows = first->rows; });
  return rows;
}

// A forward of one sample without what only decides how it is carried out: a loss in chunks sees the same tokens.
ClientSetup plain(ClientSetup client) {
  client.micro_batch = 1;
  client.recompute = RecomputeKind::none;
  client.loss = LossKind::eager;
  client.loss_chunks = 1;
  return client;
}

// Weights in the dtype that is computed in: under autocast products are of copies.
Setup alone(const Setup& setup) {
  Setup one;
  one.policy = setup.policy;
  if (autocasts(one.policy)) one.policy.parameter = one.policy.compute;
  return one;
}

}  // namespace

RowsOfModules rows_of_modules(const Model& model, const Setup& setup, const ClientSetup& client) {
  if (client.profile == Profile::megatron) return {};
  const Setup one = alone(setup);
  const ClientSetup sample = plain(client);
  if (!profile_refuses(model, model.catalog, one, sample).empty()) return {};
  Tape tape;
  try {
    run_profile(tape, model, model.catalog, one, sample);
  } catch (const autograd::NotModelled&) {
    return {};
  }
  const std::map<std::string, UnitRows> units = rows_of_units(tape);
  RowsOfModules rows;
  for (const ModuleRun& run : model.modules) {
    const std::string unit = run.numbered ? run.name + "." + std::to_string(run.first_number) : run.name;
    const auto found = units.find(unit);
    rows.push_back(found == units.end() ? std::vector<ModuleRows>() : rows_in(found->second, run.modules));
  }
  return rows;
}

}  // namespace shardplan
