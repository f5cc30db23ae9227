// A byte-level GPT, forward and backward, one unit at a time: the client's side of a training step.
//
//   embedding   x = tokens[byte] + positions[place]
//   blocks.i    x += out(attention(norm_1(x)));  x += down(gelu(up(norm_2(x))))
//   head        loss = the mean of -log softmax(norm(x) logits^T)[next byte]
//
// The model owns no parameter and no gradient: it computes on the views that the optimizer lends it between enter and
// leave. What it owns are the activations of one micro-batch, allocated at construction; a step allocates nothing.
// It computes in fp32: 16-bit parameters are widened first. A unit's gradients are added to those in its views,
// element by element: the sum in fp32, rounded to their dtype.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "planner/catalog.h"
#include "shard/views.h"
#include "tools/train/gpt_tensors.h"
#include "tools/train/math.h"

namespace shardplan {

class Gpt {
 public:
  // `sequences` is the largest number of sequences in a micro-batch. Makes OpenBLAS use one thread per call, in the
  // whole process: the ranks are the threads, and one thread sums in one order (math.h). One model per rank; different
  // models may run at once, a model on one thread at a time. Throws ConfigError (gpt_tensors.h).
  Gpt(const GptConfig& config, std::size_t sequences);

  const Catalog& catalog() const { return catalog_; }
  std::uint64_t units() const { return config_.layers + 2; }

  // The micro-batch that the next passes work on: windows of context + 1 bytes, one after the other (text.h).
  void set_batch(std::span<const std::uint8_t> windows);

  // What the loss is multiplied by before its gradient is taken, to keep small 16-bit gradients from vanishing.
  void set_loss_scale(float scale) { loss_scale_ = scale; }

  // Passes in order: forward of units 0, 1, ...; then, for training, backward of them in reverse.
  void forward(std::uint64_t unit, const UnitViews& views);
  void backward(std::uint64_t unit, const UnitViews& views);

  // Mean over the micro-batch's bytes, in nats, unscaled. After the head's forward.
  double loss() const { return loss_; }

 private:
  // What a block's backward needs from its forward; a row per byte.
  struct Block {
    Matrix in;  // the residual stream before the block
    Matrix statistics_1, norm_1, qkv, probabilities, attended;
    Matrix middle;                          // the residual stream after attention
    Matrix statistics_2, norm_2, up, gelu;  // `up` becomes GELU's slope
  };
  using Parameters = std::array<const float*, block::count>;

  std::size_t lay_out(float* storage);
  Parameters parameters_in_fp32(std::uint64_t unit, std::span<const TensorView> views);
  const std::vector<Tensor>& tensors_of(std::uint64_t unit, std::span<const TensorView> views) const;

  void embedding_forward(const Parameters& p);
  void embedding_backward(const UnitViews& views);
  void block_forward(const Block& a, const Parameters& p, Matrix result) const;
  void block_backward(const Block& a, const Parameters& p, const UnitViews& views);
  void head_forward(const Parameters& p);
  void head_backward(const Parameters& p, const UnitViews& views);
  std::span<const std::uint8_t> targets() const { return std::span(targets_).first(logits_.rows); }
  void norm_backward(ConstMatrix dy, ConstMatrix x, const float* weight, ConstMatrix statistics,
                     std::span<const TensorView> gradients);
  void matrix_backward(ConstMatrix dy, ConstMatrix x, const float* weight, const TensorView& gradient, Matrix dx);
  void linear_backward(ConstMatrix dy, ConstMatrix x, const float* weight, std::span<const TensorView> gradients,
                       Matrix dx);

  GptConfig config_;
  Catalog catalog_;
  std::size_t sequences_;
  std::vector<std::uint8_t> bytes_, targets_;  // of the micro-batch
  float loss_scale_ = 1;
  double loss_ = 0;

  std::vector<float> storage_;  // of all matrices below
  std::vector<Block> blocks_;
  Matrix out_;                                   // the residual stream after the last block
  Matrix head_statistics_, head_norm_, logits_;  // the logits, then their probabilities
  // Backward only. The stream's gradient is handed from unit to unit; the others are free between units.
  Matrix d_stream_, d_narrow_, d_qkv_, d_wide_, d_scores_;
  std::vector<float> wide_parameters_;  // the unit's, where they had to be widened
  std::vector<float> contribution_;     // one tensor's gradient, before it is added
};

}  // namespace shardplan
