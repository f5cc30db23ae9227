#include "planner/activations/torch_programs/torch_context_parallel.h"

#include <array>
#include <utility>

#include "planner/activations/torch_formula.h"

namespace shardplan::autograd {
namespace {

Shape halved(Shape shape) {
  shape[2] /= 2;
  return shape;
}

Shape rows_of(Shape shape) {
  shape.back() = 1;
  return shape;
}

// Keys and values as the operators take them.
Value dense(Tape& tape, const Value& x) {
  return x.layout() == Layout::in_order ? x : tape.allocate("contiguous", x.shape(), x.dtype());
}

// What one call of the kernel puts out.
struct Part {
  Value output;
  Value lse;
  std::array<Value, 2> states;
};

Part attend(Tape& tape, const Shape& shape, const Value& like) {
  Part part;
  part.output = tape.allocate("flash attention", shape, like.dtype(), like.layout());
  part.lse = tape.allocate("log-sum-exp", rows_of(shape), DType::f32);
  part.states = {tape.allocate("random state", {2}, DType::u64), tape.allocate("random state", {}, DType::u64)};
  return part;
}

// Keys and values on their way: _AllGatherRotater, _AllToAllRotater.
class Rotation {
 public:
  Rotation(Tape& tape, const ContextRing& ring) : tape_(tape), ring_(ring) {}

  // What `flat` becomes on its way; the keys and values that are used next are views of it.
  void send(const Value& flat) {
    if (!ring_.gathers) {
      buffer_ = tape_.allocate("all_to_all", flat.shape(), flat.dtype());
    } else if (!buffer_.defined()) {
      buffer_ = tape_.allocate("all_gather", {flat.elements() * ring_.ranks}, flat.dtype());
    }
  }
  const Value& received() const { return buffer_; }

 private:
  Tape& tape_;
  ContextRing ring_;
  Value buffer_;
};

// _SDPAMerger, in fp32.
class Merger {
 public:
  explicit Merger(Tape& tape) : tape_(tape) {}

  void step(const Part& part) {
    const Shape& shape = part.output.shape();
    const Value block = tape_.allocate("to", shape, DType::f32, part.output.layout());
    if (!output_.defined()) {
      output_ = block;
      lse_ = part.lse;
      return;
    }
    const bool partial = shape[2] < output_.size(2);
    Value merged = merged_output(shape);
    Value lse = [&] {
      const Value smooth = [&] {
        const Value difference = tape_.allocate("sub", rows_of(shape), DType::f32);
        return tape_.allocate("log_sigmoid", rows_of(shape), DType::f32);
      }();
      return tape_.allocate("sub", rows_of(shape), DType::f32);
    }();
    lse_ = partial ? tape_.allocate("cat", rows_of(output_.shape()), DType::f32) : std::move(lse);
    output_ = partial ? tape_.allocate("cat", output_.shape(), DType::f32) : std::move(merged);
  }

  const Value& output() const { return output_; }
  const Value& lse() const { return lse_; }

 private:
  // out - sigmoid(block_lse - lse) * (out - block_out)
  Value merged_output(const Shape& shape) {
    const Value product = [&] {
      const Value weight = [&] {
        const Value difference = tape_.allocate("sub", rows_of(shape), DType::f32);
        return tape_.allocate("sigmoid", rows_of(shape), DType::f32);
      }();
      const Value difference = tape_.allocate("sub", shape, DType::f32);
      return tape_.allocate("mul", shape, DType::f32);
    }();
    return tape_.allocate("sub", shape, DType::f32);
  }

  Tape& tape_;
  Value output_;
  Value lse_;
};

std::uint64_t rank_of(const ContextRing& ring) {
  return ring.ranks - 2;
}

// Gradients of the attention of this rank's queries: _templated_ring_attention_backward.
class Backward {
 public:
  Backward(Tape& tape, const ContextRing& ring, const std::array<Meta, 3>& metas, const std::array<Layout, 3>& layouts)
      : tape_(tape), ring_(ring), metas_(metas), keys_values_(tape, ring), gradients_(tape, {ring.ranks, false}) {
    for (std::size_t i = 0; i < 3; ++i) sums_[i] = allocate("zeros", metas_[i].shape, DType::f32, layouts[i]);
    for (std::size_t i = 1; i < 3; ++i) {
      if (layouts[i] == Layout::in_order) continue;
      used_[i - 1] = allocate("contiguous", metas_[i].shape, metas_[i].dtype, Layout::in_order);
    }
  }

