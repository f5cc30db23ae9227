// Kinds of ranks: against Megatron-LM's own count, against sizes worked out by hand, and as properties.
#include "planner/parallel.h"

#include <gtest/gtest.h>

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <map>

#include "planner/formats/hf_config.h"
#include "planner/formats/read_model.h"
#include "planner/tensor_split.h"
#include "planner/world_report.h"
#include "tests/support/config_error.h"
#include "tests/support/property.h"

namespace shardplan {
namespace {

using test_support::expect_config_error;

Setup setup_of(const Parallelism& parallel, std::uint64_t data = 1) {
  Setup setup;
  setup.world_size = data;
  setup.parallel = parallel;
  return setup;
}

std::vector<std::uint64_t> parameters_of(const Model& model, const Parallelism& parallel) {
  std::vector<std::uint64_t> parameters;
  for (const RankKind& kind : kinds_of_ranks(model, setup_of(parallel))) {
    parameters.push_back(parameter_elements(kind.catalog));
  }
  return parameters;
}

std::map<std::string, Tensor> tensors_of(const Catalog& catalog) {
  std::map<std::string, Tensor> tensors;
  for_each_tensor(catalog, [&](const std::string& name, const Tensor& tensor) { tensors.emplace(name, tensor); });
  return tensors;
}

Shape shape_of(const Catalog& catalog, const std::string& name) {
  const auto tensors = tensors_of(catalog);
  const auto found = tensors.find(name);
  EXPECT_NE(found, tensors.end()) << name;
  return found == tensors.end() ? Shape{} : found->second.shape;
}

// One rank's catalog with the model's layers whole.
Catalog part_of(const Model& model, const Parallelism& parallel, std::uint64_t data = 1) {
  return kinds_of_ranks(model, setup_of(parallel, data)).front().catalog;
}

Model gpt3() {
  return model_from_hf_config(R"({"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"], "n_embd": 12288,
                                  "n_layer": 96, "n_head": 96, "n_positions": 2048})",
                              "gpt3");
}

// Megatron-LM, training/theoretical_memory_usage.py, compute_weight_and_optimizer_memory: the most loaded shard. It
// shares out norms too, and leaves out biases and positions.
struct MegatronSizes {
  double layers, hidden, feed_forward, heads, groups, vocabulary;
  bool gated, untied;
};
double megatron_parameters(const MegatronSizes& m, double tp, double pp) {
  const double in_layers = 2 * m.layers * m.hidden * m.hidden *
                           (1 + m.groups / m.heads + m.feed_forward / m.hidden * (m.gated ? 1.5 : 1) + 2 / m.hidden +
                            1 / (m.layers * m.hidden));
  const double embedding = m.hidden * m.vocabulary * (pp == 1 && m.untied ? 2 : 1);
  return (in_layers / pp + embedding) / tp;
}

TEST(Parallel, ParametersPerRankAreMegatrons) {
  const std::array<std::pair<Model, MegatronSizes>, 3> models{
      {{find_model("llama-2-7b"), {32, 4096, 11008, 32, 32, 32000, true, true}},
       {find_model("llama-2-70b"), {80, 8192, 28672, 64, 8, 32000, true, true}},
       {gpt3(), {96, 12288, 49152, 96, 96, 51200, false, false}}}};
  for (const auto& [model, sizes] : models) {
    for (const auto& [tp, pp] : {std::pair{1, 1}, {2, 1}, {8, 1}, {1, 4}, {8, 8}, {4, 16}}) {
      Parallelism parallel{.tensor = static_cast<std::uint64_t>(tp), .pipeline = static_cast<std::uint64_t>(pp)};
      parallel.vocabulary_multiple = model.catalog.family == "gpt2" ? 1024U / parallel.tensor : 1;
      const auto parameters = parameters_of(model, parallel);
      const double positions = model.catalog.family == "gpt2" ? 2048.0 * sizes.hidden : 0;
      const double most = static_cast<double>(*std::max_element(parameters.begin(), parameters.end())) - positions;
      EXPECT_NEAR(most / megatron_parameters(sizes, tp, pp), 1, 2e-3) << model.catalog.name << " " << tp << " " << pp;
    }
  }
}

