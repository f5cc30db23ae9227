#include "tools/train/gpt_tensors.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <string>
#include <utility>
#include <vector>

#include "base/error.h"
#include "tools/train/random.h"

namespace shardplan {
namespace {

// A tensor and the distribution of its first values.
struct Parameter {
  std::string name;
  Shape shape;
  float mean = 0;
  double deviation = 0;
  std::string tied_to = {};
};

constexpr double kDeviation = 0.02;
constexpr const char* kTokenEmbedding = "token_embedding.weight";

std::vector<Parameter> embedding_parameters(const GptConfig& config) {
  return {{kTokenEmbedding, {kVocabulary, config.width}, 0, kDeviation},
          {"position_embedding.weight", {config.context, config.width}, 0, kDeviation}};
}

std::vector<Parameter> block_parameters(const GptConfig& config) {
  const std::uint64_t width = config.width;
  // 2 * layers branches are summed in the residual stream, which is not to grow with their number.
  const double branch_end = kDeviation / std::sqrt(2 * static_cast<double>(config.layers));
  return {{"norm_1.weight", {width}, 1},
          {"norm_1.bias", {width}},
          {"attention.qkv.weight", {3 * width, width}, 0, kDeviation},
          {"attention.qkv.bias", {3 * width}},
          {"attention.out.weight", {width, width}, 0, branch_end},
          {"attention.out.bias", {width}},
          {"norm_2.weight", {width}, 1},
          {"norm_2.bias", {width}},
          {"mlp.up.weight", {4 * width, width}, 0, kDeviation},
          {"mlp.up.bias", {4 * width}},
          {"mlp.down.weight", {width, 4 * width}, 0, branch_end},
          {"mlp.down.bias", {width}}};
}

std::vector<Parameter> head_parameters(const GptConfig& config) {
  return {{"norm.weight", {config.width}, 1},
          {"norm.bias", {config.width}},
          {"lm_head.weight", {kVocabulary, config.width}, 0, kDeviation, config.tied ? kTokenEmbedding : ""}};
}

Tensor tensor_of(const Parameter& parameter) {
  Tensor tensor;
  tensor.name = parameter.name;
  tensor.shape = parameter.shape;
  tensor.tied_to = parameter.tied_to;
  return tensor;
}

std::vector<Tensor> tensors_of(const std::vector<Parameter>& parameters) {
  std::vector<Tensor> tensors;
  std::ranges::transform(parameters, std::back_inserter(tensors), tensor_of);
  return tensors;
}

void check_config(const GptConfig& config) {
  const std::pair<const char*, std::size_t> sizes[] = {
      {"layers", config.layers}, {"width", config.width}, {"heads", config.heads}, {"context", config.context}};
  for (const auto& [key, size] : sizes) {
    if (size == 0) throw ConfigError("model", key, "must be at least 1");
  }
  if (config.width % config.heads != 0) {
    throw ConfigError("model", "heads", fmt::format("{} do not divide the width {}", config.heads, config.width));
  }
}

// The parameter at `tensor` in the catalog's order.
Parameter parameter_at(const GptConfig& config, std::uint64_t tensor) {
  const std::uint64_t blocks_end = embedding::count + config.layers * block::count;
  SHARDPLAN_CHECK(tensor < blocks_end + head::count, "the catalog has no such tensor");
  if (tensor < embedding::count) return embedding_parameters(config)[tensor];
  if (tensor >= blocks_end) return head_parameters(config)[tensor - blocks_end];
  return block_parameters(config)[(tensor - embedding::count) % block::count];
}

}  // namespace

Catalog gpt_catalog(const GptConfig& config) {
  check_config(config);
  CatalogBuilder builder("gpt", "gpt");
  builder.begin_unit("embedding");
  for (Tensor& tensor : tensors_of(embedding_parameters(config))) builder.add(std::move(tensor));
  builder.add_run("blocks", 0, config.layers, tensors_of(block_parameters(config)));
  builder.begin_unit("head");
  for (Tensor& tensor : tensors_of(head_parameters(config))) builder.add(std::move(tensor));
  return builder.finish();
}

void fill_initial(const GptConfig& config, std::uint64_t tensor, std::uint64_t first, std::span<float> values) {
  const Parameter parameter = parameter_at(config, tensor);
  SHARDPLAN_CHECK(first + values.size() <= elements(parameter.shape), "the range ends behind the tensor");
  std::ranges::fill(values, parameter.mean);
  if (parameter.deviation == 0) return;
  const std::uint64_t key = random_bits(config.seed, tensor);
  for (std::size_t i = 0; i < values.size(); ++i) {
    values[i] = static_cast<float>(parameter.deviation * normal(key, first + i));
  }
}

}  // namespace shardplan
