// Against measured runs (SHARDPLAN_GOLDEN): Megatron-LM's own functional tests, on a rank of the last pipeline stage, and
// SimuMax's runs on B200. Every row whose arguments can be read is predicted; the others are listed with the reason.
#include <fmt/format.h>
#include <fmt/ranges.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <boost/json.hpp>
#include <cmath>
#include <cstdlib>
#include <deque>
#include <fstream>
#include <iostream>
#include <sstream>

#include "base/error.h"
#include "planner/activations/allocator.h"
#include "planner/activations/client_rank.h"
#include "planner/activations/pipeline.h"
#include "planner/activations/profiles.h"
#include "planner/engines/megatron.h"
#include "planner/formats/megatron_args.h"
#include "planner/parallel.h"
#include "tools/memcalc/simumax_run.h"

namespace shardplan {
namespace {

namespace json = boost::json;

constexpr double kMiB = 1024.0 * 1024.0;

json::value read_golden(const std::string& name) {
  const char* folder = std::getenv("SHARDPLAN_GOLDEN");
  EXPECT_NE(folder, nullptr);
  std::ifstream file(std::string(folder) + "/measured/" + name);
  EXPECT_TRUE(file.good()) << folder << " " << name;
  std::stringstream text;
  text << file.rdbuf();
  return json::parse(text.str());
}

std::uint64_t number(const json::value& value) {
  return value.to_number<std::uint64_t>();
}

template <typename T>
void take(const Saying<T>& from, T& to) {
  if (from) to = from->value;
}

struct MeasuredRun {
  Model model;
  Setup setup;
  ClientSetup client;
  MegatronOptions options;
  MegatronMachine machine;
  AllocatorOptions allocator;
};

// What a user gets from `--megatron-args FILE`. `world`: ranks of the data and context axes.
MeasuredRun run_of(const std::string& text, const std::string& name, std::uint64_t world) {
  MegatronRun read = read_megatron_args(text, name);
  const JsonDocument document(text, name);
  const JsonView environment = document.root()["env"];
  MeasuredRun run;
  run.client = read.client;
  run.model = std::move(read.model);
  const TrainingConfig& config = read.config;
  Setup& setup = run.setup;
  setup.policy = policy_named(config.precision ? config.precision->value : "bf16-mixed-fp32grad");
  setup.world_size = world;
  take(config.stage, setup.stage);
  take(config.optimizer, setup.optimizer);
  Parallelism& p = setup.parallel;
  take(config.tensor, p.tensor);
  take(config.pipeline, p.pipeline);
  take(config.context, p.context);
  take(config.expert, p.expert);
  if (config.expert_tensor) p.expert_tensor = config.expert_tensor->value;
  take(config.virtual_stages, p.virtual_stages);
  take(config.sequence_parallel, p.sequence_parallel);
  take(config.embedding_is_a_layer, p.embedding_is_a_layer);
  take(config.loss_is_a_layer, p.loss_is_a_layer);
  take(config.vocabulary_multiple, p.vocabulary_multiple);
  setup.accumulation = resolve_batch(config, data_parallel(setup)).accumulation;
  run.options = *config.megatron;
  if (const JsonView cublas = environment["CUBLAS_WORKSPACE_CONFIG"]; cublas.exists()) {
    run.machine.cublas_workspace_config = std::string(cublas.as_string());
  }
  if (const JsonView torch = environment["PYTORCH_CUDA_ALLOC_CONF"]; torch.exists()) {
    run.allocator.expandable_segments = torch.as_string().find("expandable_segments:True") != std::string_view::npos;
  }
  return run;
}

struct Prediction {
  double after_step = 0;
  double peak = 0;
  // With the slack of the allocator's blocks.
  double replayed_after_step = 0;
  double replayed_peak = 0;
  double replayed_reserved = 0;
  std::string detail;
};

// Model states as blocks: buffers for parameters and gradients, a tensor for each parameter's master and moments.
std::vector<Bytes> blocks_of_states(const MeasuredRun& run, const Catalog& held) {
  const EngineTerms terms = megatron_terms(held, run.setup, run.options);
  std::vector<Bytes> blocks;
  Bytes states;
  for (const Term& term : terms.terms) {
    if (term.span != Span::always || term.tier != Tier::device) continue;
    if (term.memory_class == MemoryClass::optimizer_states)
      states += term.bytes;
    else
      blocks.push_back(term.bytes);
  }
  const double part = static_cast<double>(states.count()) / static_cast<double>(trainable_elements(held)) / 3;
  for_each_tensor(held, [&](const std::string&, const Tensor& tensor) {
    if (!tensor.trainable || !tensor.tied_to.empty()) return;
    const Bytes bytes{static_cast<std::uint64_t>(part * static_cast<double>(elements(tensor.shape)))};
    blocks.insert(blocks.end(), 3, bytes);
  });
  return blocks;
}

// Of the rank `kind`, by stage.
Prediction predict(const MeasuredRun& run, std::size_t stage, bool verbose) {
  const RankKind kind = kinds_of_ranks(run.model, run.setup).at(stage);
  const Report report =
      report_of(Engine::megatron, kind.catalog, run.setup, megatron_terms(kind.catalog, run.setup, run.options));
  const double states = static_cast<double>(report.ranks.front().device.model_states().count());
  if (const std::string why = megatron_refuses(run.model, kind.catalog); !why.empty())
    throw ConfigError("model", "", why);
  ReplayedRank rank{.resident = blocks_of_states(run, kind.catalog), .in_step = {}, .chunks = {}};
  Prediction result;
  result.after_step = result.peak = states;
  double only_between_steps = 0;
  for (const ClientTerm& term : megatron_client_terms(run.model, kind.catalog, run.setup, run.client, run.machine)) {
    const auto bytes = static_cast<double>(term.bytes.count());
    if (term.after_step) result.after_step += bytes;
    if (term.at_peak) result.peak += bytes;
    if (term.at_peak) (term.after_step ? rank.resident : rank.in_step).push_back(term.bytes);
    if (!term.at_peak) only_between_steps += bytes;
    if (verbose) result.detail += fmt::format("    {} {:.4f}\n", term.name, bytes / kMiB);
  }
  std::vector<Activity> activities;
  std::deque<autograd::Tape> tapes;
  for (const Catalog& chunk : chunks_of(run.model, kind.catalog, run.setup.parallel, stage)) {
    const ActivityResult activity = activity_of(run.model, chunk, run.setup, run.client, {.keeps_gradients = false});
    if (!activity.activity) throw ConfigError("activities", "", activity.unknown_because);
    activities.push_back(*activity.activity);
    run_megatron(tapes.emplace_back(autograd::TapeOptions{.folds = false, .keeps_gradients = false}), run.model, chunk,
                 run.setup, run.client);
    if (!verbose) continue;
    for (const SavedByUnit& unit : activity.activity->saved) {
      result.detail +=
          fmt::format("      {} x{} {:.4f}\n", unit.unit, unit.times, static_cast<double>(unit.bytes.count()) / kMiB);
      for (const SavedTensor& tensor : unit.tensors) {
        result.detail += fmt::format("          {} [{}] {:.4f}\n", tensor.operation, fmt::join(tensor.shape, ","),
                                     static_cast<double>(tensor.bytes.count()) / kMiB);
      }
    }
  }
  const PipelinePeak peak = peak_of(activities, run.setup.parallel, stage, run.setup.accumulation);
  result.peak += static_cast<double>(sum(peak.peak.held));
  // The same in the form that plans use.
  const ClientSide whole = client_of_rank(run.model, kind.catalog, run.setup, run.client, stage, run.machine);
  EXPECT_EQ(static_cast<double>(sum(whole.holds->peak.held) + sum(whole.holds->resident_at_peak)),
            result.peak - states);
  EXPECT_EQ(static_cast<double>(sum(whole.holds->resident_after_step)), result.after_step - states);
  for (const autograd::Tape& tape : tapes) rank.chunks.push_back(&tape);
  const ReplayedBytes replayed = replay_steps(rank, run.setup.parallel, stage, run.setup.accumulation, run.allocator);
  result.replayed_after_step = static_cast<double>(replayed.allocated_after_step.count()) + only_between_steps;
  result.replayed_peak = static_cast<double>(replayed.peak_allocated.count());
  result.replayed_reserved = static_cast<double>(replayed.peak_reserved.count());
  // The replay holds what the walk does, to the byte: nothing is counted twice or lost.
  EXPECT_NEAR(static_cast<double>(replayed.peak_requested.count()), result.peak, 1e-4 * result.peak);
  result.detail += fmt::format(
      "    activities {:.3f} in {} of {}, chunks held {}\n", static_cast<double>(sum(peak.peak.held)) / kMiB,
      peak.peak.pass == autograd::Pass::forward ? "forward" : "backward", peak.peak.unit, fmt::join(peak.held, " "));
  return result;
}

bool verbose_for(const std::string& id) {
  const char* wanted = std::getenv("MEGATRON_VERBOSE");
  return wanted != nullptr && id.find(wanted) != std::string::npos;
}

double quantile(std::vector<double> values, double part) {
  std::sort(values.begin(), values.end());
  return values.at(static_cast<std::size_t>(std::ceil(part * static_cast<double>(values.size()))) - 1);
}

// The program of a row, from the folder of its test. Throws ConfigError for what no one claims to know.
std::string script_of(const json::object& row) {
  const std::string id(row.at("id").as_string());
  const json::object& arguments = row.at("args").as_object();
  for (const auto& [option, why] : {std::pair{"use-megatron-fsdp", "its FSDP gathers and buffers beside activations"},
                                    {"cuda-graph-impl", "CUDA graphs have pools of their own"}}) {
    if (arguments.contains(option)) throw ConfigError(option, "", why);
  }
  const std::string kind = id.substr(9, id.find('/', 9) - 9);
  if (kind == "mimo" || kind.starts_with("multimodal"))
    throw ConfigError(kind, "", "a vision tower is not among the arguments");
  if (kind == "bert" || kind == "t5") return "pretrain_" + kind + ".py";
  return kind == "hybrid" || kind == "nemotron" ? "pretrain_hybrid.py" : "pretrain_gpt.py";
}

// Where the row's last set-up differs from the arguments (runs that resume on another mesh).
MeasuredRun run_of_row(const json::object& row) {
  const std::string text = json::serialize(
      json::object{{"args", row.at("args")}, {"env", row.at("env")}, {"script", json::string(script_of(row))}});
  MeasuredRun run = run_of(text, std::string(row.at("id").as_string()), number(row.at("dp")) * number(row.at("cp")));
  const std::string gpu(row.at("gpu").as_string());
  run.machine.generation = generation_of_gpu(gpu.substr(0, gpu.find(' '))).value();
  run.setup.parallel.tensor = number(row.at("tp"));
  run.setup.parallel.pipeline = number(row.at("pp"));
  return run;
}

TEST(MegatronActivationsGolden, FunctionalTests) {
  std::vector<double> peaks;
  std::vector<double> replayed;
  std::size_t after_step_holds = 0;
  std::size_t replayed_after_step_holds = 0;
  std::size_t skipped = 0;
  const json::value rows = read_golden("megatron.json");
  std::size_t index = 0;
  for (const json::value& value : rows.as_array()) {
    const json::object& row = value.as_object();
    const std::string id(row.at("id").as_string());
    try {
      const MeasuredRun run = run_of_row(row);
      const Prediction predicted = predict(run, run.setup.parallel.pipeline - 1, verbose_for(id));
      const auto end = static_cast<double>(number(row.at("allocated_bytes_end")));
      const auto peak = static_cast<double>(number(row.at("peak_allocated_bytes")));
      const double end_off = predicted.after_step - end;
      const double replayed_end_off = predicted.replayed_after_step - end;
      const double peak_percent = 100.0 * (predicted.peak - peak) / peak;
      std::cout << fmt::format(
          "{:2} {} {:.1f} end {:+.2f} MiB ({:+.2f} %), replayed {:+.2f} MiB | peak {:.1f} {:+.2f} MiB ({:+.2f} %), "
          "replayed {:+.2f} MiB\n",
          index, id.substr(9, 90), end / kMiB, end_off / kMiB, 100 * end_off / end, replayed_end_off / kMiB,
          peak / kMiB, (predicted.peak - peak) / kMiB, peak_percent, (predicted.replayed_peak - peak) / kMiB);
      replayed.push_back(std::abs(100 * (predicted.replayed_peak - peak) / peak));
      if (verbose_for(id)) std::cout << predicted.detail;
      peaks.push_back(std::abs(peak_percent));
      if (std::abs(end_off) <= std::max(0.01 * end, 16 * kMiB)) ++after_step_holds;
      if (std::abs(replayed_end_off) <= std::max(0.01 * end, 16 * kMiB)) ++replayed_after_step_holds;
    } catch (const Error& error) {
      ++skipped;
      std::cout << fmt::format("{:2} {}: not predicted: {}\n", index, id, error.what());
    }
    ++index;
  }
  std::cout << fmt::format(
      "{} rows, {} not predicted; end holds for {}, replayed for {}; peak: median {:.2f} %, 90th percentile {:.2f} %; "
      "replayed {:.2f} %, {:.2f} %\n",
      index, skipped, after_step_holds, replayed_after_step_holds, quantile(peaks, 0.5), quantile(peaks, 0.9),
      quantile(replayed, 0.5), quantile(replayed, 0.9));
  EXPECT_LE(4 * skipped, index);
  EXPECT_GE(10 * after_step_holds, 8 * peaks.size());
  EXPECT_LE(quantile(peaks, 0.5), 2.0);
  EXPECT_LE(quantile(peaks, 0.9), 8.0);
  // Replayed, most of the rest is the slack of blocks.
  EXPECT_GE(10 * replayed_after_step_holds, 8 * peaks.size());
  EXPECT_LE(quantile(replayed, 0.5), 0.5);
  EXPECT_LE(quantile(replayed, 0.9), 2.0);
}

// A published run and the peak of its fullest rank.
struct SimuMaxRow {
  SimuMaxRun run;
  double gib = 0;
};

MeasuredRun measured_run(const SimuMaxRun& published) {
  const json::object file{{"args", simumax_arguments(published)}, {"env", simumax_environment()}};
  MeasuredRun run = run_of(json::serialize(file), "simumax", published.data() * published.context);
  run.machine.generation = GpuGeneration::blackwell;
  return run;
}

// Of the fullest rank.
Prediction worst_stage(const MeasuredRun& run, bool verbose) {
  Prediction worst;
  for (std::size_t stage = 0; stage < run.setup.parallel.pipeline; ++stage) {
    const Prediction each = predict(run, stage, verbose);
    if (each.peak > worst.peak) worst = each;
  }
  return worst;
}

// The dense rows of its table b200_release_v1.2_summary.md, which are rounded to 0.01 GiB.
TEST(MegatronPublished, SimuMaxDenseRows) {
  constexpr double kGiB = 1024 * kMiB;
  for (const SimuMaxRow& row :
       {SimuMaxRow{.run = {.pipeline = 2}, .gib = 66.55}, SimuMaxRow{.run = {.tensor = 2}, .gib = 60.68},
        SimuMaxRow{.run = {.tensor = 4}, .gib = 39.07}, SimuMaxRow{.run = {.tensor = 8}, .gib = 28.29},
        SimuMaxRow{.run = {.large = true, .layers = 4, .pipeline = 2}, .gib = 87.08},
        SimuMaxRow{.run = {.large = true, .layers = 4, .tensor = 2}, .gib = 81.59},
        SimuMaxRow{.run = {.large = true, .layers = 4, .tensor = 4}, .gib = 52.89},
        SimuMaxRow{.run = {.large = true, .layers = 4, .tensor = 8}, .gib = 38.57},
        SimuMaxRow{.run = {.tensor = 2, .context = 4, .sequence = 32768}, .gib = 68.43},
        SimuMaxRow{.run = {.context = 8, .sequence = 32768}, .gib = 104.51},
        SimuMaxRow{.run = {.large = true, .layers = 4, .tensor = 2, .context = 4, .sequence = 32768}, .gib = 87.03},
        SimuMaxRow{.run = {.large = true, .layers = 4, .context = 8, .sequence = 32768}, .gib = 139.22},
        SimuMaxRow{.run = {.tensor = 2, .context = 4, .sequence = 131072}, .gib = 112.67},
        SimuMaxRow{.run = {.context = 8, .sequence = 131072}, .gib = 147.99},
        SimuMaxRow{.run = {.large = true, .layers = 4, .tensor = 2, .context = 4, .sequence = 131072},
                   .gib = 118.13}}) {
    const double predicted = worst_stage(measured_run(row.run), false).peak / kGiB;
    EXPECT_NEAR(predicted, row.gib, 0.01) << (row.run.large ? "405B tp" : "70B tp") << row.run.tensor << " pp"
                                          << row.run.pipeline << " cp" << row.run.context << " of " << row.run.sequence;
  }
}

TEST(MegatronActivationsGolden, SimuMaxOnB200) {
  const json::value rows = read_golden("simumax_b200.json");
  ASSERT_FALSE(rows.as_array().empty());
  for (const json::value& value : rows.as_array()) {
    const json::object& row = value.as_object();
    const json::object& config = row.at("config").as_object();
    const std::string name(config.at("case").as_string());
    const std::string parallel(config.at("parallel").as_string());
    const MeasuredRun run =
        measured_run({.large = std::string(row.at("model").as_string()).find("405") != std::string::npos,
                      .layers = number(config.at("layers")),
                      .tensor = std::stoul(parallel.substr(2)),
                      .context = number(config.at("cp")),
                      .sequence = number(config.at("seq")),
                      .micro_batches = number(config.at("micro_batch_num"))});
    const Prediction predicted = worst_stage(run, verbose_for(name));
    double measured = 0;
    double reserved = 0;
    for (const auto& rank : row.at("extra").at("measured_by_rank_mb").as_object()) {
      measured = std::max(measured, rank.value().at("max_allocated_mb").as_double() * kMiB);
      reserved = std::max(reserved, rank.value().at("max_reserved_mb").as_double() * kMiB);
    }
    const double percent = 100 * (predicted.peak - measured) / measured;
    std::cout << fmt::format("{} {:.3f} MiB {:+.3f} MiB ({:+.4f} %), replayed {:+.3f} MiB, reserved {:+.2f} %\n", name,
                             measured / kMiB, (predicted.peak - measured) / kMiB, percent,
                             (predicted.replayed_peak - measured) / kMiB,
                             100 * (predicted.replayed_reserved - reserved) / reserved);
    if (verbose_for(name)) std::cout << predicted.detail;
    EXPECT_LE(std::abs(percent), 1.4) << name;
  }
}

}  // namespace
}  // namespace shardplan