// Narayanan et al., arXiv 2104.04473, table 1: 174.6 billion parameters with tensor 8 and pipeline 12.
TEST(Parallel, Gpt3ByHand) {
  const std::uint64_t h = 12288;
  const std::uint64_t layer = 12 * h * h / 8 + 3 * h / 8 + h + 4 * h / 8 + h + 4 * h;
  const std::uint64_t words = 51200 / 8 * h;
  const auto parameters = parameters_of(gpt3(), {.tensor = 8, .pipeline = 12, .vocabulary_multiple = 128});
  ASSERT_EQ(parameters.size(), 12U);
  EXPECT_EQ(parameters.front(), words + 2048 * h + 8 * layer);
  for (std::size_t i = 1; i < 11; ++i) EXPECT_EQ(parameters[i], 8 * layer);
  EXPECT_EQ(parameters.back(), 8 * layer + 2 * h + words) << "the tied embedding is on the last stage too";
}

TEST(Parallel, WithoutAnyThereIsOneKindAndItIsTheModel) {
  const Model model = find_model("mixtral-8x7b");
  const auto kinds = kinds_of_ranks(model, setup_of({.context = 2}, 8));
  ASSERT_EQ(kinds.size(), 1U);
  EXPECT_EQ(kinds[0], (RankKind{.role = "all", .count = 8, .catalog = model.catalog}));
}

TEST(Parallel, SplitsByColumnRowAndVocabulary) {
  const Catalog llama = part_of(find_model("llama-2-70b"), {.tensor = 16});
  EXPECT_EQ(shape_of(llama, "model.layers.7.self_attn.q_proj.weight"), (Shape{512, 8192}));
  EXPECT_EQ(shape_of(llama, "model.layers.7.self_attn.k_proj.weight"), (Shape{64, 8192})) << "half of a head";
  EXPECT_EQ(shape_of(llama, "model.layers.7.self_attn.o_proj.weight"), (Shape{8192, 512}));
  EXPECT_EQ(shape_of(llama, "model.layers.7.mlp.up_proj.weight"), (Shape{1792, 8192}));
  EXPECT_EQ(shape_of(llama, "model.layers.7.mlp.down_proj.weight"), (Shape{8192, 1792}));
  EXPECT_EQ(shape_of(llama, "model.layers.7.input_layernorm.weight"), (Shape{8192}));
  EXPECT_EQ(shape_of(llama, "model.embed_tokens.weight"), (Shape{2000, 8192}));
  EXPECT_EQ(shape_of(llama, "lm_head.weight"), (Shape{2000, 8192}));

  const Catalog gpt2 = part_of(find_model("gpt2"), {.tensor = 4});
  EXPECT_EQ(shape_of(gpt2, "transformer.h.0.attn.c_attn.weight"), (Shape{768, 576})) << "stored transposed";
  EXPECT_EQ(shape_of(gpt2, "transformer.h.0.attn.c_attn.bias"), (Shape{576}));
  EXPECT_EQ(shape_of(gpt2, "transformer.h.0.attn.c_proj.weight"), (Shape{192, 768}));
  EXPECT_EQ(shape_of(gpt2, "transformer.h.0.attn.c_proj.bias"), (Shape{768}));
  EXPECT_EQ(shape_of(gpt2, "transformer.h.0.mlp.c_fc.weight"), (Shape{768, 768}));
  EXPECT_EQ(shape_of(gpt2, "transformer.wpe.weight"), (Shape{1024, 768}));

  const Catalog latent = part_of(find_model("deepseek-v3"), {.tensor = 8});
  EXPECT_EQ(shape_of(latent, "model.layers.0.self_attn.q_a_proj.weight"), (Shape{1536, 7168}));
  EXPECT_EQ(shape_of(latent, "model.layers.0.self_attn.q_b_proj.weight"), (Shape{128 * 192 / 8, 1536}));
  EXPECT_EQ(shape_of(latent, "model.layers.0.self_attn.kv_a_proj_with_mqa.weight"), (Shape{576, 7168}));
  EXPECT_EQ(shape_of(latent, "model.layers.3.mlp.gate.weight"), (Shape{256, 7168}));
  EXPECT_EQ(shape_of(latent, "model.layers.3.mlp.shared_experts.down_proj.weight"), (Shape{7168, 256}));
}

