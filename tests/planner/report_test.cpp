// The memory report against published tables and against closed forms.
#include "planner/report.h"

#include <gtest/gtest.h>

#include <array>
#include <boost/json.hpp>
#include <cmath>
#include <cstdlib>
#include <fstream>
#include <sstream>
#include <string>
#include <vector>

#include "base/error.h"
#include "planner/explain.h"

namespace shardplan {
namespace {

Catalog catalog_of(std::uint64_t parameters) {
  CatalogBuilder builder("psi", "parameters");
  builder.begin_unit("parameters");
  builder.add({.name = "parameters", .shape = {parameters}, .dtype = std::nullopt, .tied_to = {}});
  Catalog catalog = builder.finish();
  catalog.count_only = true;
  return catalog;
}

Catalog llama_like(std::uint64_t vocabulary, std::uint64_t width, std::uint64_t layers, bool tied = false) {
  CatalogBuilder builder("like-llama", "llama");
  builder.begin_unit("embed");
  builder.add({.name = "embed.weight", .shape = {vocabulary, width}, .dtype = std::nullopt, .tied_to = {}});
  builder.add_run("layers", 0, layers,
                  {{.name = "a.weight", .shape = {width, width}, .dtype = std::nullopt, .tied_to = {}},
                   {.name = "b.weight", .shape = {4 * width, width}, .dtype = std::nullopt, .tied_to = {}}});
  builder.begin_unit("head");
  builder.add({.name = "head.weight",
               .shape = {vocabulary, width},
               .dtype = std::nullopt,
               .tied_to = tied ? "embed.weight" : ""});
  return builder.finish();
}

Setup setup_of(const char* precision, int stage, std::uint64_t world) {
  Setup setup;
  setup.policy = policy_named(precision);
  setup.stage = stage;
  setup.world_size = world;
  return setup;
}

const DeviceMemory& device_of(const Report& report) {
  return report.ranks.front().device;
}

double model_states_gb(std::uint64_t parameters, int stage, std::uint64_t world) {
  const Report report = report_paper(catalog_of(parameters), setup_of("fp16-mixed", stage, world));
  return static_cast<double>(device_of(report).model_states().count()) / 1e9;
}

// The tables print three or four digits, some truncated, some rounded: one unit of the last printed place.
::testing::AssertionResult prints_as(double value, double printed) {
  double unit = 1;
  for (const double place : {1.0, 0.1, 0.01}) {
    if (std::abs(printed / place - std::round(printed / place)) < 1e-6) {
      unit = place;
      break;
    }
  }
  if (std::abs(value - printed) <= unit) return ::testing::AssertionSuccess();
  return ::testing::AssertionFailure() << value << " would not be printed as " << printed;
}

TEST(Paper, SevenBillionParametersInMixedPrecision) {
  const Report report = report_paper(catalog_of(7'000'000'000), setup_of("fp16-mixed", 0, 1));
  EXPECT_EQ(device_of(report).parameters, 14_GB);
  EXPECT_EQ(device_of(report).gradients, 14_GB);
  EXPECT_EQ(device_of(report).optimizer_states, 84_GB);
  EXPECT_EQ(device_of(report).model_states(), 112_GB);
}

// Rajbhandari et al., arXiv 1910.02054 v3, table 1: GB per device for stages 1, 2, 3.
struct Table1Row {
  std::uint64_t parameters;
  std::uint64_t world;
  std::array<double, 3> gb;
};

constexpr std::array<Table1Row, 18> kTable1{{
    {7'500'000'000, 1, {120, 120, 120}},
    {7'500'000'000, 4, {52.5, 41.3, 30}},
    {7'500'000'000, 16, {35.6, 21.6, 7.5}},
    {7'500'000'000, 64, {31.4, 16.6, 1.88}},
    {7'500'000'000, 256, {30.4, 15.4, 0.47}},
    {7'500'000'000, 1024, {30.1, 15.1, 0.12}},
    {128'000'000'000, 1, {2048, 2048, 2048}},
    {128'000'000'000, 4, {896, 704, 512}},
    {128'000'000'000, 16, {608, 368, 128}},
    {128'000'000'000, 64, {536, 284, 32}},
    {128'000'000'000, 256, {518, 263, 8}},
    {128'000'000'000, 1024, {513, 257, 2}},
    {1'000'000'000'000, 1, {16000, 16000, 16000}},
    {1'000'000'000'000, 4, {7000, 5500, 4000}},
    {1'000'000'000'000, 16, {4750, 2875, 1000}},
    {1'000'000'000'000, 64, {4187, 2218, 250}},
    {1'000'000'000'000, 256, {4046, 2054, 62.5}},
    {1'000'000'000'000, 1024, {4011, 2013, 15.6}},
}};

TEST(Paper, ZeroTable1) {
  for (const Table1Row& row : kTable1) {
    for (int stage = 1; stage <= 3; ++stage) {
      EXPECT_TRUE(
          prints_as(model_states_gb(row.parameters, stage, row.world), row.gb[static_cast<std::size_t>(stage - 1)]))
          << row.parameters << " parameters, " << row.world << " ranks, stage " << stage;
    }
  }
}

TEST(Paper, ZeroFigure1) {
  constexpr std::array<double, 4> kGb{120, 31.4, 16.6, 1.9};
  for (int stage = 0; stage <= 3; ++stage) {
    EXPECT_NEAR(model_states_gb(7'500'000'000, stage, 64), kGb[static_cast<std::size_t>(stage)], 0.05);
  }
}

// ZeRO, sec. 3.1: bytes of optimizer states per parameter, K.
TEST(Paper, OptimizerTable) {
  const std::vector<std::pair<OptimizerKind, std::uint64_t>> rows{{OptimizerKind::adamw, 12},
                                                                  {OptimizerKind::adam, 12},
                                                                  {OptimizerKind::sgd_momentum, 8},
                                                                  {OptimizerKind::sgd, 4},
                                                                  {OptimizerKind::lion, 8}};
  for (const auto& [kind, k] : rows) {
    auto setup = setup_of("fp16-mixed", 0, 1);
    setup.optimizer = kind;
    EXPECT_EQ(device_of(report_paper(catalog_of(1'000'000), setup)).optimizer_states, k * 1_MB);
  }
}

// ZeRO-Infinity, arXiv 2104.07857, figure 2a: 12 L h^2 parameters, 20 bytes each (an fp32 gradient beside the 16-bit one),
// printed in TiB.
TEST(Paper, ZeroInfinityFigure2a) {
  struct Row {
    std::uint64_t layers, width;
    double tib;
  };
  for (const Row& row : {Row{80, 10240, 1.83}, Row{100, 20480, 9.16}, Row{128, 25600, 18.31}, Row{195, 65536, 182.81},
                         Row{315, 163840, 1845.70}}) {
    auto setup = setup_of("fp16-mixed", 0, 1);
    setup.accumulation = 2;
    const Report report = report_paper(catalog_of(12 * row.layers * row.width * row.width), setup);
    const double tib = static_cast<double>(device_of(report).model_states().count()) / std::pow(2.0, 40);
    EXPECT_NEAR(tib, row.tib, 0.006) << row.layers << " layers of width " << row.width;
  }
}

TEST(Paper, DivisionRoundsUpToAByte) {
  const Report report = report_paper(catalog_of(7), setup_of("bf16-mixed", 3, 4));
  EXPECT_EQ(device_of(report).parameters, 4_B);  // 14 / 4 = 3.5
  EXPECT_EQ(device_of(report).gradients, 4_B);
  EXPECT_EQ(device_of(report).optimizer_states, 21_B);  // 84 / 4
}

TEST(Paper, FrozenTensorsHaveOnlyParameters) {
  Catalog catalog = llama_like(1000, 64, 4);
  freeze(catalog, "embed.*");
  const Report report = report_paper(catalog, setup_of("bf16-mixed", 0, 1));
  EXPECT_EQ(device_of(report).parameters.count(), 2 * parameter_elements(catalog));
  EXPECT_EQ(device_of(report).gradients.count(), 2 * trainable_elements(catalog));
  EXPECT_EQ(device_of(report).optimizer_states.count(), 12 * trainable_elements(catalog));
}

TEST(Shardplan, WithoutPaddingTheStatesAreTheTextbooks) {
  const Catalog catalog = llama_like(4096, 1024, 6);
  for (int stage = 0; stage <= 3; ++stage) {
    const auto setup = setup_of("bf16-mixed", stage, 8);
    const Report ours = report_shardplan(catalog, make_step_plan(catalog, setup));
    const Report paper = report_paper(catalog, setup);
    EXPECT_EQ(device_of(ours).parameters, device_of(paper).parameters);
    EXPECT_EQ(device_of(ours).gradients, device_of(paper).gradients);
    EXPECT_EQ(device_of(ours).optimizer_states, device_of(paper).optimizer_states);
    EXPECT_EQ(ours.traffic.total(), paper.traffic.total()) << "stage " << stage;
    EXPECT_EQ(ours.traffic.total(), ours.traffic.textbook);
    // psi (N-1)/N, two or three times, 2 bytes each.
    EXPECT_EQ(ours.traffic.total().count(), (stage == 3 ? 3U : 2U) * 2 * parameter_elements(catalog) / 8 * 7);
  }
}

TEST(Shardplan, PeakClassesAddUpToTheLivePeak) {
  const Catalog catalog = llama_like(5000, 100, 7, true);
  for (int stage = 0; stage <= 3; ++stage) {
    for (const std::uint64_t world : {1U, 3U, 8U}) {
      const StepPlan plan = make_step_plan(catalog, setup_of("bf16-mixed", stage, world));
      const Report report = report_shardplan(catalog, plan);
      const PeakMemory& peak = device_of(report).at_peak;
      EXPECT_EQ(*peak.parameters + *peak.gathered_parameters + *peak.gradients + *peak.optimizer_states +
                    *peak.communication_buffers,
                plan.device.live_peak);
      EXPECT_EQ(report.ranks.front().count, world);
      EXPECT_FALSE(peak.activations.has_value());
      EXPECT_FALSE(device_of(report).total.has_value());
    }
  }
}

TEST(Shardplan, ThePeakHasAName) {
  const Catalog catalog = llama_like(1000, 256, 12);
  const Report report = report_shardplan(catalog, make_step_plan(catalog, setup_of("bf16-mixed", 3, 8)));
  EXPECT_EQ(device_of(report).peak_at, "backward of layers.10");
  const Report replicated = report_shardplan(catalog, make_step_plan(catalog, setup_of("bf16-mixed", 0, 8)));
  EXPECT_EQ(device_of(replicated).peak_at, "throughout the step");
}

TEST(Shardplan, ACountAloneHasStatesButNoUnits) {
  const Catalog catalog = catalog_of(7'000'000'000);
  const Report report = report_shardplan(catalog, make_step_plan(catalog, setup_of("bf16-mixed", 3, 8)));
  EXPECT_EQ(device_of(report).parameters.count(), 2 * (7'000'000'000 / 8 + 2048 - 7'000'000'000 / 8 % 2048));
  EXPECT_FALSE(report.ranks.front().arenas.has_value());
  EXPECT_FALSE(device_of(report).live_peak.has_value());
}

TEST(Explain, LinesAddUpToTheArena) {
  const Catalog catalog = llama_like(5000, 100, 7, true);
  for (int stage = 0; stage <= 3; ++stage) {
    auto setup = setup_of("bf16-mixed", stage, 6);
    setup.replicate = 2;
    setup.accumulation = 3;
    setup.transport = Transport::staged;
    const StepPlan plan = make_step_plan(catalog, setup);
    const std::vector<Explanation> lines = explain_shardplan(catalog, plan);
    Bytes sum;
    for (const Explanation& line : lines) {
      EXPECT_FALSE(line.formula.empty() || line.inputs.empty() || line.source.empty()) << line.name;
      if (line.name != "arena") sum += line.bytes;
    }
    EXPECT_EQ(lines.back().name, "arena");
    EXPECT_EQ(lines.back().bytes, plan.device.bytes);
    EXPECT_EQ(sum, plan.device.bytes);
  }
}

TEST(Explain, TrafficAddsUp) {
  const Catalog catalog = llama_like(5000, 100, 7);
  auto setup = setup_of("bf16-mixed", 3, 8);
  setup.replicate = 2;
  const Report report = report_shardplan(catalog, make_step_plan(catalog, setup));
  const std::vector<Explanation> lines = explain_traffic(catalog, setup, report);
  Bytes sum;
  for (std::size_t i = 0; i + 1 < lines.size(); ++i) sum += lines[i].bytes;
  EXPECT_EQ(sum, report.traffic.total());
  EXPECT_GT(report.traffic.reduce_among_replicas, Bytes{});
}

// The same tables in the shared folder of ground truth.
TEST(PaperGolden, PublishedTables) {
  const char* folder = std::getenv("SHARDPLAN_GOLDEN");
  ASSERT_NE(folder, nullptr);
  std::ifstream file(std::string(folder) + "/published_tables.json");
  ASSERT_TRUE(file.good()) << folder;
  std::stringstream text;
  text << file.rdbuf();
  int cells = 0;
  const boost::json::value document = boost::json::parse(text.str());
  for (const boost::json::value& table : document.as_array()) {
    const std::string id(table.at("id").as_string());
    if (id == "zero-table1") {
      for (const boost::json::value& row : table.at("rows").as_array()) {
        const auto parameters =
            static_cast<std::uint64_t>(std::llround(row.at("params_billion").to_number<double>() * 1e9));
        const auto world = row.at("dp").to_number<std::uint64_t>();
        int stage = 1;
        for (const char* key : {"Pos_GB", "Pos_g_GB", "Pos_g_p_GB"}) {
          EXPECT_TRUE(prints_as(model_states_gb(parameters, stage++, world), row.at(key).to_number<double>()));
          ++cells;
        }
      }
    }
    if (id == "zero-fig1") {
      int stage = 0;
      for (const boost::json::value& row : table.at("rows").as_array()) {
        EXPECT_NEAR(model_states_gb(7'500'000'000, stage++, 64), row.at("GB").to_number<double>(), 0.05);
        ++cells;
      }
    }
  }
  EXPECT_EQ(cells, 3 * 18 + 4);
}

}  // namespace
}  // namespace shardplan
