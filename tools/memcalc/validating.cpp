#include "tools/memcalc/validating.h"

#include <fmt/format.h>

#include <algorithm>
#include <boost/json.hpp>
#include <cmath>
#include <filesystem>

#include "base/error.h"
#include "planner/formats/file.h"
#include "planner/formats/megatron_args.h"
#include "tools/memcalc/config_files.h"
#include "tools/memcalc/measured_programs.h"
#include "tools/memcalc/planning.h"
#include "tools/memcalc/simumax_run.h"

namespace shardplan::memcalc {
namespace {

namespace json = boost::json;

constexpr double kGiB = 1024.0 * 1024.0 * 1024.0;

struct Measured {
  PlanOptions options;
  Model model;
  MegatronMachine machine;
};

// What a rank of this stage holds.
DeviceMemory device_at(const Measured& run, const std::vector<RankKind>& kinds, std::size_t stage) {
  const Sized sized = size_kind(run.options, kinds[stage].catalog);
  const ClientSide client = client_of_rank(run.model, kinds[stage].catalog, run.options.setup,
                                           run.options.whole_client(), stage, run.machine);
  if (!client.holds) throw NotPredicted(client.unknown_because);
  DeviceMemory device = sized.report.ranks.front().device;
  add_client(device, engine_holds(run.options, sized), *client.holds);
  return device;
}

// The program of a test of Megatron-LM's, which its folder names.
std::string script_of(const std::string& id, const json::object& arguments) {
  for (const auto& [option, why] :
       {std::pair{"use-megatron-fsdp", "Megatron's FSDP gathers and buffers beside activations"},
        {"cuda-graph-impl", "CUDA graphs have pools of their own"}}) {
    if (arguments.contains(option)) throw NotPredicted(why);
  }
  constexpr std::string_view kPrefix = "megatron/";
  const std::string rest = id.starts_with(kPrefix) ? id.substr(kPrefix.size()) : id;
  const std::string kind = rest.substr(0, rest.find('/'));
  if (kind == "mimo" || kind.starts_with("multimodal")) throw NotPredicted("a vision tower is not among the arguments");
  if (kind == "bert" || kind == "t5") return "pretrain_" + kind + ".py";
  return kind == "hybrid" || kind == "nemotron" ? "pretrain_hybrid.py" : "pretrain_gpt.py";
}

// As --megatron-args takes it. `world`: all ranks; 0 where the row does not say.
Measured run_of(const json::object& arguments, const json::value& environment, const std::string& id,
                const std::string& script, std::uint64_t world) {
  json::object file{{"args", arguments}, {"env", environment}, {"script", script}};
  if (world > 0) file["world_size"] = world;
  const std::string text = json::serialize(file);
  Measured run;
  run.options = options_of(read_megatron_args(text, id));
  run.model = run.options.megatron->model;
  run.machine.cublas_workspace_config = run.options.megatron->environment.cublas_workspace_config;
  return run;
}

// The mesh of a row that resumed on another one than its arguments say.
void set_mesh(const json::object& row, Setup& setup) {
  setup.parallel.tensor = count_of(row, "tp", setup.parallel.tensor);
  setup.parallel.pipeline = count_of(row, "pp", setup.parallel.pipeline);
  setup.world_size = count_of(row, "dp", data_parallel(setup)) * count_of(row, "cp", setup.parallel.context);
}

void add_megatron(const json::object& row, const std::string& file, Validation& validation) {
  const std::string id = text_of(row, "id");
  const json::object& arguments = row.at("args").as_object();
  const json::value* environment = row.if_contains("env");
  json::object whole = arguments;
  const std::uint64_t world = count_of(row, "world_size", 0);
  Measured run = run_of(arguments, environment != nullptr ? *environment : json::value(json::object()), id,
                        script_of(id, arguments), world);
  if (world > 0) set_mesh(row, run.options.setup);
  const std::string gpu = text_of(row, "gpu");
  const auto generation = generation_of_gpu(gpu.substr(0, gpu.find(' ')));
  if (!generation) throw NotPredicted(fmt::format("the GPU '{}' is not known", gpu));
  run.machine.generation = *generation;
  const std::vector<RankKind> kinds = planned_kinds(run.options, run.model);
  const DeviceMemory device = device_at(run, kinds, kinds.size() - 1);
  const auto add = [&](const char* key, const char* field, std::optional<Bytes> predicted) {
    const std::uint64_t measured = count_of(row, key, 0);
    if (measured == 0 || !predicted) return;
    validation.rows.push_back({.file = file,
                               .id = id,
                               .field = field,
                               .measured = static_cast<double>(measured),
                               .predicted = static_cast<double>(predicted->count()),
                               .peer = {}});
  };
  add("allocated_bytes_end", "allocated_after_step", device.allocated_after_step);
  add("peak_allocated_bytes", "peak_allocated", device.peak_allocated);
}

std::uint64_t ranks_of_axis(const std::string& parallel, const std::string& axis) {
  const std::size_t found = parallel.find(axis);
  return found == std::string::npos ? 1 : std::stoull(parallel.substr(found + axis.size()));
}

void add_simumax(const json::object& row, const std::string& file, Validation& validation) {
  const json::object& config = row.at("config").as_object();
  const std::string name = text_of(row, "model");
  if (name != "llama3-70b" && name != "llama3-405b") throw NotPredicted(fmt::format("model {} is not known", name));
  const std::string parallel = text_of(config, "parallel");
  const SimuMaxRun published{.large = name == "llama3-405b",
                             .layers = count_of(config, "layers", 12),
                             .tensor = ranks_of_axis(parallel, "tp"),
                             .pipeline = ranks_of_axis(parallel, "pp"),
                             .context = count_of(config, "cp", 1),
                             .sequence = count_of(config, "seq", 4096),
                             .micro_batch = count_of(config, "mbs", 1),
                             .micro_batches = count_of(config, "micro_batch_num", 1),
                             .world_size = count_of(config, "world_size", 8)};
  Measured run = run_of(simumax_arguments(published), simumax_environment(), text_of(config, "case"), "pretrain_gpt.py",
                        published.world_size);
  run.machine.generation = GpuGeneration::blackwell;
  const std::vector<RankKind> kinds = planned_kinds(run.options, run.model);
  Bytes fullest;
  for (std::size_t stage = 0; stage < kinds.size(); ++stage) {
    fullest = std::max(fullest, *device_at(run, kinds, stage).peak_allocated);
  }
  const json::value* peer = row.if_contains("predicted");
  validation.rows.push_back(
      {.file = file,
       .id = text_of(config, "case"),
       .field = "peak_allocated",
       .measured = row.at("measured").to_number<double>() * kGiB,
       .predicted = static_cast<double>(fullest.count()),
       .peer = peer != nullptr && peer->is_number() ? std::optional(peer->to_number<double>() * kGiB) : std::nullopt});
}

void add_program(const json::object& row, const std::string& file, Validation& validation) {
  ProgramRun run = program_run(row);
  const Planned planned = make_planned(run.options, adapted(run.options, std::move(run.model)));
  const DeviceMemory& device = planned.worst().device;
  std::optional<Bytes> predicted = run.field == "peak_reserved" ? device.peak_reserved : device.peak_allocated;
  if (!predicted) throw NotPredicted(planned.report.notes.empty() ? "not known" : planned.report.notes.back());
  *predicted += run.beside;
  validation.rows.push_back({.file = file,
                             .id = text_of(row, "id"),
                             .field = run.field,
                             .measured = run.measured,
                             .predicted = static_cast<double>(predicted->count()),
                             .peer = {}});
}

std::string id_of(const json::object& row) {
  if (const std::string id = text_of(row, "id"); !id.empty()) return id;
  const json::value* config = row.if_contains("config");
  if (config != nullptr && config->is_object()) {
    if (const std::string name = text_of(config->as_object(), "case"); !name.empty()) return name;
  }
  const std::string model = text_of(row, "model");
  return model.empty() ? "a row without id" : model;
}

void add_row(const json::value& value, const std::string& file, Validation& validation) {
  if (!value.is_object()) throw ConfigError(file, "", "expected an array of objects");
  const json::object& row = value.as_object();
  try {
    if (row.contains("args") && row.at("args").is_object()) {
      add_megatron(row, file, validation);
    } else if (text_of(row, "quantity").starts_with("peak allocated") && row.contains("config")) {
      add_simumax(row, file, validation);
    } else if (!text_of(row, "framework").empty()) {
      add_program(row, file, validation);
    } else {
      throw NotPredicted("a row of this kind is not known");
    }
  } catch (const NotPredicted& reason) {
    validation.skipped.push_back({file, id_of(row), reason.what()});
  } catch (const ConfigError& error) {
    validation.skipped.push_back({file, id_of(row), error.what()});
  }
}

std::vector<std::string> files_of(const std::vector<std::string>& paths) {
  std::vector<std::string> files;
  for (const std::string& path : paths) {
    if (!std::filesystem::is_directory(path)) {
      files.push_back(path);
      continue;
    }
    const std::size_t first = files.size();
    for (const auto& entry : std::filesystem::directory_iterator(path)) {
      if (entry.path().extension() == ".json") files.push_back(entry.path().string());
    }
    std::sort(files.begin() + static_cast<std::ptrdiff_t>(first), files.end());
  }
  return files;
}

// The smallest value that `part` of them do not exceed.
double quantile(const std::vector<double>& sorted, double part) {
  const auto count = static_cast<double>(sorted.size());
  return sorted[static_cast<std::size_t>(std::max(std::ceil(part * count), 1.0)) - 1];
}

ValidationSummary summary_of(std::vector<double> errors) {
  std::sort(errors.begin(), errors.end());
  return {errors.size(), quantile(errors, 0.5), quantile(errors, 0.9), errors.back()};
}

void summarize(Validation& validation) {
  std::map<std::string, std::map<std::string, std::vector<double>>> errors;
  for (const ValidatedRow& row : validation.rows) errors[row.file][row.field].push_back(std::abs(row.error_percent()));
  for (auto& [file, fields] : errors) {
    std::vector<double> all;
    for (auto& [field, values] : fields) {
      all.insert(all.end(), values.begin(), values.end());
      validation.summary[file].fields[field] = summary_of(std::move(values));
    }
    validation.summary[file].all = summary_of(std::move(all));
  }
}

}  // namespace

Validation make_validation(const ValidateOptions& options) {
  Validation validation;
  for (const std::string& path : files_of(options.paths)) {
    boost::system::error_code error;
    const json::value rows = json::parse(read_text(path), error);
    if (error || !rows.is_array()) throw ConfigError(path, "", "expected a JSON array of measured rows");
    const std::string file = std::filesystem::path(path).filename().string();
    for (const json::value& row : rows.as_array()) add_row(row, file, validation);
  }
  summarize(validation);
  return validation;
}

}  // namespace shardplan::memcalc
