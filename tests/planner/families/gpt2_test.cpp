#include <fmt/format.h>
#include <fmt/ranges.h>
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
                  {"vocab_size", "100"},
                  {"n_positions", "64"},
                  {"n_embd", "48"},
                  {"n_layer", "1"},
                  {"n_head", "6"}};

Model gpt2(const Keys& changes = {}) {
  return model_from_hf_config(config_text(kSmall, changes), "config.json");
}

std::vector<std::string> listing(const Catalog& catalog) {
  std::vector<std::string> lines;
  for_each_tensor(catalog, [&](const std::string& name, const Tensor& tensor) {
    lines.push_back(fmt::format("{} [{}]{}", name, fmt::join(tensor.shape, ","),
                                tensor.tied_to.empty() ? "" : " = " + tensor.tied_to));
  });
  return lines;
}

TEST(Gpt2, HasTheStateDictOfItsClass) {
  const Model model = gpt2();
  const std::vector<std::string> expected{
      "transformer.wte.weight [100,48]",
      "transformer.wpe.weight [64,48]",
      "transformer.h.0.ln_1.weight [48]",
      "transformer.h.0.ln_1.bias [48]",
      "transformer.h.0.attn.c_attn.weight [48,144]",
      "transformer.h.0.attn.c_attn.bias [144]",
      "transformer.h.0.attn.c_proj.weight [48,48]",
      "transformer.h.0.attn.c_proj.bias [48]",
      "transformer.h.0.ln_2.weight [48]",
      "transformer.h.0.ln_2.bias [48]",
      "transformer.h.0.mlp.c_fc.weight [48,192]",
      "transformer.h.0.mlp.c_fc.bias [192]",
      "transformer.h.0.mlp.c_proj.weight [192,48]",
      "transformer.h.0.mlp.c_proj.bias [48]",
      "transformer.ln_f.weight [48]",
      "transformer.ln_f.bias [48]",
      "lm_head.weight [100,48] = transformer.wte.weight",
  };
  EXPECT_EQ(listing(model.catalog), expected);
  EXPECT_EQ(model.catalog.notes, std::vector<std::string>{"tie_word_embeddings is absent: taken as true"});
  EXPECT_EQ(model.architecture, (Architecture{.vocabulary = 100,
                                              .hidden = 48,
                                              .intermediate = 192,
                                              .layers = 1,
                                              .heads = 6,
                                              .kv_heads = 6,
                                              .head_size = 8,
                                              .max_positions = 64}));
}

TEST(Gpt2, UntiedHeadOwnsItsWeight) {
  EXPECT_EQ(listing(gpt2({{"tie_word_embeddings", "false"}}).catalog).back(), "lm_head.weight [100,48]");
  EXPECT_EQ(gpt2({{"tie_word_embeddings", "true"}}).catalog.notes, std::vector<std::string>{});
}

TEST(Gpt2, InnerWidth) {
  EXPECT_EQ(gpt2({{"n_inner", "null"}}), gpt2());
  EXPECT_EQ(gpt2({{"n_inner", "7"}}).architecture.intermediate, 7U);
}

TEST(Gpt2, AttributesHaveTwoNames) {
  EXPECT_EQ(gpt2({{"n_embd", ""},
                  {"hidden_size", "48"},
                  {"n_head", ""},
                  {"num_attention_heads", "6"},
                  {"n_layer", ""},
                  {"num_hidden_layers", "1"},
                  {"n_positions", ""},
                  {"max_position_embeddings", "64"}}),
            gpt2());
  EXPECT_EQ(gpt2({{"hidden_size", "48"}}), gpt2());
  expect_config_error([] { gpt2({{"hidden_size", "96"}}); }, "config.json", "n_embd",
                      "is 48, but the file says 96 for hidden_size");
}

TEST(Gpt2, CrossAttentionWhereItIsAskedFor) {
  const auto tensors = listing(gpt2({{"add_cross_attention", "true"}}).catalog);
  const std::vector<std::string> expected{
      "transformer.h.0.ln_2.bias [48]",
      "transformer.h.0.crossattention.c_attn.weight [48,96]",
      "transformer.h.0.crossattention.c_attn.bias [96]",
      "transformer.h.0.crossattention.q_attn.weight [48,48]",
      "transformer.h.0.crossattention.q_attn.bias [48]",
      "transformer.h.0.crossattention.c_proj.weight [48,48]",
      "transformer.h.0.crossattention.c_proj.bias [48]",
      "transformer.h.0.ln_cross_attn.weight [48]",
      "transformer.h.0.ln_cross_attn.bias [48]",
      "transformer.h.0.mlp.c_fc.weight [48,192]",
  };
  EXPECT_EQ(std::vector<std::string>(tensors.begin() + 9, tensors.begin() + 19), expected);
}

TEST(Gpt2, ArchitecturesChooseTheHead) {
  struct Case {
    const char* architecture;
    const char* first;
    const char* last;
  };
  const Case cases[] = {
      {"GPT2Model", "wte.weight [100,48]", "ln_f.bias [48]"},
      {"GPT2LMHeadModel", "transformer.wte.weight [100,48]", "lm_head.weight [100,48] = transformer.wte.weight"},
      {"GPT2ForSequenceClassification", "transformer.wte.weight [100,48]", "score.weight [2,48]"},
      {"GPT2ForTokenClassification", "transformer.wte.weight [100,48]", "classifier.bias [2]"},
      {"GPT2ForQuestionAnswering", "transformer.wte.weight [100,48]", "qa_outputs.bias [2]"},
      {"GPT2Something", "transformer.wte.weight [100,48]", "lm_head.weight [100,48] = transformer.wte.weight"},
  };
  for (const Case& c : cases) {
    const auto tensors = listing(gpt2({{"architectures", fmt::format("[\"{}\"]", c.architecture)}}).catalog);
    EXPECT_EQ(tensors.front(), c.first) << c.architecture;
    EXPECT_EQ(tensors.back(), c.last) << c.architecture;
  }
}

TEST(Gpt2, BadConfigsAreOneErrorWithFileAndKey) {
  struct Case {
    const char* key;
    const char* value;
    const char* problem;
  };
  const Case cases[] = {
      {"n_embd", "0", "expected a positive integer, found 0"},
      {"n_embd", "49", ""},
      {"n_head", "5", "expected a divisor of hidden_size, 48, found 5"},
      {"n_layer", "-1", "expected a positive integer, found -1"},
      {"n_positions", "\"1024\"", "expected a positive integer, found \"1024\""},
      {"n_inner", "0", "expected a positive integer, found 0"},
      {"vocab_size", "1e400", "expected a positive integer"},
      {"add_cross_attention", "\"no\"", "expected true or false, found \"no\""},
      {"activation_function", "null", "expected a string, found null"},
  };
  for (const Case& c : cases) {
    SCOPED_TRACE(fmt::format("{} = {}", c.key, c.value));
    const bool width = std::string(c.value) == "49";  // then it is the heads that do not divide it
    expect_config_error([&] { gpt2({{c.key, c.value}}); }, "config.json", width ? "n_head" : c.key, c.problem);
  }
}

}  // namespace
}  // namespace shardplan
