// Against published step times (SHARDPLAN_GOLDEN): every row that can be predicted, and the list of those that cannot, with
// the reason.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "planner/cost/step_time.h"
#include "planner/formats/cluster_table.h"
#include "planner/formats/file.h"
#include "planner/formats/gpu_table.h"
#include "planner/formats/hf_config.h"
#include "planner/formats/json.h"
#include "planner/formats/presets.h"
#include "tests/planner/cost/published_models.h"

namespace shardplan::test {
namespace {

std::string golden(const std::string& file) {
  const char* folder = std::getenv("SHARDPLAN_GOLDEN");
  return std::string(folder != nullptr ? folder : "SHARDPLAN_GOLDEN is not set") + "/" + file;
}

struct Row {
  std::string name;
  double measured = 0;  // seconds of a step
  double predicted = 0;
  std::optional<double> peer;  // another predictor's

  double error() const { return std::abs(predicted / measured - 1); }
};

class Table {
 public:
  void skip(const std::string& name, const std::string& reason) { ++skipped_[reason + ": " + name]; }
  void add(Row row) { rows_.push_back(std::move(row)); }
  std::size_t size() const { return rows_.size(); }

  double print_and_median() const {
    std::vector<double> errors;
    for (const Row& row : rows_) {
      errors.push_back(row.error());
      fmt::print("{:<62} measured {:8.4f} s  predicted {:8.4f} s  {:+6.1f} %  peer {}\n", row.name, row.measured,
                 row.predicted, 100 * (row.predicted / row.measured - 1),
                 row.peer ? fmt::format("{:+.1f} %", 100 * (*row.peer / row.measured - 1)) : "-");
    }
    for (const auto& [what, count] : skipped_) fmt::print("skipped, {} ({})\n", what, count);
    std::sort(errors.begin(), errors.end());
    const std::size_t n = errors.size();
    const double median = n == 0 ? 1 : (errors[(n - 1) / 2] + errors[n / 2]) / 2;
    fmt::print("{} rows, median absolute error {:.1f} %\n", n, 100 * median);
    std::fflush(stdout);
    return median;
  }

 private:
  std::vector<Row> rows_;
  std::map<std::string, int> skipped_;
};

std::uint64_t number(JsonView text) {
  return std::stoull(std::string(text.as_string()));
}

Cluster cluster_named(const std::string& name) {
  return require_cluster(name, gpu_table());
}

// "tp2ep4pp1": the ranks of an axis, 1 where it is not named.
std::uint64_t ranks_of_axis(const std::string& parallel, const std::string& axis) {
  const std::size_t found = parallel.find(axis);
  return found == std::string::npos ? 1 : std::stoull(parallel.substr(found + axis.size()));
}

// SimuMax's rows: Megatron with its distributed optimizer (stage 1), gradients reduced in fp32, nothing overlapped,
// sequence parallelism with tensor parallelism (its docs/b200/b200_real_repro_guide.md).
void add_simumax_row(JsonView row, Table& table) {
  const JsonView config = row["config"];
  const std::string parallel(config["parallel"].as_string());
  const std::uint64_t context = config["cp"].as_count();
  const std::uint64_t sequence = config["seq"].as_count();
  StepSetup setup;
  setup.tensor_ranks = ranks_of_axis(parallel, "tp");
  setup.sequence_parallel = setup.tensor_ranks > 1;
  setup.stages = ranks_of_axis(parallel, "pp");
  setup.ranks = config["world_size"].as_count() / (setup.tensor_ranks * setup.stages);
  setup.micro_batches = config["micro_batch_num"].as_count();
  setup.policy = policy_named("bf16-mixed-fp32grad");
  setup.reduced = DType::f32;
  setup.overlapped = false;
  setup.context_ranks = context;
  setup.expert_ranks = ranks_of_axis(parallel, "ep");
  setup.work = {.tokens = config["mbs"].as_count() * sequence / context,
                .sequence = sequence,
                .gradient = DType::f32,
                .accumulates = true,
                .expert_ranks = setup.expert_ranks};
  const Model model = published_model(std::string(row["model"].as_string()), config["layers"].as_count());
  table.add({std::string(config["case"].as_string()), row["measured"].as_number() / 1000,
             step_time(model, setup, cluster_named("b200-simumax")).seconds(), row["predicted"].as_number() / 1000});
}

// NVIDIA's rows: tokens per second and GPU.
void add_megatron_bridge_row(JsonView row, Table& table) {
  const JsonView config = row["config"];
  const std::string model_name(row["model"].as_string());
  const std::string system(config["System"].as_string());
  const std::string name = fmt::format("{} on {}", model_name, system);
  const std::string preset = model_name == "Qwen3_235B_a22B" ? "qwen3-235b-a22b" : "";
  if (!is_published_model(model_name) && preset.empty()) return table.skip(name, "its configuration is not known");
  StepSetup setup;
  setup.tensor_ranks = number(config["TP"]);
  setup.stages = number(config["PP"]);
  if (setup.stages > 1) {
    setup.virtual_stages = number(config["VP"]);
    setup.schedule = PipelineSchedule::interleaved;
  }
  setup.ranks = number(config["#-GPUs"]) / (setup.tensor_ranks * setup.stages);
  const std::uint64_t micro_batch = number(config["MBS"]);
  const std::uint64_t sequence = number(config["Sequence Length"]);
  setup.micro_batches = number(config["GBS"]) / micro_batch / setup.ranks;
  setup.policy = policy_named("bf16-mixed-fp32grad");
  setup.reduced = DType::bf16;
  setup.expert_ranks = number(config["EP"]);
  setup.work = {.tokens = micro_batch * sequence,
                .sequence = sequence,
                .compute = DType::f8_e4m3,
                .gradient = DType::f32,
                .accumulates = true,
                .expert_ranks = setup.expert_ranks};
  // Per GPU: the ranks of a pipeline share the tokens of their data rank.
  const auto tokens = static_cast<double>(setup.micro_batches * setup.work.tokens) /
                      static_cast<double>(setup.tensor_ranks * setup.stages);
  const Cluster cluster = cluster_named(system == "DGX-GB300" ? "gb300" : "gb200");
  const Model model = preset.empty() ? published_model(model_name) : require_preset_model(preset);
  table.add({name, tokens / row["measured"].as_number(), step_time(model, setup, cluster).seconds(), {}});
}

// Korthikanti et al., arXiv 2205.05198, table 5, as calculon has it: GPT-3's shapes on A100s, two ways to recompute.
void add_korthikanti_row(JsonView row, Table& table) {
  const JsonView config = row["config"];
  const std::uint64_t hidden = config["hidden"].as_count();
  const std::uint64_t sequence = config["seq"].as_count();
  const Model model = model_from_hf_config(
      fmt::format(
          R"({{"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"], "n_embd": {}, "n_layer": {}, "n_head": {},
                       "n_positions": {}, "vocab_size": {}}})",
          hidden, config["layers"].as_count(), config["heads"].as_count(), sequence, config["vocab"].as_count()),
      std::string(row["model"].as_string()));
  StepSetup setup;
  setup.tensor_ranks = config["tensor_par"].as_count();
  setup.stages = config["pipeline_par"].as_count();
  setup.ranks = config["data_par"].as_count();
  setup.virtual_stages = config["pipeline_interleaving"].as_count();
  setup.schedule = setup.virtual_stages > 1 ? PipelineSchedule::interleaved : PipelineSchedule::one_f_one_b;
  const std::uint64_t micro_batch = config["microbatch_size"].as_count();
  setup.micro_batches = config["batch_size"].as_count() / micro_batch / setup.ranks;
  setup.stage = 0;
  setup.policy = policy_named("fp16-mixed");
  const bool full = config["activation_recompute"].as_string() == "full";
  setup.sequence_parallel = config["tensor_par_comm_type"].as_string() == "rs_ag";
  // The scores and their product with the values: 4 s of 24 h + 4 s operations for each token and feature (the same, sec. 5).
  const auto scores = 4 * static_cast<double>(sequence);
  setup.recomputed = full ? 1 : scores / (24 * static_cast<double>(hidden) + scores);
  setup.work = {.tokens = micro_batch * sequence, .sequence = sequence, .compute = DType::f16, .gradient = DType::f16};
  table.add({fmt::format("{}, {}", row["model"].as_string(), full ? "full recompute" : "selective recompute"),
             row["measured"].as_number(), step_time(model, setup, cluster_named("a100")).seconds(),
             row["predicted"].as_number()});
}

