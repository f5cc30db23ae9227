#include "planner/formats/tensor_units.h"

#include <gtest/gtest.h>

#include "tests/support/config_error.h"

namespace shardplan {
namespace {

using test_support::expect_config_error;

Catalog grouped(const std::vector<std::string>& names) {
  std::vector<Tensor> tensors;
  for (const std::string& name : names) tensors.push_back({.name = name, .shape = {2}, .dtype = {}, .tied_to = {}});
  return catalog_from_tensors("file", std::move(tensors));
}

// "unit: tensor tensor" for each unit, expanded.
std::vector<std::string> lines(const Catalog& catalog) {
  std::vector<std::string> all;
  for (const UnitRun& run : catalog.runs) {
    for (std::uint64_t i = 0; i < run.count; ++i) {
      std::string line = unit_name(run, i) + ":";
      for (const Tensor& tensor : run.tensors) line += " " + tensor_name(run, i, tensor);
      all.push_back(line);
    }
  }
  return all;
}

using Lines = std::vector<std::string>;

TEST(TensorUnits, EmbeddingBlocksInNumericOrderHead) {
  EXPECT_EQ(lines(grouped({"lm_head.weight", "model.layers.10.mlp.w", "model.layers.2.mlp.w", "model.norm.weight",
                           "model.layers.2.norm.w", "model.embed_tokens.weight"})),
            (Lines{"embedding: model.embed_tokens.weight", "model.layers.2: model.layers.2.mlp.w model.layers.2.norm.w",
                   "model.layers.10: model.layers.10.mlp.w", "head: lm_head.weight model.norm.weight"}));
}

TEST(TensorUnits, EqualBlocksAreOneRun) {
  const Catalog catalog = grouped({"h.0.a.w", "h.1.a.w", "h.2.a.w", "h.4.a.w"});
  ASSERT_EQ(catalog.runs.size(), 2U);
  EXPECT_EQ(catalog.runs[0].count, 3U);
  EXPECT_EQ(catalog.runs[1].first_number, 4U);
  EXPECT_EQ(catalog.family, "tensors");
}

TEST(TensorUnits, TheOutermostNumberCounts) {
  EXPECT_EQ(
      lines(grouped({"encoder.block.0.layer.0.SelfAttention.q.weight", "encoder.block.0.layer.1.norm.weight",
                     "model.layers.3.experts.7.up.weight"})),
      (Lines{"encoder.block.0: encoder.block.0.layer.0.SelfAttention.q.weight encoder.block.0.layer.1.norm.weight",
             "model.layers.3: model.layers.3.experts.7.up.weight"}));
}

TEST(TensorUnits, SequentialsOfPlainLayersAreNoBlocks) {
  EXPECT_EQ(lines(grouped({"classifier.0.weight", "classifier.2.bias", "t_embedder.mlp.0.weight"})),
            (Lines{"embedding: t_embedder.mlp.0.weight", "head: classifier.0.weight classifier.2.bias"}));
  // A bare parameter of a block stays with the block.
  EXPECT_EQ(lines(grouped({"layers.0.gate", "layers.0.mlp.weight"})),
            (Lines{"layers.0: layers.0.gate layers.0.mlp.weight"}));
}

TEST(TensorUnits, EncodersAndTowersFirstDecodersLast) {
  EXPECT_EQ(
      lines(grouped({"decoder.block.0.a.w", "encoder.block.0.a.w", "shared.weight"})),
      (Lines{"shared: shared.weight", "encoder.block.0: encoder.block.0.a.w", "decoder.block.0: decoder.block.0.a.w"}));
  EXPECT_EQ(lines(grouped({"language_model.layers.0.a.w", "vision_tower.layers.0.a.w"})),
            (Lines{"vision_tower.layers.0: vision_tower.layers.0.a.w",
                   "language_model.layers.0: language_model.layers.0.a.w"}));
}

TEST(TensorUnits, KnowsEmbeddingsByName) {
  for (const char* name : {"model.embed_tokens.weight", "transformer.wte.weight", "wpe.weight", "shared.weight",
                           "bert.embeddings.LayerNorm.bias", "pos_embed", "visual.patch_embed.proj.weight", "cls_token",
                           "tok_embeddings.weight"}) {
    EXPECT_EQ(grouped({name}).runs.at(0).name, "embedding") << name;
  }
  for (const char* name :
       {"embed_out.weight", "lm_head.weight", "model.norm.weight", "swte.weight", "score.weight", "unembed.W"}) {
    EXPECT_EQ(grouped({name}).runs.at(0).name, "head") << name;
  }
}

TEST(TensorUnits, NumbersAreCanonicalAndHaveAPrefix) {
  for (const char* name : {"layers.01.a.w", "layers.1234567890.a.w", "0.a.w", "layers.-1.a.w", "layers.1x.a.w",
                           "layers.1", "layers.1.", ".0.a.w", "layers..a.w"}) {
    EXPECT_EQ(grouped({name}).runs.at(0).name, "head") << name;
  }
  EXPECT_EQ(lines(grouped({"0.layers.5.a.w"})), (Lines{"0.layers.5: 0.layers.5.a.w"}));
}

TEST(TensorUnits, NamesAreDistinct) {
  expect_config_error([] { grouped({"a.w", "b.w", "a.w"}); }, "file", "a.w", "comes twice");
  expect_config_error([] { grouped({"a.w", ""}); }, "file", "", "empty name");
}

TEST(TensorUnits, TotalsBeyond64BitsAreErrors) {
  const auto with_shape = [](const Shape& shape) {
    return catalog_from_tensors("file", {{.name = "h.0.a.w", .shape = shape, .dtype = {}, .tied_to = {}},
                                         {.name = "h.1.a.w", .shape = shape, .dtype = {}, .tied_to = {}}});
  };
  expect_config_error([&] { with_shape({std::uint64_t{1} << 32, std::uint64_t{1} << 32}); }, "file", "h.0.a.w",
                      "shape [4294967296, 4294967296] has more elements than 64 bits can count");
  expect_config_error([&] { with_shape({std::uint64_t{1} << 63}); }, "file", "h",
                      "with its 2 units the model has more elements");
  EXPECT_NO_THROW(with_shape({0, UINT64_MAX, UINT64_MAX}));
}

}  // namespace
}  // namespace shardplan
