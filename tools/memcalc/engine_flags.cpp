#include "tools/memcalc/engine_flags.h"

#include <fmt/format.h>

#include "base/error.h"

namespace shardplan::memcalc {
namespace {

// Where each class goes. The folder of file:FOLDER decides no bytes.
struct Offload {
  OffloadDevice optimizer = OffloadDevice::none;
  OffloadDevice parameters = OffloadDevice::none;
  OffloadDevice gradients = OffloadDevice::none;
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

void apply_engine_flags(PlanOptions& options) {
  EngineOptions& engine = options.engine_options;
  if (options.engine != Engine::deepspeed) {
    const char* flag = engine.deepspeed.zero_hpz_partition_size != 1 ? "--hpz"
                       : engine.deepspeed.mics_shard_size != -1      ? "--mics"
                                                                     : nullptr;
    if (flag != nullptr) {
      throw ConfigError(flag, "", fmt::format("is deepspeed's: engine {} has none", name(options.engine)));
    }
  }
  if (!options.offload) return;
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

}  // namespace shardplan::memcalc
