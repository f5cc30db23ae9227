#include "tools/train/gpt.h"

#include <fmt/format.h>

#include <algorithm>

#include "base/error.h"
#include "tools/train/attention.h"
#include "tools/train/precision.h"

namespace shardplan {
namespace {

// The largest tensor of the model, and the largest sum of a unit's.
struct Largest {
  std::size_t tensor = 0;
  std::size_t unit = 0;
};

Largest largest(const Catalog& catalog) {
  Largest result;
  for (const UnitRun& run : catalog.runs) {
    std::size_t unit = 0;
    for (const Tensor& tensor : run.tensors) {
      result.tensor = std::max<std::size_t>(result.tensor, elements(tensor.shape));
      unit += elements(tensor.shape);
    }
    result.unit = std::max(result.unit, unit);
  }
  return result;
}

}  // namespace

Gpt::Gpt(const GptConfig& config, std::size_t sequences)
    : config_(config), catalog_(gpt_catalog(config)), sequences_(sequences), blocks_(config.layers) {
  SHARDPLAN_CHECK(sequences > 0, "a micro-batch has a sequence at least");
  use_one_blas_thread();
  bytes_.resize(sequences * config.context);
  targets_.resize(sequences * config.context);
  storage_.resize(lay_out(nullptr));
  lay_out(storage_.data());
  const Largest sizes = largest(catalog_);
  wide_parameters_.resize(sizes.unit);
  contribution_.resize(sizes.tensor);
}

// Shapes all matrices for the current number of sequences, one after the other from `storage`. Returns their elements.
std::size_t Gpt::lay_out(float* storage) {
  std::size_t used = 0;
  const auto take = [&](std::size_t rows, std::size_t columns) {
    constexpr std::size_t kCacheLine = 64 / sizeof(float);
    const Matrix matrix{storage == nullptr ? nullptr : storage + used, rows, columns};
    used += (matrix.elements() + kCacheLine - 1) / kCacheLine * kCacheLine;
    return matrix;
  };
  const std::size_t rows = sequences_ * config_.context;
  const std::size_t width = config_.width;
  for (Block& a : blocks_) {
    a.in = take(rows, width);
    a.statistics_1 = take(rows, 2);
    a.norm_1 = take(rows, width);
    a.qkv = take(rows, 3 * width);
    a.probabilities = take(rows * config_.heads, config_.context);
    a.attended = take(rows, width);
    a.middle = take(rows, width);
    a.statistics_2 = take(rows, 2);
    a.norm_2 = take(rows, width);
    a.up = take(rows, 4 * width);
    a.gelu = take(rows, 4 * width);
  }
  out_ = take(rows, width);
  head_statistics_ = take(rows, 2);
  head_norm_ = take(rows, width);
  logits_ = take(rows, kVocabulary);
  d_stream_ = take(rows, width);
  d_narrow_ = take(rows, width);
  d_qkv_ = take(rows, 3 * width);
  d_wide_ = take(rows, 4 * width);
  d_scores_ = take(config_.context, config_.context);
  return used;
}

void Gpt::set_batch(std::span<const std::uint8_t> windows) {
  const std::size_t context = config_.context;
  const std::size_t sequences = windows.size() / (context + 1);
  SHARDPLAN_CHECK(sequences > 0 && windows.size() % (context + 1) == 0, "a batch is made of whole windows");
  SHARDPLAN_CHECK(sequences * context <= bytes_.size(), "the batch is larger than the model was made for");
  for (std::size_t i = 0; i < sequences; ++i) {
    const std::span<const std::uint8_t> window = windows.subspan(i * (context + 1), context + 1);
    std::ranges::copy(window.first(context), bytes_.data() + i * context);
    std::ranges::copy(window.last(context), targets_.data() + i * context);
  }
  sequences_ = sequences;
  lay_out(storage_.data());
}

void Gpt::forward(std::uint64_t unit, const UnitViews& views) {
  const Parameters p = parameters_in_fp32(unit, views.parameters);
  if (unit == 0) return embedding_forward(p);
  if (unit == units() - 1) return head_forward(p);
  block_forward(blocks_[unit - 1], p, unit < config_.layers ? blocks_[unit].in : out_);
}

void Gpt::backward(std::uint64_t unit, const UnitViews& views) {
  tensors_of(unit, views.gradients);
  if (unit == 0) return embedding_backward(views);
  const Parameters p = parameters_in_fp32(unit, views.parameters);
  if (unit == units() - 1) return head_backward(p, views);
  block_backward(blocks_[unit - 1], p, views);
}

Gpt::Parameters Gpt::parameters_in_fp32(std::uint64_t unit, std::span<const TensorView> views) {
  const std::vector<Tensor>& tensors = tensors_of(unit, views);
  Parameters result{};
  float* scratch = wide_parameters_.data();
  for (std::size_t i = 0; i < views.size(); ++i) {
    SHARDPLAN_CHECK(views[i].elements == elements(tensors[i].shape),
                    fmt::format("{} has another size", tensors[i].name));
    result[i] = in_fp32(views[i], scratch);
    scratch += views[i].elements;
  }
  return result;
}

// One view for each, or it is a bug of the caller.
const std::vector<Tensor>& Gpt::tensors_of(std::uint64_t unit, std::span<const TensorView> views) const {
  const std::vector<Tensor>& tensors = catalog_.runs[place_of_unit(catalog_, unit).run].tensors;
  SHARDPLAN_CHECK(views.size() == tensors.size(), fmt::format("unit {} has {} tensors", unit, tensors.size()));
  return tensors;
}

// ---- embedding

void Gpt::embedding_forward(const Parameters& p) {
  const Matrix x = blocks_.front().in;
  for (std::size_t i = 0; i < x.rows; ++i) {
    const float* const token = p[embedding::tokens] + bytes_[i] * x.columns;
    const float* const position = p[embedding::positions] + i % config_.context * x.columns;
    for (std::size_t j = 0; j < x.columns; ++j) x.row(i)[j] = token[j] + position[j];
  }
}

void Gpt::embedding_backward(const UnitViews& views) {
  const auto add_rows = [&](std::size_t tensor, std::size_t rows, auto row_of) {
    const Matrix sum{contribution_.data(), rows, config_.width};
    std::fill_n(sum.data, sum.elements(), 0.0F);
    for (std::size_t i = 0; i < d_stream_.rows; ++i) {
      add(d_stream_.block(i, 0, 1, sum.columns), sum.block(row_of(i), 0, 1, sum.columns));
    }
    add_to_gradient(views.gradients[tensor], {sum.data, sum.elements()});
  };
  add_rows(embedding::tokens, kVocabulary, [&](std::size_t i) -> std::size_t { return bytes_[i]; });
  add_rows(embedding::positions, config_.context, [&](std::size_t i) { return i % config_.context; });
}

// ---- blocks

void Gpt::block_forward(const Block& a, const Parameters& p, Matrix result) const {
  const std::size_t width = config_.width;
  layer_norm(a.in, p[block::norm_1_weight], p[block::norm_1_bias], a.norm_1, a.statistics_1);
  linear(a.norm_1, {p[block::qkv_weight], 3 * width, width}, p[block::qkv_bias], a.qkv);
  attention(a.qkv, a.probabilities, a.attended);
  linear(a.attended, {p[block::out_weight], width, width}, p[block::out_bias], a.middle);
  add(a.in, a.middle);
  layer_norm(a.middle, p[block::norm_2_weight], p[block::norm_2_bias], a.norm_2, a.statistics_2);
  linear(a.norm_2, {p[block::up_weight], 4 * width, width}, p[block::up_bias], a.up);
  gelu(a.up, a.gelu);
  linear(a.gelu, {p[block::down_weight], width, 4 * width}, p[block::down_bias], result);
  add(a.middle, result);
}

// d_stream_ is the gradient of the block's result, then of `middle`, then of `in`: a residual branch leaves it as it is
// and adds its own.
void Gpt::block_backward(const Block& a, const Parameters& p, const UnitViews& views) {
  const auto gradients = [&](std::size_t weight) { return views.gradients.subspan(weight, 2); };  // and its bias's
  linear_backward(d_stream_, a.gelu, p[block::down_weight], gradients(block::down_weight), d_wide_);
  gelu_backward(a.up, d_wide_);
  linear_backward(d_wide_, a.norm_2, p[block::up_weight], gradients(block::up_weight), d_narrow_);
  norm_backward(d_narrow_, a.middle, p[block::norm_2_weight], a.statistics_2, gradients(block::norm_2_weight));
  linear_backward(d_stream_, a.attended, p[block::out_weight], gradients(block::out_weight), d_narrow_);
  attention_backward(d_narrow_, a.qkv, a.probabilities, d_scores_, d_qkv_);
  linear_backward(d_qkv_, a.norm_1, p[block::qkv_weight], gradients(block::qkv_weight), d_narrow_);
  norm_backward(d_narrow_, a.in, p[block::norm_1_weight], a.statistics_1, gradients(block::norm_1_weight));
}

// ---- head

void Gpt::head_forward(const Parameters& p) {
  layer_norm(out_, p[head::norm_weight], p[head::norm_bias], head_norm_, head_statistics_);
  multiply(head_norm_, Transposed{{p[head::logits_weight], kVocabulary, config_.width}}, logits_);
  loss_ = cross_entropy(logits_, targets()) / static_cast<double>(logits_.rows);
}

void Gpt::head_backward(const Parameters& p, const UnitViews& views) {
  cross_entropy_backward(logits_, targets(), loss_scale_ / static_cast<float>(logits_.rows));
  matrix_backward(logits_, head_norm_, p[head::logits_weight], views.gradients[head::logits_weight], d_narrow_);
  std::fill_n(d_stream_.data, d_stream_.elements(), 0.0F);
  norm_backward(d_narrow_, out_, p[head::norm_weight], head_statistics_, views.gradients);
}

// ---- what the units have in common

// y = x weight^T: dx = dy weight, dweight = dy^T x.
void Gpt::matrix_backward(ConstMatrix dy, ConstMatrix x, const float* weight, const TensorView& gradient, Matrix dx) {
  const Matrix dweight{contribution_.data(), dy.columns, x.columns};
  multiply(Transposed{dy}, x, dweight);
  add_to_gradient(gradient, {dweight.data, dweight.elements()});
  multiply(dy, ConstMatrix{weight, dy.columns, x.columns}, dx);
}

// `gradients` are the weight's and the bias's, here and below.
void Gpt::linear_backward(ConstMatrix dy, ConstMatrix x, const float* weight, std::span<const TensorView> gradients,
                          Matrix dx) {
  matrix_backward(dy, x, weight, gradients[0], dx);
  column_sums(dy, contribution_.data());
  add_to_gradient(gradients[1], {contribution_.data(), dy.columns});
}

void Gpt::norm_backward(ConstMatrix dy, ConstMatrix x, const float* weight, ConstMatrix statistics,
                        std::span<const TensorView> gradients) {
  float* const dweight = contribution_.data();
  float* const dbias = dweight + x.columns;
  layer_norm_backward(dy, x, weight, statistics, d_stream_, dweight, dbias);
  add_to_gradient(gradients[0], {dweight, x.columns});
  add_to_gradient(gradients[1], {dbias, x.columns});
}

}  // namespace shardplan