  std::vector<Value> run() {
    for (std::uint64_t i = 0; i < ring_.ranks; ++i) step(i);
    std::vector<Value> gradients;
    gradients.push_back(allocate("to", metas_[0].shape, metas_[0].dtype, Layout::in_order));
    sums_[0].reset();
    const Value both = allocate("to", flat(), metas_[1].dtype, Layout::in_order);
    for (std::size_t i = 1; i < 3; ++i) gradients.push_back(both.viewed(metas_[i].shape));
    return gradients;
  }

 private:
  Value allocate(const char* operation, const Shape& shape, DType dtype, Layout layout) {
    return tape_.allocate(operation, shape, dtype, layout);
  }
  Shape flat() const { return {elements(metas_[1].shape) + elements(metas_[2].shape)}; }

  void step(std::uint64_t i) {
    const bool later = i > rank_of(ring_);  // of the last half of the queries alone
    const Value before = keys_values_.received();
    if (i + 1 < ring_.ranks) {
      next_ = allocate("cat", flat(), metas_[1].dtype, Layout::in_order);
      keys_values_.send(next_);
    }
    if (i > 0) used_ = {before, before};
    const Shape& queries = metas_[0].shape;
    if (later && queries[0] * queries[1] > 1)
      rows_ = allocate("contiguous", halved(rows_of(queries)), DType::f32, Layout::in_order);
    std::array<Value, 3> part;
    for (std::size_t k = 0; k < 3; ++k) {
      const bool half = i > 0 && (k == 0) == later;
      part[k] = allocate("flash attention backward", half ? halved(metas_[k].shape) : metas_[k].shape, metas_[k].dtype,
                         Layout::in_order);
    }
    part_ = std::move(part);
    add_keys_values(i, later);
    if (later) sums_[0] = allocate("cat", metas_[0].shape, DType::f32, Layout::in_order);
  }

  // The sum so far has come from the rank before; this rank adds its part and sends it on.
  void add_keys_values(std::uint64_t i, bool later) {
    if (i > 0) {
      sent_.reset();
      for (std::size_t k = 1; k < 3; ++k) sums_[k] = gradients_.received();
      for (std::size_t k = 1; k < 3 && !later; ++k)
        sums_[k] = allocate("cat", metas_[k].shape, DType::f32, Layout::in_order);
    }
    {
      std::array<Value, 2> flattened;
      for (std::size_t k = 1; k < 3; ++k) flattened[k - 1] = dense(tape_, sums_[k]);
      sent_ = allocate("cat", flat(), DType::f32, Layout::in_order);
    }
    gradients_.send(sent_);
  }

  Tape& tape_;
  ContextRing ring_;
  std::array<Meta, 3> metas_;
  Rotation keys_values_;
  Rotation gradients_;
  std::array<Value, 3> sums_;  // of queries, keys and values
  std::array<Value, 2> used_;  // keys and values
  Value rows_;                 // log-sum-exp of the queries that are used
  Value next_;
  Value sent_;
  std::array<Value, 3> part_;
};

}  // namespace

Value ring_attention(const Value& q, const Value& k, const Value& v, const ContextRing& ring) {
  Tape& tape = q.tape();
  tape.attend(q.size(0) * q.size(2), q.size(2) * ring.ranks, true);
  const std::array inputs{q, k, v};
  std::vector<Value> saved(inputs.begin(), inputs.end());
  Value output;
  {
    Rotation keys_values(tape, ring);
    Merger merger(tape);
    std::array<Value, 2> used{dense(tape, k), dense(tape, v)};
    const Shape flat{k.elements() + v.elements()};
    Part part;
    std::array<Value, 2> states;
    for (std::uint64_t i = 0; i < ring.ranks; ++i) {
      const Value before = keys_values.received();
      if (i + 1 < ring.ranks) keys_values.send(tape.allocate("cat", flat, k.dtype()));
      if (i > 0) used = {before, before};
      part = attend(tape, i > rank_of(ring) ? halved(q.shape()) : q.shape(), q);
      if (i == 0) states = part.states;
      merger.step(part);
    }
    output = tape.allocate("flash attention", q.shape(), q.dtype());
    saved.insert(saved.end(), {output, merger.lse(), states[0], states[1]});
  }
  std::array<Meta, 3> metas;
  std::array<Layout, 3> layouts{};
  for (std::size_t i = 0; i < 3; ++i) {
    metas[i] = meta_of(inputs[i]);
    layouts[i] = inputs[i].layout();
  }
  return tape.record("flash attention", inputs, std::move(output), std::move(saved),
                     [metas, layouts, ring](Tape& t, std::span<const Value>, std::vector<Value>&) {
                       return Backward(t, ring, metas, layouts).run();
                     });
}

}  // namespace shardplan::autograd