// Megatron-LM pads 50257 words to 50304, and to 51200 with 8 tensor ranks.
TEST(Parallel, PadsTheVocabulary) {
  const Model model = find_model("gpt2");
  const auto words = [&](std::uint64_t tp, std::uint64_t multiple) {
    const Catalog part = part_of(model, {.tensor = tp, .vocabulary_multiple = multiple});
    EXPECT_EQ(shape_of(part, "lm_head.weight"), shape_of(part, "transformer.wte.weight"));
    return tp * shape_of(part, "transformer.wte.weight")[0];
  };
  EXPECT_EQ(words(1, 128), 50304U);
  EXPECT_EQ(words(4, 128), 50688U);
  EXPECT_EQ(words(2, 1), 50258U);
  const Model eight = model_from_hf_config(R"({"model_type": "gpt2", "n_head": 16, "n_embd": 1024})", "g");
  EXPECT_EQ(8 * shape_of(part_of(eight, {.tensor = 8, .vocabulary_multiple = 128}), "transformer.wte.weight")[0],
            51200U);
}

TEST(Parallel, SharesOutExperts) {
  const auto setup = setup_of({.tensor = 2, .expert = 4, .expert_tensor = 1}, 8);
  const Catalog part = kinds_of_ranks(find_model("mixtral-8x7b"), setup).front().catalog;
  const auto tensors = tensors_of(part);
  const std::string moe = "model.layers.0.block_sparse_moe.";
  EXPECT_TRUE(tensors.contains(moe + "experts.1.w1.weight"));
  EXPECT_FALSE(tensors.contains(moe + "experts.2.w1.weight"));
  EXPECT_EQ(tensors.at(moe + "experts.0.w1.weight").shape, (Shape{14336, 4096})) << "experts are whole";
  EXPECT_TRUE(tensors.at(moe + "experts.0.w1.weight").expert);
  EXPECT_FALSE(tensors.at(moe + "gate.weight").expert);
  EXPECT_EQ(data_ranks(setup, tensors.at(moe + "experts.0.w1.weight")), 4U) << "16 ranks, 4 of them per expert group";
  EXPECT_EQ(data_ranks(setup, tensors.at(moe + "gate.weight")), 8U);

  const Model fused = model_from_hf_config(
      R"({"model_type": "gpt_oss", "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "vocab_size": 128,
          "num_local_experts": 8, "num_attention_heads": 8, "num_key_value_heads": 2, "head_dim": 8})",
      "fused");
  const Catalog oss = part_of(fused, {.tensor = 2, .expert = 4}, 4);
  EXPECT_EQ(shape_of(oss, "model.layers.0.mlp.experts.gate_up_proj"), (Shape{2, 64, 96}));
  EXPECT_EQ(shape_of(oss, "model.layers.0.mlp.experts.gate_up_proj_bias"), (Shape{2, 96}));
  EXPECT_EQ(shape_of(oss, "model.layers.0.mlp.experts.down_proj"), (Shape{2, 48, 64}));
  EXPECT_EQ(shape_of(oss, "model.layers.0.mlp.experts.down_proj_bias"), (Shape{2, 64}));
  EXPECT_EQ(shape_of(oss, "model.layers.0.self_attn.sinks"), (Shape{4}));
}

TEST(Parallel, LayersOfPieces) {
  using Counts = std::vector<std::uint64_t>;
  EXPECT_EQ(layers_of_pieces(32, {.pipeline = 4}), (Counts{8, 8, 8, 8}));
  EXPECT_EQ(layers_of_pieces(61, {.pipeline = 4}), (Counts{16, 15, 15, 15}));
  EXPECT_EQ(layers_of_pieces(32, {.pipeline = 2, .virtual_stages = 4}), (Counts{4, 4, 4, 4, 4, 4, 4, 4}));
  EXPECT_EQ(layers_of_pieces(61, {.pipeline = 4, .first_stage_layers = 16, .last_stage_layers = 13}),
            (Counts{16, 16, 16, 13}));
  EXPECT_EQ(layers_of_pieces(30, {.pipeline = 4, .embedding_is_a_layer = true, .loss_is_a_layer = true}),
            (Counts{7, 8, 8, 7}));
  // torchtitan's Llama 405B, and more pieces than divide.
  EXPECT_EQ(layers_of_pieces(126, {.pipeline = 8, .more_layers_behind_first = true}),
            (Counts{15, 16, 16, 16, 16, 16, 16, 15}));
  EXPECT_EQ(layers_of_pieces(7, {.pipeline = 2, .virtual_stages = 2, .more_layers_behind_first = true}),
            (Counts{1, 2, 2, 2}));
  expect_config_error([] { layers_of_pieces(3, {.pipeline = 4}); }, "--pp", "", "3 layers are fewer than the 4 stages");
  expect_config_error([] { layers_of_pieces(32, {.pipeline = 4, .virtual_stages = 3}); }, "--virtual-stages", "",
                      "8 layers on one of 4 ranks do not divide");
  expect_config_error([] { layers_of_pieces(32, {.pipeline = 4, .first_stage_layers = 7}); }, "--first-stage-layers",
                      "", "cannot share out the rest evenly");
  expect_config_error([] { layers_of_pieces(32, {.pipeline = 4, .loss_is_a_layer = true}); }, "--pp", "", "33 layers");
}

