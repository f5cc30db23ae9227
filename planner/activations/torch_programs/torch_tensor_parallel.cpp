#include "planner/activations/torch_programs/torch_tensor_parallel.h"

#include <array>
#include <utility>

#include "planner/activations/torch_formula.h"
#include "planner/activations/torch_ops.h"

namespace shardplan::autograd {
namespace {

Value all_gathered(Tape& tape, const Shape& whole, DType dtype) {
  const Value parts = tape.allocate("all_gather", whole, dtype);
  return tape.allocate("cat", whole, dtype);
}

Value reduced_part(Tape& tape, const Shape& whole, const Shape& part, DType dtype) {
  const Value parts = tape.allocate("cat", whole, dtype);
  return tape.allocate("reduce_scatter", part, dtype);
}

// _MaskPartial: which of the indices are this rank's, and what it looks up.
struct Masked {
  Value mask;
  Value indices;
};

Masked masked(Tape& tape, const Shape& indices) {
  Masked result;
  {
    const std::array bounds{tape.allocate("lt", indices, DType::boolean), tape.allocate("ge", indices, DType::boolean)};
    result.mask = tape.allocate("or", indices, DType::boolean);
  }
  const Value copy = tape.allocate("clone", indices, DType::i64);
  result.indices = tape.allocate("sub", indices, DType::i64);
  return result;
}

}  // namespace

Value distributed(const Value& x, std::uint64_t ranks) {
  if (ranks == 1) return x;
  Value local = x.tape().record("from_local", std::span(&x, 1), x.viewed(x.shape()), {}, same_gradient(x));
  x.tape().adds_apart(local);
  return local;
}

Value gathered(const Value& x, std::uint64_t ranks) {
  if (ranks == 1) return x;
  Shape whole = x.shape();
  whole[1] *= ranks;
  Value text = x.tape().record("all_gather", std::span(&x, 1), all_gathered(x.tape(), whole, x.dtype()), {},
                               [part = x.shape()](Tape& tape, std::span<const Value>, std::vector<Value>& incoming) {
                                 return one(reduced_part(tape, incoming[0].shape(), part, incoming[0].dtype()));
                               });
  x.tape().adds_apart(text);
  return text;
}

Value scattered(const Value& x, std::uint64_t ranks) {
  if (ranks == 1) return x;
  Shape part = x.shape();
  part[1] /= ranks;
  return x.tape().record("reduce_scatter", std::span(&x, 1), reduced_part(x.tape(), x.shape(), part, x.dtype()), {},
                         [whole = x.shape()](Tape& tape, std::span<const Value>, std::vector<Value>& incoming) {
                           return one(all_gathered(tape, whole, incoming[0].dtype()));
                         });
}

Value gathered_features(const Value& x, std::uint64_t ranks, std::uint64_t size) {
  if (ranks == 1) return x;
  Tape& tape = x.tape();
  Shape padded = x.shape();
  padded.back() *= ranks;
  Shape whole = x.shape();
  whole.back() = size;
  Value output = [&] {
    const Value parts = tape.allocate("all_gather", padded, x.dtype());
    return tape.allocate("cat", whole, x.dtype());
  }();
  return tape.record("all_gather", std::span(&x, 1), std::move(output), {}, fresh_gradients("clone", std::span(&x, 1)));
}

Value parallel_embedding(const Value& tokens, const Value& weight, std::uint64_t ranks, std::uint64_t words) {
  if (ranks == 1) return embedding(tokens, weight);
  Tape& tape = weight.tape();
  Shape shape = tokens.shape();
  shape.push_back(weight.size(-1));
  const Value sum = [&] {
    const Masked looked_up = masked(tape, tokens.shape());
    return tape.record(
        "embedding", std::span(&weight, 1), tape.allocate("embedding", shape, weight.dtype()), {tokens},
        [words, wanted = meta_of(weight)](Tape& t, std::span<const Value>, std::vector<Value>&) {
          return one(fresh(t, "embedding backward", {{words, wanted.shape[1]}, wanted.dtype, wanted.wanted}));
        });
  }();
  return scattered(sum, ranks);
}

namespace {

// _log_softmax. Its backward is done by the loss's.
Value parallel_log_softmax(const Value& x) {
  Tape& tape = x.tape();
  const Shape rows{x.size(0), 1};
  const auto row = [&](const char* what) { return tape.allocate(what, rows, DType::f32); };
  Value most = row("amax");
  most = row("all_reduce");
  const Value shifted = like("sub", x);
  Value sum = [&] {
    const Value exponentials = like("exp", x);
    return row("sum");
  }();
  sum = row("all_reduce");
  const Value logarithm = row("log");
  Value output = like("log_softmax", x);
  return tape.record("log_softmax", std::span(&x, 1), output, {output}, same_gradient(x));
}

}  // namespace

Value parallel_cross_entropy(const Value& logits) {
  const Value x = parallel_log_softmax(logits);
  Tape& tape = x.tape();
  const Shape rows{x.size(0), 1};
  Value output;
  std::vector<Value> saved{x};
  {
    const Value targets = tape.allocate("where", rows, DType::i64);
    const Masked looked_up = masked(tape, rows);
    const Value found = tape.allocate("gather", rows, DType::f32);
    const Value reduced = tape.allocate("all_reduce", rows, DType::f32);
    const Value negative = tape.allocate("neg", rows, DType::f32);
    const Value kept = tape.allocate("where", rows, DType::f32);
    saved.push_back(tape.allocate("nll_loss weight", {}, DType::f32));
    output = tape.allocate("nll_loss", {}, DType::f32);
  }
  // _nll_loss_and_log_softmax_backward
  return tape.record("nll_loss", std::span(&x, 1), std::move(output), std::move(saved),
                     [rows, whole = meta_of(x)](Tape& t, std::span<const Value>, std::vector<Value>&) {
                       const Value targets = t.allocate("where", rows, DType::i64);
                       const Value ones = fresh(t, "zeros", whole);
                       const Masked looked_up = masked(t, rows);
                       const std::array update{t.allocate("sub", rows, DType::f32),
                                               t.allocate("arange", rows, DType::i64),
                                               t.allocate("where", rows, DType::f32)};
                       const Value sum = [&] {
                         const Value probabilities = fresh(t, "exp", whole);
                         return fresh(t, "add", whole);
                       }();
                       return one(fresh(t, "mul", whole));
                     });
}

}  // namespace shardplan::autograd
