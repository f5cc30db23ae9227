#include "tools/memcalc/export.h"

#include <fmt/format.h>

#include "base/error.h"
#include "planner/formats/ds_config_writer.h"

namespace shardplan::memcalc {
namespace {

void require_engine(const PlanOptions& options, Engine engine, const char* format) {
  if (options.engine == engine) return;
  throw ConfigError("--export", "",
                    fmt::format("{} is a file of engine {}: expected --engine {}, found {}", format, name(engine),
                                name(engine), name(options.engine)));
}

}  // namespace

void choose_engine_of_export(const std::set<std::string>& given, PlanOptions& options) {
  if (!options.export_format || given.contains("--engine")) return;
  switch (*options.export_format) {
    case ExportFormat::deepspeed:
      options.engine = Engine::deepspeed;
      break;
  }
}

void check_engine_of_export(const PlanOptions& options) {
  if (!options.export_format) return;
  switch (*options.export_format) {
    case ExportFormat::deepspeed:
      return require_engine(options, Engine::deepspeed, "deepspeed");
  }
}

std::string export_text(const PlanOptions& options) {
  switch (options.export_format.value()) {
    case ExportFormat::deepspeed:
      return ds_config_text(options.setup, options.engine_options.deepspeed, options.micro_batch);
  }
  throw ConfigError("--export", "", "is not a known format");
}

}  // namespace shardplan::memcalc