std::vector<std::string> units_of(const Catalog& catalog) {
  std::vector<std::string> units;
  for (const UnitRun& run : catalog.runs) {
    for (std::uint64_t i = 0; i < run.count; ++i) units.push_back(unit_name(run, i));
  }
  return units;
}

TEST(Parallel, LayoutsAsMegatronWritesThem) {
  using Counts = std::vector<std::uint64_t>;
  EXPECT_EQ(parse_pipeline_layout("Ettt|tt|L").decoder_layers, (Counts{3, 2, 0}));
  EXPECT_EQ(parse_pipeline_layout("Et*3|(tt|)*3,m|L").decoder_layers, (Counts{3, 2, 2, 2, 0, 0}));
  EXPECT_EQ(parse_pipeline_layout("Et*3|(tt|)*3,m|L").multi_token_layers, (Counts{0, 0, 0, 0, 1, 0}));
  EXPECT_EQ(parse_pipeline_layout("Et*12|t*4mL").decoder_layers, (Counts{12, 4}));
  EXPECT_EQ(parse_pipeline_layout("EL").decoder_layers, Counts{0});
  for (const char* bad :
       {"", "t|L", "Et|t", "Ett|EtL", "EtL|t", "E(t|L", "Et*|L", "Ex|L", "E((t)*2)L", "Et*99999999L"}) {
    expect_config_error([&] { parse_pipeline_layout(bad); }, "--pipeline-model-parallel-layout", "", "");
  }
  Parallelism p{.pipeline = 2, .virtual_stages = 2, .piece_layers = {3, 2, 1, 0}};
  EXPECT_EQ(layers_of_pieces(6, p), (Counts{3, 2, 1, 0}));
  expect_config_error([&] { layers_of_pieces(7, p); }, "--pipeline-model-parallel-layout", "",
                      "6 layers of the model's 7");
  p.piece_layers = {3, 3};
  expect_config_error([&] { validate(p); }, "--pipeline-model-parallel-layout", "", "expected 2 x 2");
  p = {.pipeline = 2, .loss_is_a_layer = true, .piece_layers = {3, 3}};
  expect_config_error([&] { validate(p); }, "--pipeline-model-parallel-layout", "", "excludes");
}

// The rank that has the loss alone holds the norm and the head.
TEST(Parallel, APieceMayHaveNoLayers) {
  const Model model = find_model("llama-2-7b");
  shardplan::Setup setup;
  setup.parallel = {.pipeline = 3, .piece_layers = {20, 12, 0}};
  const std::vector<RankKind> kinds = kinds_of_ranks(model, setup);
  ASSERT_EQ(kinds.size(), 3U);
  EXPECT_EQ(parameter_elements(kinds[2].catalog), 32000U * 4096 + 4096);
  EXPECT_EQ(parameter_elements(kinds[0].catalog) - 32000U * 4096, 20U * 202'383'360);
}

