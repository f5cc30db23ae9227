#include "tools/memcalc/engine_flags.h"

#include <fmt/format.h>

#include "base/error.h"
#include "planner/engines/deepspeed.h"

namespace shardplan::memcalc {
namespace {

// Where each class goes. The folder of file:FOLDER decides no bytes.
struct Offload {
  OffloadDevice optimizer = OffloadDevice::none;
  OffloadDevice parameters = OffloadDevice::none;
  OffloadDevice gradients = OffloadDevice::none;
  std::string optimizer_folder{};
  std::string parameters_folder{};
};

[[noreturn]] void refuse(const std::string& problem) {
  throw ConfigError("--offload", "", problem);
}

OffloadDevice device_of(const std::string& tier) {
  if (tier == "cpu") return OffloadDevice::cpu;
  if (tier == "file" || tier == "nvme" || tier.starts_with("file:") || tier.starts_with("nvme:")) {
    return OffloadDevice::nvme;
  }
  refuse(fmt::format("'{}' is no tier: expected cpu, file or file:FOLDER", tier));
}

std::string folder_of(const std::string& tier) {
  const std::size_t colon = tier.find(':');
  return colon == std::string::npos ? std::string() : tier.substr(colon + 1);
}

Offload parse(const std::string& text) {
  Offload offload;
  std::size_t begin = 0;
  while (begin <= text.size()) {
    const std::size_t end = std::min(text.find(',', begin), text.size());
    const std::string item = text.substr(begin, end - begin);
    const std::size_t equals = item.find('=');
    if (equals == std::string::npos) refuse(fmt::format("'{}' is not CLASS=TIER", item));
    const std::string what = item.substr(0, equals);
    OffloadDevice* device = what == "optimizer"    ? &offload.optimizer
                            : what == "parameters" ? &offload.parameters
                            : what == "gradients"  ? &offload.gradients
                                                   : nullptr;
    if (device == nullptr) refuse(fmt::format("'{}' is no class: expected optimizer, parameters or gradients", what));
    if (*device != OffloadDevice::none) refuse(fmt::format("{} is given twice", what));
    *device = device_of(item.substr(equals + 1));
    if (what == "optimizer") offload.optimizer_folder = folder_of(item.substr(equals + 1));
    if (what == "parameters") offload.parameters_folder = folder_of(item.substr(equals + 1));
    begin = end + 1;
  }
  return offload;
}

void apply_to_deepspeed(const Offload& offload, DeepSpeedOptions& options) {
  if (offload.gradients != OffloadDevice::none && offload.gradients != offload.optimizer) {
    refuse("deepspeed moves gradients with the optimizer states: expected the same tier for both");
  }
  options.offload_optimizer.device = offload.optimizer;
  options.offload_param.device = offload.parameters;
  if (!offload.optimizer_folder.empty()) options.offload_optimizer.nvme_path = offload.optimizer_folder;
  if (!offload.parameters_folder.empty()) options.offload_param.nvme_path = offload.parameters_folder;
}

void apply_to_fsdp2(const Offload& offload, Fsdp2Options& options) {
  for (const OffloadDevice device : {offload.optimizer, offload.parameters, offload.gradients}) {
    if (device == OffloadDevice::nvme) refuse("fsdp2 has no files: expected cpu");
  }
  if (offload.parameters == OffloadDevice::none) {
    refuse("fsdp2's CPUOffloadPolicy moves parameters, and gradients and states with them: expected parameters=cpu");
  }
  options.offload = true;
}

void apply_to_megatron(const Offload& offload, MegatronOptions& options) {
  if (offload.optimizer != OffloadDevice::cpu || offload.parameters != OffloadDevice::none ||
      offload.gradients != OffloadDevice::none) {
    refuse("megatron offloads optimizer states to the host and nothing else: expected optimizer=cpu");
  }
  options.optimizer_cpu_offload = true;
}

}  // namespace

namespace {

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

void apply_offload(const PlanOptions& options, EngineOptions& engine) {
  const Offload offload = parse(*options.offload);
  switch (options.engine) {
    case Engine::deepspeed:
      return apply_to_deepspeed(offload, engine.deepspeed);
    case Engine::fsdp2:
      return apply_to_fsdp2(offload, engine.fsdp2);
    case Engine::megatron:
      return apply_to_megatron(offload, engine.megatron);
    case Engine::shardplan:
    case Engine::paper:
      refuse(fmt::format("engine {} offloads nothing: expected --engine deepspeed, fsdp2 or megatron",
                         name(options.engine)));
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
    apply_offload(options, options.engine_options);
  } else {
    options.offload = offload_said(options.engine, options.engine_options);
  }
  if (options.engine == Engine::deepspeed) settle_dtypes(options, given);
}

bool offloads(const PlanOptions& options, std::string_view what) {
  if (!options.offload) return false;
  const std::string& text = *options.offload;
  for (std::size_t begin = 0; begin < text.size();) {
    if (std::string_view(text).substr(begin).starts_with(fmt::format("{}=", what))) return true;
    const std::size_t comma = text.find(',', begin);
    begin = comma == std::string::npos ? text.size() : comma + 1;
  }
  return false;
}

std::vector<std::optional<std::string>> offload_choices(const PlanOptions& options) {
  std::vector<std::optional<std::string>> choices{std::nullopt};
  for (const char* words : {"optimizer=cpu", "parameters=cpu", "optimizer=cpu,parameters=cpu"}) {
    PlanOptions offloaded = options;
    offloaded.offload = words;
    try {
      apply_engine_flags(offloaded, {});
      choices.emplace_back(words);
    } catch (const ConfigError&) {  // not this engine
    }
  }
  return choices;
}

}  // namespace shardplan::memcalc
