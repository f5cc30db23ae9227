#include "tools/memcalc/engine_flags.h"

#include <fmt/format.h>

#include "base/error.h"
#include "planner/engines/deepspeed.h"

namespace shardplan::memcalc {
namespace {

[[noreturn]] void refuse(const std::string& problem) {
  throw ConfigError("--offload", "", problem);
}

OffloadDevice device_of(const OffloadedClass& placed) {
  switch (placed.tier) {
    case Tier::device:
      return OffloadDevice::none;
    case Tier::file:
      return OffloadDevice::nvme;
    default:
      return OffloadDevice::cpu;
  }
}

void refuse_fraction(const OffloadedClass& placed, const char* who) {
  if (placed.fraction != 1) refuse(fmt::format("{} moves all of a class or nothing: expected no @FRACTION", who));
}

void apply_to_deepspeed(const OffloadWords& words, DeepSpeedOptions& options) {
  const Offload& offload = words.offload;
  if (offload.gradients.elsewhere() && offload.gradients.tier != offload.optimizer.tier) {
    refuse("deepspeed moves gradients with the optimizer states: expected the same tier for both");
  }
  for (const OffloadedClass& placed : {offload.gradients, offload.parameters}) refuse_fraction(placed, "deepspeed");
  options.offload_optimizer.device = device_of(offload.optimizer);
  options.offload_optimizer.ratio = offload.optimizer.fraction;
  options.offload_param.device = device_of(offload.parameters);
  if (!words.optimizer_folder.empty()) options.offload_optimizer.nvme_path = words.optimizer_folder;
  if (!words.parameters_folder.empty()) options.offload_param.nvme_path = words.parameters_folder;
}

void apply_to_fsdp2(const Offload& offload, Fsdp2Options& options) {
  for (const OffloadedClass& placed : {offload.optimizer, offload.parameters, offload.gradients}) {
    if (placed.tier == Tier::file) refuse("fsdp2 has no files: expected cpu");
    refuse_fraction(placed, "fsdp2");
  }
  if (!offload.parameters.elsewhere()) {
    refuse("fsdp2's CPUOffloadPolicy moves parameters, and gradients and states with them: expected parameters=cpu");
  }
  options.offload = true;
}

void apply_to_megatron(const Offload& offload, MegatronOptions& options) {
  if (offload.optimizer.tier != Tier::pinned || offload.parameters.elsewhere() || offload.gradients.elsewhere()) {
    refuse("megatron offloads optimizer states to the host and nothing else: expected optimizer=cpu");
  }
  options.optimizer_cpu_offload = true;
  options.optimizer_offload_fraction = offload.optimizer.fraction;
}

void refuse_flags_of_deepspeed(const PlanOptions& options) {
  const DeepSpeedOptions& deepspeed = options.engine_options.deepspeed;
  const char* flag = deepspeed.zero_hpz_partition_size != 1 ? "--hpz"
                     : deepspeed.mics_shard_size != -1      ? "--mics"
                                                            : nullptr;
  if (flag == nullptr) return;
  throw ConfigError(flag, "", fmt::format("is deepspeed's: engine {} has none", name(options.engine)));
}

// Of our own step plan: other engines have their own ways, which their own options say.
void refuse_flags_of_shardplan(const PlanOptions& options, const std::set<std::string>& given) {
  for (const char* flag : {"--prefetch", "--transport", "--reduction", "--reduction-group"}) {
    if (!given.contains(flag)) continue;
    throw ConfigError(flag, "",
                      fmt::format("is engine shardplan's: engine {} would not heed it", name(options.engine)));
  }
}

void apply_offload(PlanOptions& options) {
  const OffloadWords words = parse_offload(*options.offload);
  EngineOptions& engine = options.engine_options;
  switch (options.engine) {
    case Engine::deepspeed:
      if (options.setup.stage != 3) refuse_fraction(words.offload.optimizer, "deepspeed below stage 3");
      return apply_to_deepspeed(words, engine.deepspeed);
    case Engine::fsdp2:
      return apply_to_fsdp2(words.offload, engine.fsdp2);
    case Engine::megatron:
      return apply_to_megatron(words.offload, engine.megatron);
    case Engine::shardplan:
      (void)file_folder(words);  // one, as for the runtime
      options.setup.offload = words.offload;
      return;
    case Engine::paper:
      refuse("engine paper offloads nothing: expected --engine shardplan, deepspeed, fsdp2 or megatron");
  }
}

// As --offload would say it.
std::optional<std::string> offload_said(Engine engine, const EngineOptions& options) {
  std::string text;
  const auto add = [&](const char* what, OffloadDevice device) {
    if (device == OffloadDevice::none) return;
    text += fmt::format("{}{}={}", text.empty() ? "" : ",", what, device == OffloadDevice::cpu ? "cpu" : "nvme");
  };
  if (engine == Engine::deepspeed) {
    add("optimizer", options.deepspeed.offload_optimizer.device);
    add("parameters", options.deepspeed.offload_param.device);
  }
  if (engine == Engine::fsdp2 && options.fsdp2.offload) add("parameters", OffloadDevice::cpu);
  if (engine == Engine::megatron && options.megatron.optimizer_cpu_offload) add("optimizer", OffloadDevice::cpu);
  if (text.empty()) return std::nullopt;
  return text;
}

// The two dtypes that DeepSpeed is told beside the policy.
void settle_dtypes(PlanOptions& options, const std::set<std::string>& given) {
  DeepSpeedOptions& deepspeed = options.engine_options.deepspeed;
  const Policy& policy = options.setup.policy;
  if (given.contains("--grad-dtype")) deepspeed.grad_accum_dtype = policy.gradient;
  if (given.contains("--grad-accum-dtype")) deepspeed.grad_accum_dtype = policy.gradient_accumulator;
  if (given.contains("--wire-dtype")) {
    (options.setup.parallel.context > 1 ? deepspeed.seq_parallel_communication_data_type
                                        : deepspeed.communication_data_type.emplace()) = policy.wire;
  }
  settle_deepspeed(options.setup, deepspeed);
}

}  // namespace

void apply_engine_flags(PlanOptions& options, const std::set<std::string>& given) {
  if (options.engine != Engine::deepspeed) refuse_flags_of_deepspeed(options);
  if (options.engine != Engine::shardplan) refuse_flags_of_shardplan(options, given);
  if (options.offload) {
    apply_offload(options);
  } else {
    options.offload = offload_said(options.engine, options.engine_options);
  }
  if (options.engine == Engine::deepspeed) settle_dtypes(options, given);
}

}  // namespace shardplan::memcalc