TEST(Parallel, StagesHoldTheirLayers) {
  const Model model = model_from_hf_config(R"({"model_type": "llama", "architectures": ["LlamaForCausalLM"],
      "num_hidden_layers": 8, "hidden_size": 64, "num_attention_heads": 4, "tie_word_embeddings": true})",
                                           "small");
  using Units = std::vector<std::string>;
  const auto turns = kinds_of_ranks(model, setup_of({.pipeline = 2, .virtual_stages = 2}, 4));
  ASSERT_EQ(turns.size(), 2U);
  EXPECT_EQ(turns[0].role, "pipeline 0");
  EXPECT_EQ(turns[0].count, 4U);
  EXPECT_EQ(units_of(turns[0].catalog),
            (Units{"embedding", "model.layers.0", "model.layers.1", "model.layers.4", "model.layers.5"}));
  EXPECT_EQ(units_of(turns[1].catalog),
            (Units{"model.layers.2", "model.layers.3", "model.layers.6", "model.layers.7", "head"}));
  EXPECT_EQ(tensors_of(turns[1].catalog).at("lm_head.weight").tied_to, "") << "elements of its own on the last stage";
  make_step_plan(turns[1].catalog, setup_of({}, 4));  // ties are sound

  const auto pairs = kinds_of_ranks(model, setup_of({.pipeline = 4, .schedule = PipelineSchedule::dualpipe}));
  EXPECT_EQ(units_of(pairs[0].catalog),
            (Units{"embedding", "model.layers.0", "model.layers.1", "model.layers.6", "model.layers.7", "head"}));
  EXPECT_EQ(units_of(pairs[3].catalog), units_of(pairs[0].catalog));
  EXPECT_EQ(units_of(pairs[2].catalog), units_of(pairs[1].catalog));
  EXPECT_FALSE(tensors_of(pairs[0].catalog).at("lm_head.weight").tied_to.empty()) << "both are on this rank";
}

TEST(Parallel, StaysFolded) {
  const auto kinds = kinds_of_ranks(find_model("deepseek-v3"), setup_of({.pipeline = 16, .expert = 64}, 128));
  for (const RankKind& kind : kinds) {
    EXPECT_LE(kind.catalog.runs.size(), 3U);
    for (const UnitRun& run : kind.catalog.runs) EXPECT_LE(run.tensors.size(), 40U);
  }
}

TEST(Parallel, WhatDoesNotDivide) {
  const Model llama = find_model("llama-2-70b");
  const auto split = [](const Model& model, const Parallelism& parallel, std::uint64_t data = 1) {
    kinds_of_ranks(model, setup_of(parallel, data));
  };
  expect_config_error([&] { split(llama, {.tensor = 3}); }, "--tp", "",
                      "3 ranks cannot share out the 64 attention heads");
  expect_config_error([&] { split(find_model("gpt2"), {.tensor = 5}); }, "--tp", "", "the 12 attention heads of gpt2");
  expect_config_error([&] { split(llama, {.pipeline = 81}); }, "--pp", "", "80 layers are fewer than the 81 stages");
  expect_config_error([&] { split(llama, {.expert = 2}, 2); }, "--ep", "", "has no experts");
  expect_config_error([&] { split(find_model("mixtral-8x7b"), {.expert = 3}, 3); }, "--ep", "", "the 8 experts");
  Model count;
  count.catalog.count_only = true;
  expect_config_error([&] { split(count, {.tensor = 2}); }, "--tp", "", "needs a model");
}

TEST(Parallel, NumbersThatContradictEachOther) {
  const auto check = [](const Parallelism& parallel, std::uint64_t data = 1) { validate(setup_of(parallel, data)); };
  expect_config_error([&] { check({.tensor = 0}); }, "--tp", "", "found 0");
  expect_config_error([&] { check({.virtual_stages = 2}); }, "--virtual-stages", "", "needs a pipeline");
  expect_config_error([&] { check({.pipeline = 2, .schedule = PipelineSchedule::interleaved}); }, "--schedule", "",
                      "needs --virtual-stages");
  expect_config_error([&] { check({.pipeline = 2, .virtual_stages = 2, .schedule = PipelineSchedule::zero_bubble}); },
                      "--schedule", "", "zero-bubble has no virtual stages");
  expect_config_error([&] { check({.pipeline = 3, .schedule = PipelineSchedule::dualpipe}); }, "--schedule", "",
                      "even");
  expect_config_error([&] { check({.sequence_parallel = true}); }, "--sequence-parallel", "", "--tp");
  expect_config_error([&] { check({.expert = 3}, 8); }, "--ep", "", "does not divide the 8 x 1 ranks");
  expect_config_error([&] { check({.context = 3}, 8); }, "--cp", "", "3 does not divide the 8 ranks");
}

