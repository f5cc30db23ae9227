#include "tools/python/keywords.h"

#include <fmt/format.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <array>
#include <initializer_list>
#include <set>
#include <string>
#include <string_view>

#include "base/error.h"
#include "tools/memcalc/engine_flags.h"

namespace shardplan::python {
namespace {

namespace nb = nanobind;

std::string flag_of(std::string keyword) {
  std::replace(keyword.begin(), keyword.end(), '_', '-');
  return "--" + keyword;
}

template <typename Value>
std::optional<Value> find(const nb::dict& given, const char* keyword, const char* expected) {
  if (!given.contains(keyword)) return std::nullopt;
  Value value;
  if (!nb::try_cast(given[keyword], value)) {
    throw ConfigError(flag_of(keyword), "", fmt::format("{}: expected {}", nb::repr(given[keyword]).c_str(), expected));
  }
  return value;
}

std::optional<std::uint64_t> count(const nb::dict& given, const char* keyword) {
  return find<std::uint64_t>(given, keyword, "a whole number");
}

std::optional<std::string> text(const nb::dict& given, const char* keyword) {
  return find<std::string>(given, keyword, "a text");
}

std::vector<std::string> texts(const nb::dict& given, const char* keyword) {
  return find<std::vector<std::string>>(given, keyword, "a list of texts").value_or(std::vector<std::string>{});
}

template <typename Enum>
std::optional<Enum> word(const nb::dict& given, const char* keyword, std::initializer_list<Enum> known) {
  const auto given_word = text(given, keyword);
  if (!given_word) return std::nullopt;
  std::string names;
  for (const Enum value : known) {
    if (name(value) == *given_word) return value;
    names += fmt::format("{}{}", names.empty() ? "" : " or ", name(value));
  }
  throw ConfigError(flag_of(keyword), "", fmt::format("'{}' is not known: expected {}", *given_word, names));
}

Policy policy(const nb::dict& given) {
  Policy policy = policy_named(text(given, "precision").value_or("bf16-mixed"));
  const auto dtype = [&](const char* keyword) -> std::optional<DType> {
    const auto named = text(given, keyword);
    if (!named) return std::nullopt;
    if (const auto known = parse_dtype(*named)) return known;
    throw ConfigError(flag_of(keyword), "", fmt::format("'{}' is not a dtype: expected fp32, bf16, fp16, ...", *named));
  };
  policy.parameter = dtype("param_dtype").value_or(policy.parameter);
  if (const auto gradient = dtype("grad_dtype")) policy.gradient = policy.wire = *gradient;
  policy.gradient_accumulator = dtype("grad_accum_dtype").value_or(policy.gradient_accumulator);
  if (const auto master = dtype("master_dtype")) policy.master = master;
  if (const auto moment = dtype("moment_dtype")) policy.first_moment = policy.second_moment = *moment;
  policy.compute = dtype("compute_dtype").value_or(policy.compute);
  policy.wire = dtype("wire_dtype").value_or(policy.wire);
  return policy;
}

// Throws ConfigError for a keyword's value that would be no answer.
std::optional<std::uint64_t> positive(const nb::dict& given, const char* keyword) {
  const auto value = count(given, keyword);
  if (value && *value == 0) throw ConfigError(flag_of(keyword), "", "expected 1 or more");
  return value;
}

}  // namespace

Setup setup_of(const nb::dict& given) {
  Setup setup;
  setup.world_size = count(given, "gpus").value_or(setup.world_size);
  setup.replicate = count(given, "replicate").value_or(setup.replicate);
  setup.stage = find<int>(given, "zero", "0, 1, 2 or 3").value_or(setup.stage);
  setup.policy = policy(given);
  if (const auto optimizer = text(given, "optimizer")) setup.optimizer = optimizer_named(*optimizer).kind;
  setup.ema = find<bool>(given, "ema", "True or False").value_or(setup.ema);
  setup.prefetch = count(given, "prefetch").value_or(setup.prefetch);
  setup.accumulation = count(given, "grad_accum").value_or(setup.accumulation);
  setup.cadence = word(given, "cadence", {Cadence::micro_batch, Cadence::step});
  setup.recompute = word(given, "recompute", {Recompute::none, Recompute::full}).value_or(setup.recompute);
  setup.transport = word(given, "transport", {Transport::direct, Transport::staged}).value_or(setup.transport);
  setup.reduction = word(given, "reduction", {Reduction::canonical, Reduction::fast}).value_or(setup.reduction);
  setup.reduction_group = count(given, "reduction_group");
  validate(setup);
  return setup;
}

namespace {

std::set<std::string> flags_of(const nb::dict& given) {
  std::set<std::string> flags;
  for (const auto& item : given) flags.insert(flag_of(nb::cast<std::string>(item.first)));
  return flags;
}

}  // namespace

memcalc::PlanOptions plan_options(const nb::dict& given) {
  memcalc::PlanOptions options;
  options.model = text(given, "model").value_or("");
  options.parameters = text(given, "params");
  if (options.model.empty() == !options.parameters) {
    throw ConfigError("model", "",
                      options.parameters ? "a model and params exclude each other"
                                         : "expected a model (a preset, a file, a folder) or params");
  }
  options.freeze = texts(given, "freeze");
  options.engine = engine_named(text(given, "engine").value_or("shardplan"));
  options.setup = setup_of(given);
  options.gpus_per_node = positive(given, "gpus_per_node");
  options.gpu = text(given, "gpu");
  options.gpu_files = texts(given, "gpu_files");
  options.sequence = positive(given, "seq");
  options.micro_batch = positive(given, "micro_batch").value_or(1);
  options.offload = text(given, "offload");
  options.engine_options.deepspeed.zero_hpz_partition_size = count(given, "hpz").value_or(1);
  if (const auto ranks = find<std::int64_t>(given, "mics", "a whole number")) {
    options.engine_options.deepspeed.mics_shard_size = *ranks;
  }
  options.setup.parallel.vocabulary_multiple = options.engine == Engine::megatron ? 128 : 1;
  memcalc::apply_engine_flags(options, flags_of(given));
  return options;
}

memcalc::SimulateOptions simulate_options(const nb::dict& given) {
  memcalc::SimulateOptions options;
  options.cluster = text(given, "cluster");
  options.seed = count(given, "seed").value_or(0);
  options.faults = texts(given, "faults");
  options.compare_stages = find<bool>(given, "compare_stages", "True or False").value_or(false);
  options.trace = text(given, "trace");
  options.plot = text(given, "plot");
  return options;
}

}  // namespace shardplan::python
