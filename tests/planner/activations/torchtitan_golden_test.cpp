// Against torchtitan itself on PyTorch: what a rank keeps for backward and where its step peaks, as
// tests/data/activations/make_titan_goldens.py wrote it down.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <boost/json.hpp>
#include <filesystem>
#include <fstream>
#include <sstream>

#include "planner/activations/profiles.h"
#include "planner/formats/hf_config.h"
#include "planner/parallel.h"
#include "tests/support/saved_lines.h"

namespace shardplan {
namespace {

namespace json = boost::json;

json::value read_goldens() {
  std::ifstream file(std::filesystem::path(ACTIVATION_GOLDENS) / "torchtitan.json");
  EXPECT_TRUE(file.good());
  std::stringstream text;
  text << file.rdbuf();
  return json::parse(text.str());
}

std::uint64_t number(const json::object& object, std::string_view key, std::uint64_t absent = 1) {
  const json::value* value = object.if_contains(key);
  return value != nullptr ? value->to_number<std::uint64_t>() : absent;
}

// One rank's micro-batch.
struct Run {
  Setup setup;
  ClientSetup client;
  std::size_t stage = 0;
};

void set_recompute(const json::object& setup, ClientSetup& client) {
  const json::value* recompute = setup.if_contains("recompute");
  if (recompute == nullptr) return;
  const std::string_view word = recompute->as_string();
  if (word == "op") {
    client.recompute = RecomputeKind::selective;
  } else if (word == "full") {
    client.recompute = RecomputeKind::full;
  } else {
    client.recompute = RecomputeKind::every;
    client.recompute_every = std::stoull(std::string(word));
  }
}

// A stage of a pipeline with what is before and behind it.
void set_stage(const json::object& setup, std::uint64_t layers, Run& run) {
  const json::value* part = setup.if_contains("layers");
  if (part == nullptr) return;
  const auto first = part->at(0).to_number<std::uint64_t>();
  const auto end = part->at(1).to_number<std::uint64_t>();
  std::vector<std::uint64_t>& pieces = run.setup.parallel.piece_layers;
  if (first > 0) pieces.push_back(first);
  run.stage = pieces.size();
  pieces.push_back(end - first);
  if (end < layers) pieces.push_back(layers - end);
  run.setup.parallel.pipeline = pieces.size();
}

Run read_run(const json::object& setup, std::uint64_t layers) {
  Run run;
  run.setup.policy = policy_named(setup.at("dtype").as_string());
  run.setup.parallel.tensor = number(setup, "tp");
  run.setup.parallel.context = number(setup, "cp");
  run.setup.world_size = run.setup.parallel.context;
  run.client.profile = Profile::torchtitan;
  run.client.micro_batch = number(setup, "batch");
  run.client.sequence = number(setup, "sequence");
  if (const json::value* parallel = setup.if_contains("loss_parallel")) run.client.loss_parallel = parallel->as_bool();
  run.client.context_gathers = !setup.contains("rotate");
  set_recompute(setup, run.client);
  set_stage(setup, layers, run);
  return run;
}

Activity activity(const Model& model, const Run& run, const autograd::TapeOptions& options) {
  const Catalog held = kinds_of_ranks(model, run.setup).at(run.stage).catalog;
  const ActivityResult result = activity_of(model, held, run.setup, run.client, options);
  EXPECT_TRUE(result.activity) << result.unknown_because;
  return result.activity.value_or(Activity{});
}

void compare(const Model& model, const json::object& golden) {
  const Run run = read_run(golden.at("setup").as_object(), model.architecture.layers);
  const Activity exact = activity(model, run, {.rounding = 1});
  if (run.client.recompute == RecomputeKind::none) {
    Bytes saved;
    for (const SavedByUnit& unit : exact.saved) saved += unit.times * unit.bytes;
    EXPECT_EQ(saved.count(), number(golden, "saved_bytes")) << test_support::listed(exact);
  }
  EXPECT_EQ(sum(after_forward(exact)), static_cast<std::int64_t>(number(golden, "kept")))
      << test_support::listed(exact);
  for (const bool folds : {true, false}) {
    const Activity rounded = activity(model, run, {.folds = folds, .adds_in_place = false});
    const double planned =
        static_cast<double>(number(golden, "resident")) + static_cast<double>(sum(peak_of(rounded).held));
    EXPECT_NEAR(planned / static_cast<double>(number(golden, "peak")), 1, 1e-4) << planned;
  }
}

TEST(TorchtitanGoldens, KeptAndPeak) {
  const json::value goldens = read_goldens();
  for (const json::value& c : goldens.at("cases").as_array()) {
    const JsonDocument config(json::serialize(c.at("config")), "config.json");
    const Model model = model_from_hf_config(config.root());
    for (const json::value& run : c.at("runs").as_array()) {
      SCOPED_TRACE(std::string(c.at("name").as_string()) + " " + json::serialize(run.at("setup")));
      compare(model, run.as_object());
    }
  }
}

}  // namespace
}  // namespace shardplan
