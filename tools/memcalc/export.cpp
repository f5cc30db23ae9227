#include "tools/memcalc/export.h"

#include <fmt/format.h>

#include "base/error.h"
#include "planner/formats/accelerate_config.h"
#include "planner/formats/ds_config_writer.h"
#include "planner/formats/megatron_args.h"
#include "planner/formats/read_model.h"

namespace shardplan::memcalc {
namespace {

void require_engine(const PlanOptions& options, Engine engine, const char* format) {
  if (options.engine == engine) return;
  throw ConfigError("--export", "",
                    fmt::format("{} is a file of engine {}: expected --engine {}, found {}", format, name(engine),
                                name(engine), name(options.engine)));
}

std::string accelerate_text(const PlanOptions& options) {
  EngineOptions engine = options.engine_options;
  engine.gpus_per_node = options.node_gpus();
  return accelerate_config_text(options.engine, options.setup, engine);
}

// What the arguments do not say of a model is refused.
std::string megatron_text(const PlanOptions& options) {
  const auto refuse = [](const std::string& problem) { throw ConfigError("--export", "", "megatron: " + problem); };
  if (options.lora || options.quantize || !options.freeze.empty()) {
    refuse("what is frozen, adapted or quantised is not said by arguments");
  }
  if (options.parameters) refuse("a count of parameters is no model");
  const MegatronSizes sizes = options.megatron ? options.megatron->sizes : megatron_sizes_of(find_model(options.model));
  return megatron_args_text(sizes, options.setup, options.engine_options.megatron, options.client.expert_load,
                            options.micro_batch, options.sequence);
}

}  // namespace

void choose_engine_of_export(const std::set<std::string>& given, PlanOptions& options) {
  if (!options.export_format || given.contains("--engine")) return;
  switch (*options.export_format) {
    case ExportFormat::deepspeed:
      options.engine = Engine::deepspeed;
      break;
    case ExportFormat::fsdp:
      options.engine = Engine::fsdp2;
      break;
    case ExportFormat::megatron:
      options.engine = Engine::megatron;
      break;
    case ExportFormat::accelerate:  // has files of several engines
      break;
  }
}

void check_engine_of_export(const PlanOptions& options) {
  if (!options.export_format) return;
  switch (*options.export_format) {
    case ExportFormat::deepspeed:
      return require_engine(options, Engine::deepspeed, "deepspeed");
    case ExportFormat::fsdp:
      return require_engine(options, Engine::fsdp2, "fsdp");
    case ExportFormat::megatron:
      return require_engine(options, Engine::megatron, "megatron");
    case ExportFormat::accelerate:
      return;
  }
}

std::string export_text(const PlanOptions& options) {
  switch (options.export_format.value()) {
    case ExportFormat::deepspeed:
      return ds_config_text(options.setup, options.engine_options.deepspeed, options.micro_batch);
    case ExportFormat::fsdp:
    case ExportFormat::accelerate:
      return accelerate_text(options);
    case ExportFormat::megatron:
      return megatron_text(options);
  }
  throw ConfigError("--export", "", "is not a known format");
}

std::vector<std::string> export_notes(const PlanOptions& options) {
  std::vector<std::string> notes;
  const ClientSetup& client = options.client;
  const bool says_full = options.export_format != ExportFormat::deepspeed && options.engine != Engine::deepspeed;
  const bool said = client.recompute == RecomputeKind::none || (says_full && client.recompute == RecomputeKind::full);
  if (!said) {
    notes.push_back(fmt::format("the file does not say --recompute {}: the code that trains has to",
                                recompute_words(client.recompute, client.recompute_every)));
  }
  if (client.loss != LossKind::eager) {
    notes.push_back(fmt::format("the file does not say --loss {}: the code that trains has to",
                                loss_words(client.loss, client.loss_chunks)));
  }
  if (client.attention) {
    notes.push_back(
        fmt::format("the file does not say --attention {}: the code that trains has to", name(*client.attention)));
  }
  return notes;
}

}  // namespace shardplan::memcalc