TEST(CostGolden, StepTimes) {
  const std::string path = golden("measured/step_time.json");
  const JsonDocument document(read_text(path), path);
  Table table;
  for (const JsonView row : document.root().elements()) {
    const std::string_view source = row["source"].as_string();
    if (source.starts_with("MooreThreads/SimuMax")) {
      add_simumax_row(row, table);
    } else if (source.starts_with("NVIDIA-NeMo/Megatron-Bridge")) {
      add_megatron_bridge_row(row, table);
    } else {
      add_korthikanti_row(row, table);
    }
  }
  ASSERT_GE(table.size(), 30U);
  EXPECT_LE(table.print_and_median(), 0.1);
}

// torchtitan's fully sharded runs (ZeRO-3) of Llama 3.1 8B, tokens per second and GPU.
void add_torchtitan_row(JsonView row, Table& table) {
  const std::string name(row["id"].as_string());
  const JsonView parallel = row["parallel"];
  if (parallel["tp"].exists() || parallel["pp"].exists()) return table.skip(name, "tensor or pipeline parallel");
  // Its own page: limited to 500 W, 2.4 TB/s, "we don't know its exact value" of the peak.
  if (!row["gpu"].as_string().starts_with("H200")) return table.skip(name, "an H100 of which no data sheet is known");
  StepSetup setup;
  setup.ranks = row["world_size"].as_count();
  setup.stage = 3;
  setup.policy = policy_named("bf16-mixed");
  setup.reduced = DType::f32;
  setup.work = {.tokens = row["local_batch_size"].as_count() * row["seq_len"].as_count(),
                .sequence = row["seq_len"].as_count(),
                .compute = DType::f8_e4m3};
  setup.recomputed = 0.5;  // selective: every second product
  const Model model = require_preset_model("llama-3.1-8b");
  table.add({name,
             static_cast<double>(setup.work.tokens) / row["tps_per_gpu"].as_number(),
             step_time(model, setup, cluster_named("h200")).seconds(),
             {}});
}

TEST(CostGolden, StepTimesOfFullySharded) {
  const std::string path = golden("measured/torchtitan.json");
  const JsonDocument document(read_text(path), path);
  Table table;
  for (const JsonView row : document.root().elements()) add_torchtitan_row(row, table);
  ASSERT_GE(table.size(), 1U);
  EXPECT_LE(table.print_and_median(), 0.2);
}

}  // namespace
}  // namespace shardplan::test
