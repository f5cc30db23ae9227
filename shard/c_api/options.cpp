#include "shard/c_api/options.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <optional>
#include <span>
#include <utility>

#include "base/error.h"
#include "planner/formats/json.h"
#include "planner/formats/near_names.h"

namespace shardplan::c_api {
namespace {

// What is read before it can be put together: the order of keys means nothing.
struct Draft {
  Options options;
  std::string precision = Policy{}.name;
  std::optional<DType> compute, parameter, gradient, accumulator, master, moment, wire;
  Hyperparameters hyperparameters;
  std::optional<JsonView> groups;
};

template <typename Target>
struct Key {
  std::string_view name;
  void (*read)(Target&, JsonView);
};

// null stands for the default.
template <typename Target>
void read_keys(Target& target, JsonView object, std::span<const Key<Target>> keys) {
  for (const JsonView member : object.members()) {
    const auto found =
        std::find_if(keys.begin(), keys.end(), [&](const auto& key) { return key.name == member.key(); });
    if (found == keys.end()) {
      std::vector<std::string> names;
      for (const auto& key : keys) names.emplace_back(key.name);
      member.fail(fmt::format("is not known; the nearest keys are {}",
                              fmt::join(near_names(member.key(), std::move(names), 3), ", ")));
    }
    if (!member.is_null()) found->read(target, member);
  }
}

template <typename Value>
Value word(JsonView view, std::initializer_list<std::pair<std::string_view, Value>> words) {
  std::vector<std::string> known;
  for (const auto& [text, value] : words) {
    if (view.is_string() && view.as_string() == text) return value;
    known.push_back(fmt::format("\"{}\"", text));
  }
  view.fail_expected(fmt::format("{}", fmt::join(known, " or ")));
}

// A table's own message about a name that it does not have.
template <typename Read>
auto named(JsonView view, const Read& read) {
  try {
    return read(view.as_string());
  } catch (const ConfigError& error) {
    if (error.source() == view.source()) throw;
    view.fail(error.problem());
  }
}

DType dtype(JsonView view) {
  const auto dtype = parse_dtype(view.as_string());
  if (!dtype) view.fail_expected(R"(a dtype, such as "bf16" or "fp32")");
  return *dtype;
}

double number(JsonView view, double smallest, double below, const char* expected) {
  const double value = view.as_number();
  if (!(value >= smallest && value < below)) view.fail_expected(expected);
  return value;
}

double non_negative(JsonView view) {
  return number(view, 0, INFINITY, "a number from 0");
}

double decay(JsonView view) {
  return number(view, 0, 1, "a number from 0 and below 1");
}

template <typename Target, Hyperparameters& (*values)(Target&)>
constexpr std::array<Key<Target>, 5> hyperparameter_keys() {
  return {{{"learning_rate", [](Target& t, JsonView v) { values(t).learning_rate = non_negative(v); }},
           {"beta1", [](Target& t, JsonView v) { values(t).beta1 = decay(v); }},
           {"beta2", [](Target& t, JsonView v) { values(t).beta2 = decay(v); }},
           {"eps", [](Target& t, JsonView v) { values(t).eps = non_negative(v); }},
           {"weight_decay", [](Target& t, JsonView v) { values(t).weight_decay = non_negative(v); }}}};
}

template <typename Target, std::size_t a, std::size_t b>
constexpr std::array<Key<Target>, a + b> joined(const std::array<Key<Target>, a>& first,
                                                const std::array<Key<Target>, b>& second) {
  std::array<Key<Target>, a + b> all{};
  std::copy(first.begin(), first.end(), all.begin());
  std::copy(second.begin(), second.end(), all.begin() + a);
  return all;
}

constexpr std::array<Key<ParameterGroup>, 1> kMatch{
    {{"match", [](ParameterGroup& group, JsonView v) { group.match = v.as_string(); }}}};
Hyperparameters& of_group(ParameterGroup& group) {
  return group.values;
}
constexpr auto kGroupKeys = joined(kMatch, hyperparameter_keys<ParameterGroup, of_group>());

constexpr std::array<Key<LossScaling>, 7> kScalingKeys{{
    {"rule", [](LossScaling&, JsonView) {}},  // read first: it brings the others' defaults
    {"initial", [](LossScaling& s, JsonView v) { s.initial = non_negative(v); }},
    {"growth", [](LossScaling& s, JsonView v) { s.growth = non_negative(v); }},
    {"backoff", [](LossScaling& s, JsonView v) { s.backoff = non_negative(v); }},
    {"window", [](LossScaling& s, JsonView v) { s.window = v.as_positive(); }},
    {"hysteresis", [](LossScaling& s, JsonView v) { s.hysteresis = v.as_positive(); }},
    {"minimum", [](LossScaling& s, JsonView v) { s.minimum = non_negative(v); }},
}};

LossScaleRule scaling_rule(JsonView view) {
  return word<LossScaleRule>(view, {{"constant", LossScaleRule::constant},
                                    {"torch", LossScaleRule::torch},
                                    {"deepspeed", LossScaleRule::deepspeed},
                                    {"megatron", LossScaleRule::megatron}});
}

LossScaling loss_scaling(JsonView view) {
  if (!view.is_object()) return default_scaling(scaling_rule(view));
  const JsonView rule = view["rule"];
  LossScaling scaling = default_scaling(rule.exists() ? scaling_rule(rule) : LossScaleRule::constant);
  read_keys<LossScaling>(scaling, view, kScalingKeys);
  return scaling;
}

Hyperparameters& of_draft(Draft& draft) {
  return draft.hyperparameters;
}

constexpr std::array<Key<Draft>, 29> kSetupKeys{{
    {"world_size", [](Draft& d, JsonView v) { d.options.setup.world_size = v.as_count(); }},
    {"replicate", [](Draft& d, JsonView v) { d.options.setup.replicate = v.as_count(); }},
    {"zero_stage", [](Draft& d, JsonView v) { d.options.setup.stage = static_cast<int>(v.as_count(3)); }},
    {"prefetch", [](Draft& d, JsonView v) { d.options.setup.prefetch = v.as_count(); }},
    {"grad_accum", [](Draft& d, JsonView v) { d.options.setup.accumulation = v.as_count(); }},
    {"cadence",
     [](Draft& d, JsonView v) {
       d.options.setup.cadence = word<Cadence>(v, {{"step", Cadence::step}, {"micro_batch", Cadence::micro_batch}});
     }},
    {"recompute",
     [](Draft& d, JsonView v) {
       d.options.setup.recompute = word<Recompute>(v, {{"none", Recompute::none}, {"full", Recompute::full}});
     }},
    {"transport",
     [](Draft& d, JsonView v) {
       d.options.setup.transport = word<Transport>(v, {{"direct", Transport::direct}, {"staged", Transport::staged}});
     }},
    {"reduction",
     [](Draft& d, JsonView v) {
       d.options.setup.reduction = word<Reduction>(v, {{"canonical", Reduction::canonical}, {"fast", Reduction::fast}});
     }},
    {"reduction_group", [](Draft& d, JsonView v) { d.options.setup.reduction_group = v.as_count(); }},
    {"precision", [](Draft& d, JsonView v) { d.precision = named(v, policy_named).name; }},
    {"compute_dtype", [](Draft& d, JsonView v) { d.compute = dtype(v); }},
    {"param_dtype", [](Draft& d, JsonView v) { d.parameter = dtype(v); }},
    {"grad_dtype", [](Draft& d, JsonView v) { d.gradient = dtype(v); }},
    {"grad_accum_dtype", [](Draft& d, JsonView v) { d.accumulator = dtype(v); }},
    {"master_dtype", [](Draft& d, JsonView v) { d.master = dtype(v); }},
    {"moment_dtype", [](Draft& d, JsonView v) { d.moment = dtype(v); }},
    {"wire_dtype", [](Draft& d, JsonView v) { d.wire = dtype(v); }},
    {"optimizer", [](Draft& d, JsonView v) { d.options.setup.optimizer = named(v, optimizer_named).kind; }},
    {"ema", [](Draft& d, JsonView v) { d.options.setup.ema = v.as_bool(); }},
    {"offload",
     [](Draft& d, JsonView v) {
       const OffloadWords words = named(v, parse_offload);
       d.options.setup.offload = words.offload;
       const std::string folder = named(v, [&](std::string_view) { return file_folder(words); });
       if (!folder.empty()) d.options.optimizer.offload.folder = folder;
     }},
    {"offload_threads",
     [](Draft& d, JsonView v) { d.options.optimizer.offload.threads = static_cast<int>(v.as_count(64)); }},
    {"offload_io",
     [](Draft& d, JsonView v) {
       d.options.optimizer.offload.io = word<FileIo>(v, {{"pread", FileIo::pread}, {"io_uring", FileIo::io_uring}});
     }},
    {"ema_decay", [](Draft& d, JsonView v) { d.options.optimizer.ema_decay = decay(v); }},
    {"groups", [](Draft& d, JsonView v) { d.groups = v; }},
    {"clip_norm", [](Draft& d, JsonView v) { d.options.optimizer.clip_norm = non_negative(v); }},
    {"clip",
     [](Draft& d, JsonView v) {
       d.options.optimizer.clip = word<ClipNorm>(v, {{"global", ClipNorm::global}, {"per_group", ClipNorm::per_group}});
     }},
    {"loss_scaling", [](Draft& d, JsonView v) { d.options.optimizer.loss_scaling = loss_scaling(v); }},
    {"freeze",
     [](Draft& d, JsonView v) {
       for (const JsonView glob : v.elements()) d.options.freeze.emplace_back(glob.as_string());
     }},
}};
constexpr auto kKeys = joined(kSetupKeys, hyperparameter_keys<Draft, of_draft>());

Policy policy_of(const Draft& draft) {
  Policy policy = policy_named(draft.precision);
  policy.compute = draft.compute.value_or(policy.compute);
  policy.parameter = draft.parameter.value_or(policy.parameter);
  policy.gradient = draft.gradient.value_or(policy.gradient);
  policy.gradient_accumulator = draft.accumulator.value_or(policy.gradient_accumulator);
  if (draft.master) policy.master = draft.master;
  policy.first_moment = draft.moment.value_or(policy.first_moment);
  policy.second_moment = draft.moment.value_or(policy.second_moment);
  // A gradient that is given another dtype travels as itself.
  policy.wire = draft.wire.value_or(draft.gradient.value_or(policy.wire));
  return policy;
}

std::vector<ParameterGroup> groups_of(const Draft& draft) {
  std::vector<ParameterGroup> groups;
  if (!draft.groups) return {{.match = "*", .values = draft.hyperparameters}};
  for (const JsonView entry : draft.groups->elements()) {
    ParameterGroup& group = groups.emplace_back(ParameterGroup{.match = "*", .values = draft.hyperparameters});
    read_keys<ParameterGroup>(group, entry, kGroupKeys);
  }
  if (groups.empty()) draft.groups->fail("expected one group or more");
  if (groups.size() > kMostGroups) draft.groups->fail(fmt::format("{} are more than {}", groups.size(), kMostGroups));
  return groups;
}

}  // namespace

Options parse_options(std::string_view json) {
  const JsonDocument document(json, "options");
  Draft draft;
  read_keys<Draft>(draft, document.root(), kKeys);
  draft.options.setup.policy = policy_of(draft);
  draft.options.optimizer.groups = groups_of(draft);
  validate(draft.options.setup);
  const LossScaler checked(draft.options.optimizer.loss_scaling);
  return std::move(draft.options);
}

}  // namespace shardplan::c_api
