#include "planner/formats/hf_config.h"

#include <gtest/gtest.h>

#include "tests/support/config_error.h"

namespace shardplan {
namespace {

using test_support::expect_config_error;

Model parse(const std::string& text) {
  return model_from_hf_config(text, "dir/config.json");
}

TEST(HfConfig, UnknownFamiliesListNearNamesAndTheWayOut) {
  expect_config_error([] { parse(R"({"model_type": "lama"})"); }, "dir/config.json", "model_type",
                      "\"lama\" is not a known family; the nearest are llama");
  expect_config_error([] { parse(R"({"model_type": "gpt-2"})"); }, "dir/config.json", "model_type",
                      "the nearest are gpt2");
  expect_config_error([] { parse(R"({"model_type": "lama"})"); }, "dir/config.json", "model_type", "safetensors");
  expect_config_error([] { parse(R"({"model_type": "lama"})"); }, "dir/config.json", "model_type", "tensor list");
}

TEST(HfConfig, WhatIsNoConfig) {
  expect_config_error([] { parse("{}"); }, "dir/config.json", "model_type",
                      "expected the name of a family, such as \"llama\", but the key is missing");
  expect_config_error([] { parse(R"({"model_type": 3})"); }, "dir/config.json", "model_type", "found 3");
  expect_config_error([] { parse("[]"); }, "dir/config.json", "", "expected an object, found an array");
  expect_config_error([] { parse("3"); }, "dir/config.json", "", "expected an object, found 3");
  expect_config_error([] { parse("{\"model_type\": \"llama\",\n"); }, "dir/config.json", "", "line 2, column 1");
  expect_config_error([] { parse(R"({"model_type": "llama", "hidden_size": 1, "hidden_size": 2})"); },
                      "dir/config.json", "hidden_size", "appears twice");
}

TEST(HfConfig, IgnoresWhatDoesNotDecideShapes) {
  const Model plain = parse(R"({"model_type": "llama", "architectures": ["LlamaForCausalLM"]})");
  const Model decorated =
      parse(R"({"model_type": "llama", "architectures": ["LlamaForCausalLM"], "torch_dtype": "bfloat16",
      "dtype": null, "rope_theta": Infinity, "rope_scaling": {"factor": {"__float__": "Infinity"}}, "future_key": [1, 2, {"a": null}]})");
  EXPECT_EQ(decorated.catalog.stored_dtype, DType::bf16);
  EXPECT_EQ(plain.catalog.runs, decorated.catalog.runs);
  EXPECT_EQ(plain.catalog.notes, decorated.catalog.notes);
  EXPECT_EQ(plain.modules, decorated.modules);
  EXPECT_FALSE(plain.catalog.runs.at(0).tensors.at(0).dtype.has_value());
}

TEST(HfConfig, ReadsTheDtypeUnderBothItsNames) {
  const auto stored = [](const std::string& members) {
    return parse(R"({"model_type": "llama", )" + members + "}").catalog.stored_dtype;
  };
  EXPECT_EQ(stored(R"("torch_dtype": "float16")"), DType::f16);
  EXPECT_EQ(stored(R"("dtype": "bfloat16", "torch_dtype": "float16")"), DType::bf16);
  EXPECT_EQ(stored(R"("dtype": "torch.float32")"), DType::f32);
  EXPECT_EQ(stored(R"("torch_dtype": "auto")"), std::nullopt);
  EXPECT_EQ(stored(R"("torch_dtype": null)"), std::nullopt);
  expect_config_error([&] { stored(R"("torch_dtype": "bloat16")"); }, "dir/config.json", "torch_dtype",
                      "expected the name of a dtype, such as \"bfloat16\", found \"bloat16\"");
  expect_config_error([&] { stored(R"("dtype": 16)"); }, "dir/config.json", "dtype", "expected a string, found 16");
}

TEST(HfConfig, SaysWhatItAssumed) {
  const Model model = parse(R"({"model_type": "gpt2", "n_embd": 64, "n_head": 4})");
  const std::vector<std::string> notes{
      "architectures is absent: taken as GPT2LMHeadModel", "tie_word_embeddings is absent: taken as true",
      "not in the file, so the defaults of model_type gpt2 were taken: vocab_size 50257, num_hidden_layers 12, "
      "max_position_embeddings 1024"};
  EXPECT_EQ(model.catalog.notes, notes);
  EXPECT_EQ(model.catalog.name, "dir/config.json");
  EXPECT_EQ(model.catalog.family, "gpt2");
}

TEST(HfConfig, SaysThatQuantisationIsNotCounted) {
  const Model model = parse(R"({"model_type": "llama", "quantization_config": {"bits": 4}})");
  EXPECT_NE(model.catalog.notes.back().find("quantization_config"), std::string::npos);
}

}  // namespace
}  // namespace shardplan