// Counts each tensor of the model once, from what all ranks hold: a tensor that differs from the model's in one dim is
// shared out in that dim.
std::uint64_t elements_on_all_ranks(const Model& model, const Parallelism& p) {
  const auto whole = tensors_of(model.catalog);
  std::uint64_t sum = 0;
  for (const RankKind& kind : kinds_of_ranks(model, setup_of(p, p.expert))) {
    for (const auto& [name, tensor] : tensors_of(kind.catalog)) {
      if (!tensor.tied_to.empty()) continue;
      const Tensor& original = whole.at(name);
      const std::uint64_t ranks = tensor.expert ? resolved_expert_tensor(p) : p.tensor;
      RC_ASSERT(elements(tensor.shape) == elements(original.shape) ||
                elements(tensor.shape) * ranks == elements(original.shape));
      if (!original.tied_to.empty()) continue;  // the copy on the last stage
      sum += elements(original.shape) * (tensor.expert ? p.expert : 1);
    }
  }
  return sum;
}

TEST(Parallel, AllRanksTogetherHoldTheModelOnce) {
  test_support::check_property(100, [] {
    const auto power = [](int most) { return std::uint64_t{1} << *rc::gen::inRange(0, most); };
    const std::uint64_t layers = *rc::gen::inRange<std::uint64_t>(1, 20);
    const bool tied = *rc::gen::arbitrary<bool>();
    const Model model = model_from_hf_config(
        fmt::format(R"({{"model_type": "mixtral", "architectures": ["MixtralForCausalLM"], "hidden_size": 64,
             "intermediate_size": 96, "num_attention_heads": 8, "num_key_value_heads": {}, "num_local_experts": 8,
             "vocab_size": 128, "num_hidden_layers": {}, "tie_word_embeddings": {}}})",
                    power(4), layers, tied),
        "random");
    Parallelism p{.tensor = power(4), .expert = power(4)};
    p.pipeline = *rc::gen::inRange<std::uint64_t>(1, layers + 1);
    if (p.pipeline > 1 && *rc::gen::arbitrary<bool>() && layers % (2 * p.pipeline) == 0) p.virtual_stages = 2;
    if (*rc::gen::arbitrary<bool>()) p.expert_tensor = 1;
    RC_ASSERT(elements_on_all_ranks(model, p) == parameter_elements(model.catalog));
  });
}

TEST(WorldReport, ExpertsAreAnOptimizerOfTheirOwn) {
  auto setup = setup_of({.expert = 8}, 64);
  setup.stage = 1;
  const Model model = find_model("mixtral-8x7b");
  const Catalog part = kinds_of_ranks(model, setup).front().catalog;
  const auto [others, experts] = split_by_data_axis(part);
  const Report report = with_experts(report_paper(others, setup), report_paper(experts, expert_setup(setup)));
  // 45,097,156,608 parameters of experts over 8 x 8 ranks, 1,605,636,096 others over 64.
  constexpr std::uint64_t kExperts = 32ULL * 8 * 3 * 4096 * 14336;
  const std::uint64_t rest = parameter_elements(model.catalog) - kExperts;
  EXPECT_EQ(parameter_elements(experts), kExperts / 8);
  EXPECT_EQ(parameter_elements(others), rest);
  EXPECT_EQ(report.ranks.front().device.optimizer_states, Bytes{12 * (kExperts / 64) + 12 * rest / 64});
  setup.replicate = 2;
  expect_config_error([&] { expert_setup(setup); }, "--ep", "", "--replicate");
}

TEST(WorldReport, TheWorstKindIsTheOneThatHoldsMost) {
  const auto setup = setup_of({.pipeline = 4});
  const auto kinds = kinds_of_ranks(gpt3(), setup);
  std::vector<Report> reports;
  for (const RankKind& kind : kinds) reports.push_back(report_paper(kind.catalog, setup));
  const Report world = world_report(kinds, reports);
  ASSERT_EQ(world.ranks.size(), 4U);
  EXPECT_EQ(world.worst, 0U) << "positions beside the words";
  EXPECT_EQ(world.ranks.back().role, "pipeline 3");
  EXPECT_EQ(world.traffic.total(), reports[0].traffic.total());
}

}  // namespace
}  // namespace shardplan
