// Against PyTorch itself: what transformers' models keep for backward and where a step peaks, as
// tests/data/activations/make_goldens.py wrote it down (its README has the format).
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <boost/json.hpp>
#include <filesystem>
#include <fstream>
#include <limits>
#include <map>
#include <set>
#include <sstream>

#include "planner/activations/profiles.h"
#include "planner/formats/hf_config.h"
#include "planner/lora.h"
#include "tests/support/saved_lines.h"

namespace shardplan {
namespace {

namespace json = boost::json;

json::value read_json(const std::filesystem::path& path) {
  std::ifstream file(path);
  EXPECT_TRUE(file.good()) << path;
  std::stringstream text;
  text << file.rdbuf();
  return json::parse(text.str());
}

std::string text(const json::object& object, std::string_view key, std::string_view absent = "") {
  const json::value* value = object.if_contains(key);
  return value != nullptr ? std::string(value->as_string()) : std::string(absent);
}

std::uint64_t number(const json::value& value) {
  return value.to_number<std::uint64_t>();
}

struct Run {
  shardplan::Setup setup;
  ClientSetup client;
  std::vector<std::string> freeze{};
  std::optional<Lora> lora{};
};

// peft's LoraConfig, as --lora-* have it.
Lora read_lora(const json::object& options, const Policy& policy) {
  Lora lora{.rank = number(options.at("r"))};
  const json::value& targets = options.at("target_modules");
  if (targets.is_string()) lora.targets.emplace_back(targets.as_string());
  if (targets.is_array()) {
    for (const json::value& target : targets.as_array()) lora.targets.emplace_back(target.as_string());
  }
  const json::value* casts = options.if_contains("autocast_adapter_dtype");
  if (policy.parameter == DType::bf16 && (casts == nullptr || casts->as_bool())) lora.dtype = DType::f32;
  return lora;
}

// Nothing where the run has something that is not modelled.
std::optional<Run> read_run(const json::object& setup) {
  static const std::set<std::string> known{"attention", "dtype",     "batch",      "sequence", "operators", "use_cache",
                                           "target",    "mask",      "checkpoint", "freeze",   "lora",      "images",
                                           "image",     "recompute", "imbalance",  "ulysses"};
  for (const auto& member : setup) {
    if (!known.contains(std::string(member.key()))) return std::nullopt;
  }
  Run run;
  const std::string dtype = text(setup, "dtype");
  run.setup.policy = policy_named(dtype);
  run.client.profile = text(setup, "attention") == "eager" ? Profile::hf_eager : Profile::hf_sdpa;
  run.client.micro_batch = number(setup.at("batch"));
  if (!setup.at("sequence").is_null()) run.client.sequence = number(setup.at("sequence"));
  if (setup.contains("target")) run.client.target = number(setup.at("target"));
  run.client.use_cache = !setup.contains("use_cache") || setup.at("use_cache").as_bool();
  const std::string mask = text(setup, "mask", "none");
  run.client.mask = mask == "none" ? MaskKind::none : mask == "ones" ? MaskKind::ones : MaskKind::padded;
  if (setup.contains("checkpoint") && setup.at("checkpoint").as_bool()) run.client.recompute = RecomputeKind::full;
  if (const json::value* globs = setup.if_contains("freeze")) {
    for (const json::value& glob : globs->as_array()) run.freeze.emplace_back(glob.as_string());
  }
  if (const json::value* options = setup.if_contains("lora")) {
    run.lora = read_lora(options->as_object(), run.setup.policy);
    const json::value* dropout = options->as_object().if_contains("lora_dropout");
    if (dropout != nullptr) run.client.adapter_dropout = dropout->to_number<double>();
  }
  if (const json::value* ranks = setup.if_contains("ulysses")) run.setup.parallel.context = number(*ranks);
  if (const json::value* imbalance = setup.if_contains("imbalance")) {
    run.client.expert_load.imbalance =
        imbalance->is_string() ? std::numeric_limits<double>::infinity() : imbalance->to_number<double>();
  }
  if (text(setup, "recompute") == "invert") run.client.recompute = RecomputeKind::invert;
  if (text(setup, "recompute") == "adjoint") run.client.recompute = RecomputeKind::adjoint;
  if (setup.contains("images")) run.client.images = number(setup.at("images"));
  if (setup.contains("image")) {
    run.client.image_height = number(setup.at("image").at(0));
    run.client.image_width = number(setup.at("image").at(1));
  }
  return run;
}

std::uint64_t saved_bytes(const Activity& activity) {
  Bytes saved;
  for (const SavedByUnit& unit : activity.saved) saved += unit.times * unit.bytes;
  return saved.count();
}

// What the model itself holds, which PyTorch's tracker counts and an Activity does not.
std::uint64_t resident(const json::object& step) {
  const json::object& live = step.at("live_at_peak").as_object();
  std::uint64_t sum = 0;
  for (const char* kind : {"parameters", "buffers", "inputs"}) {
    if (const json::value* bytes = live.if_contains(kind)) sum += number(*bytes);
  }
  return sum;
}

// Of the peak, where saved bytes always agree to the byte. Not explained: a tensor of one token's features in mamba2, a copy of a
// gradient in gemma3's tower with eager attention, what an inverted layer makes of a gradient in glow and nice, the end of one mT5. In the
// drawn models Mamba's A_log is fp32 whatever the model's dtype, and here in that. A continuous flow's forward differentiates: what its
// backward runs first follows from how many nodes autograd's own thread has numbered before, in this step and in earlier ones.
double tolerance(const std::string& file, const Policy& policy) {
  if (policy.compute != policy.parameter) return 0.01;  // autocast: copies of gradients, as they are cast
  static const std::map<std::string_view, double> wider{{"cnf", 0.035},  {"drawn", 0.004},  {"drawn_recomputed", 0.003},
                                                        {"flow", 0.004}, {"gemma3", 0.008}, {"mamba2", 0.003}};
  const auto wide = wider.find(file);
  return wide == wider.end() ? 0.001 : wide->second;
}

// What an operation in place on a view keeps is inside the view's CopySlices node, where the goldens' script does not see it:
// DeepSeek-V2's weighted sum in fp32, and the mask of Kimi-VL's words that stand for patches.
std::uint64_t hidden_bytes(const Model& model, const json::object& config, const Run& run) {
  const std::uint64_t tokens = run.client.micro_batch * run.client.sequence;
  if (model.catalog.family == "kimi_vl") return tokens;
  if (model.catalog.family != "deepseek_v2" || run.setup.policy.compute != DType::f32) return 0;
  const std::uint64_t all = number(config.at("num_hidden_layers"));
  const std::uint64_t layers = all - std::min(all, number(config.at("first_k_dense_replace")));
  return layers * tokens * number(config.at("num_experts_per_tok")) * (number(config.at("hidden_size")) + 1) * 4;
}

// GPT-J divides by an attribute of each layer, a number that the script makes on the GPU: where a model is loaded it stays on the CPU.
std::uint64_t bytes_on_the_host(const Model& model, const Run& run) {
  return model.catalog.family == "gptj" ? model.architecture.layers * bits(run.setup.policy.parameter) / 8 : 0;
}

class HfActivations : public testing::TestWithParam<std::string> {};

TEST_P(HfActivations, SavedTensorsAndPeak) {
  const json::value golden = read_json(std::filesystem::path(ACTIVATION_GOLDENS) / (GetParam() + ".json"));
  std::size_t compared = 0;
  for (const json::value& c : golden.at("cases").as_array()) {
    const JsonDocument config(json::serialize(c.at("config")), "config.json");
    const Model whole = model_from_hf_config(config.root());
    for (const json::value& entry : c.at("runs").as_array()) {
      const auto run = read_run(entry.at("setup").as_object());
      if (!run) continue;
      Model model = whole;
      for (const std::string& glob : run->freeze) freeze(model.catalog, glob);
      if (run->lora) add_lora(model.catalog, *run->lora);
      SCOPED_TRACE(text(c.as_object(), "name") + " " + json::serialize(entry.at("setup")));
      const ActivityResult exact = activity_of(model, model.catalog, run->setup, run->client, {.rounding = 1});
      EXPECT_TRUE(exact.activity) << exact.unknown_because;
      if (!exact.activity) continue;
      // What a checkpoint keeps is not in PyTorch's graph, so not in the golden.
      if (run->client.recompute == RecomputeKind::none) {
        EXPECT_EQ(saved_bytes(*exact.activity) + bytes_on_the_host(model, *run),
                  number(entry.at("saved_bytes")) + hidden_bytes(model, c.at("config").as_object(), *run))
            << test_support::listed(*exact.activity);
      }
      const ActivityResult rounded =
          activity_of(model, model.catalog, run->setup, run->client, {.adds_in_place = false});
      const json::object& step = entry.at("step").as_object();
      const auto measured = static_cast<double>(number(step.at("peak")));
      const double planned =
          static_cast<double>(resident(step)) + static_cast<double>(sum(peak_of(*rounded.activity).held));
      EXPECT_NEAR(planned / measured, 1.0, tolerance(GetParam(), run->setup.policy))
          << planned << " against " << measured;
      ++compared;
    }
  }
  EXPECT_GT(compared, 0U);
}

// docs/memory_model.md, "Activations: Hugging Face": the sum of a Llama block, for 128 shapes.
TEST(HfLlama, ABlockKeepsWhatTheClosedFormSays) {
  for (std::uint64_t i = 0; i < 128; ++i) {
    const std::uint64_t groups = 1 + i % 4;
    const std::uint64_t heads = groups * (1 + i / 4 % 3);
    const std::uint64_t size = 8 * (1 + i % 5);
    const std::uint64_t f = 24 + 8 * (i % 7);
    const std::string config = fmt::format(
        R"({{"model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": 50, "hidden_size": {},
            "intermediate_size": {}, "num_hidden_layers": {}, "num_attention_heads": {}, "num_key_value_heads": {}}})",
        heads * size, f, 3 + i % 4, heads, groups);
    const Model model = model_from_hf_config(JsonDocument(config, "config.json").root());
    shardplan::Setup setup;
    setup.policy = policy_named("bf16");
    ClientSetup client;
    client.micro_batch = 1 + i % 3;
    client.sequence = 5 + i;
    const ActivityResult result = activity_of(model, model.catalog, setup, client, {.rounding = 1});
    ASSERT_TRUE(result.activity);
    const std::uint64_t b = client.micro_batch;
    const std::uint64_t tokens = b * client.sequence;
    const std::uint64_t expected =
        tokens * (20 * heads * size + 4 * groups * size + 8 * f + 8) + 4 * b * heads * client.sequence + 24;
    EXPECT_EQ(result.activity->saved.at(1).bytes.count(), expected) << config << test_support::listed(*result.activity);
  }
}

