#include "tests/tools/train/model_state.h"

#include <algorithm>
#include <cstring>
#include <string_view>

#include "base/half.h"
#include "tools/train/random.h"

namespace shardplan::test {
namespace {

void store(std::span<const float> values, const TensorView& tensor) {
  for (std::size_t i = 0; i < values.size(); ++i) {
    if (tensor.dtype == DType::f32) {
      std::memcpy(tensor.data + 4 * i, &values[i], 4);
    } else {
      const std::uint16_t half = tensor.dtype == DType::bf16 ? fp32_to_bf16(values[i]) : fp32_to_fp16(values[i]);
      std::memcpy(tensor.data + 2 * i, &half, 2);
    }
  }
}

}  // namespace

ModelState::ModelState(const GptConfig& config, DType dtype) : tied_(config.tied) {
  const Catalog catalog = gpt_catalog(config);
  const auto allocate = [&](std::uint64_t count) {
    storage_.emplace_back(bytes_for(dtype, count).count());
    return TensorView{storage_.back().data(), dtype, count};
  };
  for_each_tensor(catalog, [&](const std::string&, const Tensor& tensor) {
    if (!tensor.tied_to.empty()) {  // to the first: a GPT has no other tie
      parameters_.push_back(parameters_.front());
      gradients_.push_back(gradients_.front());
      return;
    }
    std::vector<float> values(elements(tensor.shape));
    fill_initial(config, parameters_.size(), 0, values);
    parameters_.push_back(allocate(values.size()));
    gradients_.push_back(allocate(values.size()));
    store(values, parameters_.back());
  });
  std::size_t first = 0;
  for (std::uint64_t unit = 0; unit < unit_count(catalog); ++unit) {
    const std::size_t count = catalog.runs[place_of_unit(catalog, unit).run].tensors.size();
    unit_parameters_.emplace_back(std::span(parameters_).subspan(first, count));
    unit_gradients_.emplace_back(std::span(gradients_).subspan(first, count));
    first += count;
  }
}

void ModelState::zero_gradients() {
  for (const TensorView& gradient : gradients_) {
    std::fill_n(gradient.data, bytes_for(gradient.dtype, gradient.elements).count(), std::byte{0});
  }
}

std::vector<double> values_of(const TensorView& tensor) {
  std::vector<double> values(tensor.elements);
  for (std::size_t i = 0; i < values.size(); ++i) {
    if (tensor.dtype == DType::f32) {
      float value = 0;
      std::memcpy(&value, tensor.data + 4 * i, 4);
      values[i] = static_cast<double>(value);
    } else {
      std::uint16_t half = 0;
      std::memcpy(&half, tensor.data + 2 * i, 2);
      values[i] = static_cast<double>(tensor.dtype == DType::bf16 ? bf16_to_fp32(half) : fp16_to_fp32(half));
    }
  }
  return values;
}

double evaluate(Gpt& gpt, std::span<const std::uint8_t> windows, const ModelState& state) {
  gpt.set_batch(windows);
  for (std::uint64_t unit = 0; unit < gpt.units(); ++unit) gpt.forward(unit, state.parameter_views(unit));
  return gpt.loss();
}

double train_micro_batch(Gpt& gpt, std::span<const std::uint8_t> windows, const ModelState& state) {
  const double loss = evaluate(gpt, windows, state);
  for (std::uint64_t unit = gpt.units(); unit-- > 0;) gpt.backward(unit, state.views(unit));
  return loss;
}

std::vector<std::uint8_t> words(std::size_t bytes, std::uint64_t seed) {
  constexpr std::string_view kWords[] = {"arena", "granule", "layout", "mesh", "plan", "rank", "shard", "unit"};
  std::vector<std::uint8_t> text;
  for (std::uint64_t i = 0; text.size() < bytes; ++i) {
    for (const char c : kWords[random_bits(seed, i) % std::size(kWords)]) text.push_back(static_cast<std::uint8_t>(c));
    text.push_back(' ');
  }
  text.resize(bytes);
  return text;
}

}  // namespace shardplan::test
