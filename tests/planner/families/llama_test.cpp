#include <fmt/format.h>
#include <fmt/ranges.h>
#include <gtest/gtest.h>

#include <stdexcept>

#include "planner/formats/hf_config.h"
#include "tests/planner/families/config_text.h"
#include "tests/support/config_error.h"

namespace shardplan {
namespace {

using test_support::config_text;
using test_support::expect_config_error;
using test_support::Keys;

const Keys kSmall{{"model_type", "\"llama\""},
                  {"architectures", "[\"LlamaForCausalLM\"]"},
                  {"vocab_size", "100"},
                  {"hidden_size", "48"},
                  {"intermediate_size", "80"},
                  {"num_hidden_layers", "3"},
                  {"num_attention_heads", "6"},
                  {"num_key_value_heads", "2"},
                  {"max_position_embeddings", "64"}};

Model llama(const Keys& changes = {}) {
  return model_from_hf_config(config_text(kSmall, changes), "config.json");
}

// "name [dims] tied_to" of every tensor, expanded.
std::vector<std::string> listing(const Catalog& catalog) {
  std::vector<std::string> lines;
  for_each_tensor(catalog, [&](const std::string& name, const Tensor& tensor) {
    lines.push_back(fmt::format("{} [{}]{}", name, fmt::join(tensor.shape, ","),
                                tensor.tied_to.empty() ? "" : " = " + tensor.tied_to));
  });
  return lines;
}

TEST(Llama, HasTheStateDictOfItsClass) {
  const Model model = llama({{"num_hidden_layers", "1"}});
  const std::vector<std::string> expected{
      "model.embed_tokens.weight [100,48]",
      "model.layers.0.self_attn.q_proj.weight [48,48]",
      "model.layers.0.self_attn.k_proj.weight [16,48]",
      "model.layers.0.self_attn.v_proj.weight [16,48]",
      "model.layers.0.self_attn.o_proj.weight [48,48]",
      "model.layers.0.mlp.gate_proj.weight [80,48]",
      "model.layers.0.mlp.up_proj.weight [80,48]",
      "model.layers.0.mlp.down_proj.weight [48,80]",
      "model.layers.0.input_layernorm.weight [48]",
      "model.layers.0.post_attention_layernorm.weight [48]",
      "model.norm.weight [48]",
      "lm_head.weight [100,48]",
  };
  EXPECT_EQ(listing(model.catalog), expected);
  EXPECT_EQ(model.catalog.notes, std::vector<std::string>{});
}

TEST(Llama, UnitsAreEmbeddingBlocksHead) {
  const Model model = llama();
  ASSERT_EQ(model.catalog.runs.size(), 3U);
  EXPECT_EQ(unit_name(model.catalog.runs[0], 0), "embedding");
  EXPECT_EQ(unit_name(model.catalog.runs[1], 2), "model.layers.2");
  EXPECT_EQ(model.catalog.runs[1].count, 3U);
  EXPECT_EQ(unit_name(model.catalog.runs[2], 0), "head");
}

TEST(Llama, TiedHeadOwnsNothing) {
  const Model model = llama({{"tie_word_embeddings", "true"}});
  EXPECT_EQ(listing(model.catalog).back(), "lm_head.weight [100,48] = model.embed_tokens.weight");
  EXPECT_EQ(parameter_elements(llama().catalog) - parameter_elements(model.catalog), 100U * 48);
  EXPECT_EQ(unit_ties(model.catalog), (std::vector<UnitTie>{{4, 0}}));
}

TEST(Llama, BiasesWhereTheyAreAskedFor) {
  const std::uint64_t plain = parameter_elements(llama().catalog);
  EXPECT_EQ(parameter_elements(llama({{"attention_bias", "true"}}).catalog), plain + 3 * (48 + 16 + 16 + 48));
  EXPECT_EQ(parameter_elements(llama({{"mlp_bias", "true"}}).catalog), plain + 3 * (80 + 80 + 48));
  const auto tensors = listing(llama({{"attention_bias", "true"}, {"mlp_bias", "true"}}).catalog);
  EXPECT_EQ(tensors.at(2), "model.layers.0.self_attn.q_proj.bias [48]");
  EXPECT_EQ(tensors.at(14), "model.layers.0.mlp.down_proj.bias [48]");
}

TEST(Llama, HeadDimNeedNotBeHiddenOverHeads) {
  const Model model = llama({{"head_dim", "7"}, {"hidden_size", "50"}});
  const auto tensors = listing(model.catalog);
  EXPECT_EQ(tensors.at(1), "model.layers.0.self_attn.q_proj.weight [42,50]");
  EXPECT_EQ(tensors.at(2), "model.layers.0.self_attn.k_proj.weight [14,50]");
  EXPECT_EQ(tensors.at(4), "model.layers.0.self_attn.o_proj.weight [50,42]");
  EXPECT_EQ(model.architecture.head_size, 7U);
}

TEST(Llama, NullMeansDerived) {
  EXPECT_EQ(llama({{"head_dim", "null"}}), llama());
  EXPECT_EQ(llama({{"num_key_value_heads", "null"}}), llama({{"num_key_value_heads", "6"}}));
  EXPECT_EQ(llama({{"num_key_value_heads", ""}}), llama({{"num_key_value_heads", "6"}}));
}

TEST(Llama, AbsentKeysHaveTheDefaultsOfTheClass) {
  const Model model = model_from_hf_config(R"({"model_type": "llama"})", "config.json");
  EXPECT_EQ(parameter_elements(model.catalog), 6'738'415'616U);  // they are those of the 7B model
  EXPECT_EQ(model.architecture, (Architecture{.vocabulary = 32000,
                                              .hidden = 4096,
                                              .intermediate = 11008,
                                              .layers = 32,
                                              .heads = 32,
                                              .kv_heads = 32,
                                              .head_size = 128,
                                              .max_positions = 2048}));
}

TEST(Llama, DescribesItself) {
  const Model model = llama();
  EXPECT_EQ(model.architecture, (Architecture{.vocabulary = 100,
                                              .hidden = 48,
                                              .intermediate = 80,
                                              .layers = 3,
                                              .heads = 6,
                                              .kv_heads = 2,
                                              .head_size = 8,
                                              .max_positions = 64}));
  ASSERT_EQ(model.modules.size(), 3U);
  const ModuleRun& block = model.modules[1];
  EXPECT_EQ(block.name, "model.layers");
  EXPECT_EQ(block.count, 3U);
  std::vector<std::string> modules;
  for (const Module& module : block.modules) {
    modules.push_back(fmt::format("{} {} {}->{}", module.name, name(module.kind), module.input, module.output));
  }
  const std::vector<std::string> expected{
      "self_attn.q_proj linear 48->48",  "self_attn.k_proj linear 48->16",
      "self_attn.v_proj linear 48->16",  "self_attn.attention attention 80->48",
      "self_attn.o_proj linear 48->48",  "mlp.gate_proj linear 48->80",
      "mlp.up_proj linear 48->80",       "mlp.act_fn activation 80->80",
      "mlp.gate multiply 160->80",       "mlp.down_proj linear 80->48",
      "input_layernorm rms_norm 48->48", "post_attention_layernorm rms_norm 48->48"};
  EXPECT_EQ(modules, expected);
  EXPECT_EQ(block.modules[3].attention, (AttentionSizes{6, 2, 8, true}));
  EXPECT_EQ(block.modules[7].function, "silu");
  EXPECT_EQ(model.modules[0].modules.at(0).kind, ModuleKind::embedding);
}

TEST(Llama, ArchitecturesChooseTheHead) {
  struct Case {
    const char* architecture;
    const char* first;
    std::vector<std::string> head;
  };
  const Case cases[] = {
      {"LlamaForCausalLM", "model.embed_tokens.weight [100,48]", {"model.norm.weight [48]", "lm_head.weight [100,48]"}},
      {"LlamaModel", "embed_tokens.weight [100,48]", {"norm.weight [48]"}},
      {"LlamaForSequenceClassification",
       "model.embed_tokens.weight [100,48]",
       {"model.norm.weight [48]", "score.weight [2,48]"}},
      {"LlamaForTokenClassification",
       "model.embed_tokens.weight [100,48]",
       {"model.norm.weight [48]", "score.weight [2,48]", "score.bias [2]"}},
      {"LlamaForQuestionAnswering",
       "transformer.embed_tokens.weight [100,48]",
       {"transformer.norm.weight [48]", "qa_outputs.weight [2,48]", "qa_outputs.bias [2]"}},
  };
  for (const Case& c : cases) {
    SCOPED_TRACE(c.architecture);
    const Model model = llama({{"architectures", fmt::format("[\"{}\"]", c.architecture)}});
    const auto tensors = listing(model.catalog);
    EXPECT_EQ(tensors.front(), c.first);
    EXPECT_EQ(std::vector<std::string>(tensors.end() - static_cast<std::ptrdiff_t>(c.head.size()), tensors.end()),
              c.head);
    EXPECT_EQ(model.catalog.notes, std::vector<std::string>{});
    EXPECT_EQ(unit_count(model.catalog), 5U);
  }
  EXPECT_EQ(unit_name(llama({{"architectures", "[\"LlamaModel\"]"}}).catalog.runs[1], 0), "layers.0");
  const auto head = [](const Keys& more) {
    Keys keys{{"architectures", "[\"LlamaForSequenceClassification\"]"}};
    keys.insert(more.begin(), more.end());
    return listing(llama(keys).catalog).back();
  };
  EXPECT_EQ(head({{"num_labels", "5"}}), "score.weight [5,48]");
  EXPECT_EQ(head({{"id2label", R"({"0": "a", "1": "b", "2": "c"})"}}), "score.weight [3,48]");
  expect_config_error([&] { head({{"id2label", "{}"}}); }, "config.json", "id2label", "one entry for each label");
}

TEST(Llama, UnknownArchitecturesAreTakenAsLanguageModelsWithANote) {
  const Model model = llama({{"architectures", "[\"MyLlama\"]"}});
  EXPECT_EQ(model.catalog.runs, llama().catalog.runs);
  EXPECT_EQ(model.catalog.notes,
            std::vector<std::string>{"architecture MyLlama is not known: taken as LlamaForCausalLM"});
  for (const char* absent : {"", "null", "[]"}) {
    EXPECT_EQ(llama({{"architectures", absent}}).catalog.notes,
              std::vector<std::string>{"architectures is absent: taken as LlamaForCausalLM"});
  }
}

TEST(Llama, BadConfigsAreOneErrorWithFileAndKey) {
  struct Case {
    const char* key;
    const char* value;
    const char* problem;
  };
  const Case cases[] = {
      {"vocab_size", "0", "expected a positive integer, found 0"},
      {"vocab_size", "null", "expected a positive integer, found null"},
      {"hidden_size", "-4096", "expected a positive integer, found -4096"},
      {"hidden_size", "\"big\"", "expected a positive integer, found \"big\""},
      {"hidden_size", "48.5", "expected a positive integer"},
      {"hidden_size", "1e30", "expected a positive integer up to 2147483647, found 1e+30"},
      {"hidden_size", "9223372036854775808", "up to 2147483647, found 9223372036854775808"},
      {"hidden_size", "Infinity", "up to 2147483647, found inf"},
      {"hidden_size", "NaN", "expected a positive integer, found nan"},
      {"intermediate_size", "[80]", "expected a positive integer, found an array"},
      {"intermediate_size", "null", "expected a positive integer, found null"},
      {"num_hidden_layers", "0", "expected a positive integer, found 0"},
      {"num_hidden_layers", "true", "expected a positive integer, found true"},
      {"num_attention_heads", "7", "expected a divisor of hidden_size, 48, found 7"},
      {"num_attention_heads", "0", "expected a positive integer, found 0"},
      {"num_key_value_heads", "4", "expected a divisor of num_attention_heads, 6, found 4"},
      {"num_key_value_heads", "12", "expected a divisor of num_attention_heads, 6, found 12"},
      {"num_key_value_heads", "0", "expected a positive integer, found 0"},
      {"head_dim", "0", "expected a positive integer, found 0"},
      {"head_dim", "-8", "expected a positive integer, found -8"},
      {"max_position_embeddings", "0", "expected a positive integer, found 0"},
      {"attention_bias", "1", "expected true or false, found 1"},
      {"tie_word_embeddings", "\"yes\"", "expected true or false, found \"yes\""},
      {"hidden_act", "3", "expected a string, found 3"},
      {"architectures", "\"LlamaForCausalLM\"", "expected an array, found \"LlamaForCausalLM\""},
  };
  for (const Case& c : cases) {
    SCOPED_TRACE(fmt::format("{} = {}", c.key, c.value));
    // Seven heads have seven key-value heads here, so that only the width is wrong.
    const Keys more = std::string(c.key) == "num_attention_heads" ? Keys{{"num_key_value_heads", "null"}} : Keys{};
    Keys keys{{c.key, c.value}};
    keys.insert(more.begin(), more.end());
    expect_config_error([&] { llama(keys); }, "config.json", c.key, c.problem);
  }
  expect_config_error([] { llama({{"architectures", "[3]"}}); }, "config.json", "architectures[0]",
                      "expected a string, found 3");
}

const AttentionSizes& attention_of(const Model& model) {
  for (const ModuleRun& run : model.modules) {
    for (const Module& module : run.modules) {
      if (module.attention) return *module.attention;
    }
  }
  throw std::logic_error("a model without attention");
}

TEST(Windows, AreOfTheLayersThatTheFileOrTheClassNames) {
  const auto whole = [](const Keys& changes) { return attention_of(llama(changes)).whole; };
  const auto window = [](const Keys& changes) { return attention_of(llama(changes)).window; };
  const Keys qwen{{"model_type", "\"qwen3\""}, {"use_sliding_window", "true"}, {"max_window_layers", "2"}};
  EXPECT_EQ(whole(qwen), (std::vector<bool>{true, true, false}));
  Keys listed = qwen;
  listed["layer_types"] = R"(["sliding_attention", "full_attention", "sliding_attention"])";
  EXPECT_EQ(whole(listed), (std::vector<bool>{false, true, false}));
  EXPECT_EQ(window(listed), 4096U);
  EXPECT_EQ(window({{"model_type", "\"qwen3\""}}), 0U);
  EXPECT_EQ(whole({{"model_type", "\"gemma2\""}}), (std::vector<bool>{false, true, false}));
  // Mistral's class reads no layer_types.
  EXPECT_EQ(whole({{"model_type", "\"mistral\""}, {"layer_types", R"(["full_attention"])"}}), std::vector<bool>{});
  EXPECT_EQ(window({{"model_type", "\"mistral\""}, {"sliding_window", "null"}}), 0U);
}

TEST(Windows, ListsThatSaySomethingElseAreErrors) {
  const auto fails = [](const Keys& changes, const char* key, const char* problem) {
    expect_config_error([&] { llama(changes); }, "config.json", key, problem);
  };
  const auto gemma = [](const char* types) { return Keys{{"model_type", "\"gemma2\""}, {"layer_types", types}}; };
  fails(gemma(R"(["full_attention"])"), "layer_types", "expected one for each of 3 layers, found 1");
  fails(gemma(R"(["full_attention", "x", "full_attention"])"), "layer_types",
        "expected full_attention or sliding_attention, found x");
  fails({{"model_type", "\"qwen3\""}, {"layer_types", R"(["x", "x", "x"])"}}, "layer_types", "found x");
  Keys without = gemma(R"(["full_attention", "full_attention", "sliding_attention"])");
  without["sliding_window"] = "null";
  fails(without, "sliding_window", "since layer_types has sliding_attention");
  fails({{"model_type", "\"olmo3\""}, {"num_hidden_layers", "2147483647"}}, "num_hidden_layers",
        "expected at most 65536 layers of several kinds");
  fails({{"model_type", "\"olmo\""}, {"clip_qkv", "-3"}}, "clip_qkv", "expected a positive number");
}

TEST(Llama, ModelsBeyond64BitsAreErrorsNotWraps) {
  const char* largest = "2147483647";
  // A block still counts, all of them no longer.
  expect_config_error(
      [&] {
        llama({{"hidden_size", "1048576"},
               {"num_attention_heads", "1"},
               {"num_key_value_heads", "1"},
               {"num_hidden_layers", largest}});
      },
      "config.json", "model.layers", "with its 2147483647 units the model has more elements than 64 bits can count");
  expect_config_error(
      [&] {
        llama({{"num_attention_heads", largest},
               {"num_key_value_heads", largest},
               {"head_dim", largest},
               {"hidden_size", largest}});
      },
      "config.json", "model.layers.0.self_attn.q_proj.weight", "more elements than 64 bits can count");
  EXPECT_EQ(unit_count(llama({{"num_hidden_layers", largest}}).catalog), 2147483649U);
}

}  // namespace
}  // namespace shardplan
