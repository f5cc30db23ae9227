// What tests/data/families/gpt2.json cannot say of GPT-2 and its kin: names, notes and modules without tensors.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include "planner/formats/hf_config.h"
#include "tests/planner/families/config_text.h"
#include "tests/support/config_error.h"

namespace shardplan {
namespace {

using test_support::config_text;
using test_support::expect_config_error;
using test_support::Keys;

const Keys kSmall{{"model_type", "\"gpt2\""},
                  {"architectures", "[\"GPT2LMHeadModel\"]"},
                  {"tie_word_embeddings", "true"},
                  {"vocab_size", "100"},
                  {"n_positions", "64"},
                  {"n_embd", "48"},
                  {"n_layer", "2"},
                  {"n_head", "6"}};

Model gpt2(const Keys& changes = {}) {
  return model_from_hf_config(config_text(kSmall, changes), "config.json");
}

using Notes = std::vector<std::string>;

TEST(Gpt2, DescribesItself) {
  const Model model = gpt2();
  EXPECT_EQ(model.architecture, (Architecture{.vocabulary = 100,
                                              .hidden = 48,
                                              .intermediate = 192,
                                              .layers = 2,
                                              .heads = 6,
                                              .kv_heads = 6,
                                              .head_size = 8,
                                              .max_positions = 64}));
  ASSERT_EQ(model.modules.size(), 3U);
  const ModuleRun& block = model.modules[1];
  EXPECT_EQ(block.count, 2U);
  std::vector<std::string> modules;
  for (const Module& module : block.modules) {
    modules.push_back(fmt::format("{} {} {}->{}", module.name, name(module.kind), module.input, module.output));
  }
  const std::vector<std::string> expected{
      "ln_1 layer_norm 48->48",    "attn.c_attn linear 48->144",     "attn.attention attention 144->48",
      "attn.c_proj linear 48->48", "attn.attn_dropout dropout 0->0", "attn.resid_dropout dropout 0->0",
      "ln_2 layer_norm 48->48",    "mlp.c_fc linear 48->192",        "mlp.act activation 192->192",
      "mlp.c_proj linear 192->48", "mlp.dropout dropout 0->0"};
  EXPECT_EQ(modules, expected);
  EXPECT_EQ(block.modules[2].attention, (AttentionSizes{6, 6, 8, false}));
  EXPECT_EQ(block.modules[8].function, "gelu_new");
  EXPECT_EQ(block.modules[4].rate, 0.1);
}

TEST(Gpt2, BigCodeHasOneHeadOfKeysUnlessItIsAskedForAll) {
  const Keys bigcode{{"model_type", "\"gpt_bigcode\""}, {"architectures", "[\"GPTBigCodeForCausalLM\"]"}};
  Model model = gpt2(bigcode);
  EXPECT_EQ(model.architecture.kv_heads, 1U);
  EXPECT_EQ(model.modules[1].modules[2].attention, (AttentionSizes{6, 1, 8, false}));
  Keys all_heads = bigcode;
  all_heads["multi_query"] = "false";
  EXPECT_EQ(gpt2(all_heads).modules[1].modules[2].attention, (AttentionSizes{6, 6, 8, false}));
}

TEST(Gpt2, AttributesHaveTwoNames) {
  EXPECT_EQ(gpt2({{"n_embd", ""},
                  {"hidden_size", "48"},
                  {"n_head", ""},
                  {"num_attention_heads", "6"},
                  {"n_layer", ""},
                  {"num_hidden_layers", "2"},
                  {"n_positions", ""},
                  {"max_position_embeddings", "64"}}),
            gpt2());
  EXPECT_EQ(gpt2({{"hidden_size", "48"}}), gpt2());
}

TEST(Gpt2, NamesThatDisagreeAreAnError) {
  expect_config_error([] { gpt2({{"hidden_size", "96"}}); }, "config.json", "n_embd",
                      "is 48, but the file says 96 for hidden_size");
}

TEST(Gpt2, NotesWhatTheFileLeavesOut) {
  EXPECT_EQ(gpt2().catalog.notes, Notes{});
  EXPECT_EQ(gpt2({{"tie_word_embeddings", ""}}).catalog.notes, Notes{"tie_word_embeddings is absent: taken as true"});
  EXPECT_EQ(gpt2({{"n_layer", ""}, {"n_head", ""}}).catalog.notes,
            Notes{"not in the file, so the defaults of model_type gpt2 were taken: num_hidden_layers 12, "
                  "num_attention_heads 12"});
}

TEST(Gpt2, UnknownArchitectureIsTheLanguageModelWithANote) {
  for (const char* architectures : {"[\"GPT2Something\"]", "[\"LlamaForCausalLM\"]", "[]", "null", ""}) {
    SCOPED_TRACE(architectures);
    const Model model = gpt2({{"architectures", architectures}});
    EXPECT_EQ(model.catalog.runs, gpt2().catalog.runs);
    ASSERT_EQ(model.catalog.notes.size(), 1U);
    EXPECT_NE(model.catalog.notes[0].find("taken as GPT2LMHeadModel"), std::string::npos) << model.catalog.notes[0];
  }
}

}  // namespace
}  // namespace shardplan