// What a class cannot compute, or is not written here, is refused by its name.
TEST(HfRefusals, SayWhatIsNotKnown) {
  const auto refusal = [](std::string_view config, const ClientSetup& client) {
    const Model model = model_from_hf_config(JsonDocument(std::string(config), "config.json").root());
    shardplan::Setup setup;
    setup.policy = policy_named("bf16");
    return activity_of(model, model.catalog, setup, client).unknown_because;
  };
  const auto says = [](const std::string& text, std::string_view part) { return text.find(part) != std::string::npos; };
  ClientSetup client;
  client.profile = Profile::hf_eager;
  client.sequence = 32;
  EXPECT_TRUE(says(refusal(R"({"model_type": "dbrx"})", client), "without attn_config.clip_qkv"));
  client.profile = Profile::hf_sdpa;
  EXPECT_EQ(refusal(R"({"model_type": "dbrx"})", client), "");
  EXPECT_TRUE(says(refusal(R"({"model_type": "phimoe", "sliding_window": 32})", client),
                   "sliding_window 32 in a text of 32 tokens"));
  EXPECT_EQ(refusal(R"({"model_type": "phimoe", "sliding_window": 33})", client), "");
  EXPECT_TRUE(says(refusal(R"({"model_type": "gemma3"})", client), "256 tokens of images in a sequence of 32"));
  client.sequence = 300;
  client.image_height = client.image_width = 448;
  EXPECT_TRUE(says(refusal(R"({"model_type": "gemma3"})", client), "of anything but"));
}

TEST(HfRefusals, OfModelsThatSee) {
  const auto refusal = [](const std::string& config, std::uint64_t images, std::uint64_t pixels = 0) {
    const Model model = model_from_hf_config(JsonDocument(config, "config.json").root());
    shardplan::Setup setup;
    setup.policy = policy_named("bf16");
    ClientSetup client;
    client.sequence = 300;
    client.images = images;
    client.image_height = client.image_width = pixels;
    return activity_of(model, model.catalog, setup, client).unknown_because;
  };
  const auto llama4 = [](std::string_view vision) {
    return fmt::format(
        R"({{"model_type": "llama4", "text_config": {{"num_hidden_layers": 2}}, "vision_config": {{"num_hidden_layers": 2, {}}}}})",
        vision);
  };
  // The class's defaults: an adapter of 5,632 features behind tokens of 4 x 768.
  EXPECT_NE(refusal(llama4(R"("image_size": 224)"), 1).find("adapter of 5632"), std::string::npos);
  EXPECT_NE(refusal(llama4(R"("intermediate_size": 3072)"), 1).find("projector of 7680"), std::string::npos);
  const std::string fits = llama4(R"("intermediate_size": 3072, "vision_output_dim": 4096)");
  EXPECT_EQ(refusal(fits, 1), "");
  EXPECT_EQ(refusal(fits, 1, 448), "");
  EXPECT_NE(refusal(fits, 1, 336).find("of anything but 1024 square patches of 14"), std::string::npos);
  EXPECT_NE(refusal(fits, 2).find("512 tokens of images in a sequence of 300"), std::string::npos);
  EXPECT_NE(refusal(llama4(R"("pixel_shuffle_ratio": 0.3)"), 1).find("pixel shuffle of 32 x 32"), std::string::npos);
  for (const char* config : {R"({"model_type": "gemma3"})", R"({"model_type": "llama4"})",
                             R"({"model_type": "llava", "vision_config": {"num_hidden_layers": 4}})"}) {
    EXPECT_EQ(refusal(config, 0), "") << config;
  }
  // Of images of any size, which the processor brings to whole tokens.
  const std::string any_size =
      R"({"model_type": "qwen2_5_vl", "vision_config": {"depth": 2, "out_hidden_size": 8192}})";
  EXPECT_EQ(refusal(any_size, 0), "");
  EXPECT_EQ(refusal(any_size, 2, 280), "");
  EXPECT_NE(refusal(any_size, 1).find("--image-size"), std::string::npos);
  EXPECT_NE(refusal(any_size, 1, 294).find("multiples of 28"), std::string::npos);
  EXPECT_NE(refusal(any_size, 4, 280).find("400 tokens of images in a sequence of 300"), std::string::npos);
  EXPECT_NE(refusal(R"({"model_type": "kimi_vl"})", 0).find("texts without images"), std::string::npos);
  EXPECT_NE(refusal(R"({"model_type": "llava", "vision_config": {"num_hidden_layers": 4}})", 1, 336).find("336 x 336"),
            std::string::npos);
}

// Images of Chameleon are words of its text; DiT's are of the one size of its table of positions.
TEST(HfRefusals, SayWhichImagesAreNotKnown) {
  const auto refusal = [](std::string_view config, ClientSetup client, std::uint64_t height, std::uint64_t width) {
    const Model model = model_from_hf_config(JsonDocument(std::string(config), "config.json").root());
    client.image_height = height;
    client.image_width = width;
    return activity_of(model, model.catalog, {}, client).unknown_because;
  };
  const auto says = [](const std::string& text, std::string_view part) { return text.find(part) != std::string::npos; };
  constexpr std::string_view chameleon = R"({"model_type": "chameleon", "num_hidden_layers": 1})";
  ClientSetup client;
  client.sequence = 1023;
  EXPECT_TRUE(
      says(refusal(chameleon, client, 0, 0), "1024 tokens of images (none with --images 0) in a sequence of 1023"));
  EXPECT_EQ(refusal(chameleon, client, 512, 256), "");
  EXPECT_TRUE(says(refusal(chameleon, client, 15, 512), "images smaller than"));
  client.images = 0;
  EXPECT_EQ(refusal(chameleon, client, 0, 0), "");
  client.images = 1;
  EXPECT_TRUE(
      says(refusal(R"({"model_type": "chameleon", "num_hidden_layers": 1, "vq_config": {"double_latent": true}})",
                   client, 256, 256),
           "double_latent"));
  client.images = 0;
  EXPECT_TRUE(says(refusal(R"({"model_type": "kimi_vl"})", client, 0, 0), "texts without images"));
  EXPECT_EQ(refusal(R"({"_class_name": "DiT", "depth": 1})", {}, 256, 256), "");
  EXPECT_TRUE(says(refusal(R"({"_class_name": "DiT", "depth": 1})", {}, 512, 512), "anything but 256 x 256 pixels"));
  EXPECT_TRUE(says(refusal(R"({"_class_name": "DiT", "input_size": 33})", {}, 0, 0), "patch_size does not divide"));
}

// A head without a loss here is refused by its name; a bare model has none, and the head of another rank is none of this one's.
TEST(HfRefusals, OfHeads) {
  const auto refusal = [](std::string_view type, std::string_view architecture) {
    const std::string config =
        fmt::format(R"({{"model_type": "{}", "architectures": ["{}"], "pad_token_id": 0}})", type, architecture);
    const Model model = model_from_hf_config(JsonDocument(config, "config.json").root());
    ClientSetup client;
    client.sequence = 16;
    return activity_of(model, model.catalog, {}, client).unknown_because;
  };
  for (const char* known :
       {"LlamaForCausalLM", "LlamaForSequenceClassification", "LlamaForTokenClassification", "LlamaModel"}) {
    EXPECT_EQ(refusal("llama", known), "") << known;
  }
  EXPECT_NE(refusal("llama", "LlamaForQuestionAnswering").find("the head qa_outputs"), std::string::npos);
  EXPECT_NE(refusal("gpt2", "GPT2ForTokenClassification").find("the head classifier"), std::string::npos);
  EXPECT_NE(refusal("gpt_bigcode", "GPTBigCodeForTokenClassification").find("the head classifier"), std::string::npos);
}

// Of one step of a flow in fp32, without gradients of parameters.
double flow_peak(const std::string& config, std::uint64_t samples, RecomputeKind recompute) {
  const Model model = model_from_hf_config(JsonDocument(config, "config.json").root());
  shardplan::Setup setup;
  setup.policy = policy_named("fp32");
  ClientSetup client;
  client.micro_batch = samples;
  client.recompute = recompute;
  const ActivityResult result = activity_of(model, model.catalog, setup, client, {.keeps_gradients = false});
  EXPECT_TRUE(result.activity) << result.unknown_because;
  return static_cast<double>(sum(peak_of(*result.activity).held));
}

// A flow of 32 steps in each level and one of 320: recomputed by inversion, the deeper needs no more than the other.
TEST(HfFlow, InvertedStepsAreConstantInDepth) {
  const auto peak = [](int steps, RecomputeKind recompute) {
    const std::string config = fmt::format(
        R"({{"model_type": "glow", "levels": 3, "steps_per_level": {}, "image_size": 32, "hidden_channels": 512}})",
        steps);
    return flow_peak(config, 16, recompute);
  };
  const double shallow = peak(32, RecomputeKind::invert);
  EXPECT_NEAR(peak(320, RecomputeKind::invert) / shallow, 1, 0.01);
  EXPECT_GT(peak(320, RecomputeKind::none), 9 * peak(32, RecomputeKind::none));
  EXPECT_GT(peak(32, RecomputeKind::none), 10 * shallow);
}

// A continuous flow of 8 time steps and one of 80: by its adjoint equation the longer needs no more than the other.
TEST(HfCnf, TheAdjointIsConstantInTimeSteps) {
  const auto peak = [](std::string_view solver, int steps, RecomputeKind recompute) {
    const std::string config = fmt::format(
        R"({{"model_type": "cnf", "data_dims": 63, "hidden_dims": [860, 860], "blocks": 2, "solver": "{}", "time_steps": {}}})",
        solver, steps);
    return flow_peak(config, 1000, recompute);
  };
  for (const char* solver : {"euler", "midpoint", "rk4"}) {
    const double shallow = peak(solver, 8, RecomputeKind::adjoint);
    EXPECT_NEAR(peak(solver, 80, RecomputeKind::adjoint) / shallow, 1, 1e-4) << solver;
    EXPECT_NEAR(peak(solver, 80, RecomputeKind::none) / peak(solver, 8, RecomputeKind::none), 10, 0.7) << solver;
    EXPECT_GT(peak(solver, 8, RecomputeKind::none), 2.5 * shallow) << solver;
  }
}

// What is no recomputation of a family is refused with a word for it.
TEST(HfCnf, OtherRecomputationIsRefused) {
  const auto refused = [](std::string_view config, RecomputeKind recompute) {
    const Model model = model_from_hf_config(JsonDocument(std::string(config), "config.json").root());
    ClientSetup client;
    client.micro_batch = 2;
    client.recompute = recompute;
    return activity_of(model, model.catalog, {}, client).unknown_because;
  };
  constexpr std::string_view cnf = R"({"model_type": "cnf", "data_dims": 6, "hidden_dims": [16]})";
  constexpr std::string_view glow =
      R"({"model_type": "glow", "levels": 1, "steps_per_level": 2, "image_size": 8, "hidden_channels": 8})";
  EXPECT_NE(refused(cnf, RecomputeKind::full).find("--recompute adjoint"), std::string::npos);
  EXPECT_NE(refused(cnf, RecomputeKind::invert).find("can be inverted"), std::string::npos);
  EXPECT_NE(refused(glow, RecomputeKind::adjoint).find("continuous flows"), std::string::npos);
}

INSTANTIATE_TEST_SUITE_P(Families, HfActivations,
                         testing::Values("albert", "amp", "autocast", "balance", "chameleon", "cnf", "dbrx", "deberta",
                                         "decoders", "dinov2", "dit", "drawn", "drawn_recomputed", "encoders",
                                         "experts", "flow", "flux2", "gemma3", "gpt2", "gpt_neox", "imbalance", "jamba",
                                         "kimi_vl", "llama", "llama4", "llama4_images", "llava", "mamba", "mamba2",
                                         "partly", "phimoe", "qwen_vl", "sd3", "sd3_pipeline", "siglip", "swin", "t5",
                                         "towers", "ulysses", "vision"));

}  // namespace
}  // namespace shardplan
