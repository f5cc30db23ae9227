#include "planner/activations/megatron/megatron_ops.h"

#include <algorithm>
#include <array>

#include "base/checked.h"
#include "base/error.h"
#include "planner/activations/torch_formula.h"
#include "planner/activations/torch_ops.h"

namespace shardplan::autograd {
namespace {

std::uint64_t bytes_of(const MegatronContext& context, std::uint64_t elements) {
  return bytes_for(context.dtype, elements).count();
}

Value record(std::string_view operation, const Value& x, Value output, std::vector<Value> saved, Formula formula) {
  return x.tape().record(operation, std::span(&x, 1), std::move(output), std::move(saved), std::move(formula));
}

// Everything but fusion with accumulation makes a gradient of the weight for a moment. With fusion the stand-in is noted.
void note_weight(MegatronContext& context, std::uint64_t rows, std::uint64_t columns) {
  if (context.megatron().gradient_accumulation_fusion) context.use.stand_ins.emplace(rows, columns);
}

Value weight_gradient(Tape& tape, bool fused, DType dtype, std::uint64_t rows, std::uint64_t columns) {
  if (fused) return {};
  const Purpose before = tape.set_purpose(Purpose::gradient);
  Value gradient = tape.allocate("weight gradient", {rows, columns}, dtype);
  tape.set_purpose(before);
  return gradient;
}

// The input as backward finds it: itself, a copy of 8 bits, or nothing.
std::vector<Value> kept_input(MegatronContext& context, const Value& x, const LinearOptions& options) {
  if (options.recomputed_input) return {};
  if (context.megatron().fp8 == Fp8Recipe::none || options.original_input) return one(x);
  std::vector<Value> kept = one(context.tape.allocate("fp8 copy", x.shape(), DType::f8_e4m3));
  const std::uint64_t scales = fp8_scale_bytes(context.megatron().fp8, x.elements());
  if (scales > 0) kept.push_back(context.tape.allocate("fp8 scales", {scales}, DType::u8));
  return kept;
}

void note_products(MegatronContext& context, std::uint64_t rows, std::uint64_t columns) {
  note_weight(context, rows, columns);
  if (!context.megatron().transformer_engine) {
    context.use.torch_products = true;
    return;
  }
  context.use.te_products = true;
  if (context.megatron().fp8 != Fp8Recipe::none && !context.megatron().fp8_param_gather) {
    context.use.fp8_weight_bytes += checked_multiply(rows, columns);
  }
}

// A dense copy where the heads are not.
Value dense(const Value& x, bool is_view) {
  return is_view ? contiguous(x) : x;
}

// [s, b, heads, d] as [b, s, heads, d]: a copy, but with one sequence nothing moves.
Value batch_first(MegatronContext& context, const Value& x, bool is_view) {
  return is_view || context.tokens.batch > 1 ? contiguous(x) : x;
}

struct Attended {
  MegatronContext& context;
  const CoreAttention& sizes;
  Shape out() const { return {context.tokens.batch * sizes.queries, sizes.heads * sizes.value}; }
  Shape rows() const { return {context.tokens.batch, sizes.heads, sizes.queries}; }
  Shape scores() const { return {context.tokens.batch * sizes.heads, sizes.queries, sizes.keys}; }
};

// A kernel that saves what it is given, what it made and the log-sum-exp of each row; `transient`: what its backward needs
// besides the gradients (fp32 sums of dq, and the rows' products).
Value fused_kernel(const Attended& a, const Value& q, const Value& k, const Value& v, const char* name) {
  Tape& tape = a.context.tape;
  Value output = a.context.allocate(name, a.out());
  std::vector<Value> saved;
  if (!a.sizes.recomputed_inputs) saved = {q, k, v};
  saved.push_back(output);
  saved.push_back(tape.allocate("log-sum-exp", a.rows(), DType::f32));
  saved.push_back(tape.allocate("random state", {2}, DType::i64));
  const std::array inputs{q, k, v};
  const std::array shapes{q.shape(), k.shape(), v.shape()};
  return tape.record(name, inputs, std::move(output), std::move(saved),
                     [shapes, rows = a.rows(), again = a.sizes.recomputed_inputs, dtype = a.context.dtype](
                         Tape& backward, std::span<const Value>, std::vector<Value>&) {
                       std::vector<Value> inputs_again;
                       if (again) {
                         for (const Shape& shape : shapes) {
                           inputs_again.push_back(backward.allocate("recomputed", shape, dtype));
                         }
                       }
                       const Value sums = backward.allocate("dq in fp32", shapes[0], DType::f32);
                       const Value products = backward.allocate("row products", rows, DType::f32);
                       std::vector<Value> gradients;
                       for (const Shape& shape : shapes) {
                         gradients.push_back(backward.allocate("attention backward", shape, dtype));
                       }
                       return gradients;
                     });
}

// TE attention/dot_product_attention/backends.py:1318: dense inputs, unless all three are views of one product.
Value cudnn_attention(const Attended& a, const Value& q, const Value& k, const Value& v) {
  const CoreAttention& s = a.sizes;
  const bool packed = s.q_view && s.k_view && s.v_view;
  if (packed) return fused_kernel(a, q, k, v, "cuDNN attention");
  const Value dense_q = dense(q, s.q_view);
  const Value dense_k = dense(k, s.k_view);
  const Value dense_v = dense(v, s.v_view);
  return fused_kernel(a, dense_q, dense_k, dense_v, "cuDNN attention");
}

// TE backends.py:864-877 and :511-519: FlashAttention 2 wants and gives the batch first.
Value flash_attention(const Attended& a, const Value& q, const Value& k, const Value& v) {
  const CoreAttention& s = a.sizes;
  const Value first_q = batch_first(a.context, q, s.q_view);
  const Value first_k = batch_first(a.context, k, s.k_view);
  const Value first_v = batch_first(a.context, v, s.v_view);
  return batch_first(a.context, fused_kernel(a, first_q, first_k, first_v, "FlashAttention"), false);
}

// q k^T, its softmax and its dropped copy as tensors.
// TE backends.py, UnfusedDotProductAttention; M transformer/dot_product_attention.py, whose product starts from a global
// buffer. Keys and values are repeated for each of the heads that share them.
Value unfused_attention(const Attended& a, const Value& q, Value k, Value v, bool local) {
  MegatronContext& context = a.context;
  const CoreAttention& s = a.sizes;
  if (s.heads > s.kv_heads) {
    const auto repeated = [&](const Value& x, std::uint64_t features) {
      Value output = context.allocate("repeated heads", {x.size(0), s.heads * features});
      return record(
          "repeat_interleave", x, std::move(output), {},
          [shape = x.shape(), dtype = context.dtype](Tape& tape, std::span<const Value>, std::vector<Value>&) {
            return one(tape.allocate("repeat_interleave backward", shape, dtype));
          });
    };
    k = repeated(k, s.head);
    v = repeated(v, s.value);
  }
  Value scores;
  if (local) {
    context.use_global_buffer(bytes_of(context, elements(a.scores())));
    scores = matmul(q, k, a.scores());
  } else {
    const Value start = context.allocate("start of the scores", a.scores());
    scores = matmul(q, k, a.scores());
  }
  Value probabilities;
  if (local && !context.megatron().masked_softmax_fusion) {
    probabilities = to(softmax(to(scores, DType::f32)), context.dtype);
  } else {
    probabilities = softmax(scores);
  }
  if (context.megatron().padding_mask && !local) {
    // masked_fill in place saves the mask.
    std::vector<Value> mask =
        one(context.tape.allocate("padding mask", {context.tokens.batch, s.queries, s.keys}, DType::boolean));
    probabilities =
        record("masked_fill", probabilities, probabilities, std::move(mask),
               [shape = a.scores(), dtype = context.dtype](Tape& tape, std::span<const Value>, std::vector<Value>&) {
                 return one(tape.allocate("masked_fill backward", shape, dtype));
               });
  }
  const Value dropped = dropout(probabilities, context.megatron().attention_dropout);
  return contiguous(matmul(dropped, v, a.out()));
}

// Ring: keys and values travel in buffers, one part of the sequence after the other (TE context_parallel.py:1967). All
// live to the end of the layer's attention; the last one received is kept. A later part's output is half as large.
Value ring_attention(const Attended& a, const Value& q, const Value& k, const Value& v, bool flash) {
  MegatronContext& context = a.context;
  const std::uint64_t parts = context.setup.parallel.context;
  const std::array received{dense(k, true), dense(v, true)};
  const std::uint64_t kv = k.elements() + v.elements();
  const Value buffers = context.allocate("keys and values on their way", {parts - 1, kv});
  const Value outputs = context.allocate("outputs of the parts", {parts, elements(a.out())});
  const Value dense_q = flash ? batch_first(context, q, a.sizes.q_view) : dense(q, a.sizes.q_view);
  const Value output = fused_kernel(a, dense_q, received[0], received[1], "ring attention");
  return flash ? batch_first(context, output, false) : output;
}

// Ulysses: heads for positions and back (TE context_parallel.py:3582): what is kept is on the other side of the exchange.
Value exchanged_attention(const Attended& a, const Value& q, const Value& k, const Value& v) {
  const Value all_q = contiguous(q);
  const Value all_k = contiguous(k);
  const Value all_v = contiguous(v);
  return contiguous(fused_kernel(a, all_q, all_k, all_v, "attention between all-to-alls"));
}

// Keys and values of all positions (TE context_parallel.py:3010), gathered again in backward.
Value gathered_attention(const Attended& a, const Value& q, const Value& k, const Value& v) {
  const std::uint64_t parts = a.context.setup.parallel.context;
  const Value dense_q = dense(q, a.sizes.q_view);
  const Value dense_k = dense(k, a.sizes.k_view);
  const Value dense_v = dense(v, a.sizes.v_view);
  const Value gathered = a.context.allocate("gathered keys and values", {parts, k.elements() + v.elements()});
  return fused_kernel(a, dense_q, dense_k, dense_v, "attention on gathered keys");
}

Value attend(const Attended& a, const Value& q, const Value& k, const Value& v) {
  const MegatronAttention backend = resolved_attention(a.context, a.sizes);
  const bool fused = backend == MegatronAttention::flash || backend == MegatronAttention::fused;
  if (a.context.setup.parallel.context > 1) {
    if (!fused)
      throw ConfigError("--cp", "", "the attention backend has no context parallelism: expected flash or fused");
    switch (a.context.megatron().context_exchange) {
      case ContextExchange::ring:
        return ring_attention(a, q, k, v, backend == MegatronAttention::flash);
      case ContextExchange::all_gather:
        return gathered_attention(a, q, k, v);
      case ContextExchange::all_to_all:
        return exchanged_attention(a, q, k, v);
    }
  }
  switch (backend) {
    case MegatronAttention::flash:
      return flash_attention(a, q, k, v);
    case MegatronAttention::fused:
      return cudnn_attention(a, q, k, v);
    default:
      return unfused_attention(a, q, k, v, backend == MegatronAttention::local);
  }
}

// M tensor_parallel/cross_entropy.py: .float() is a copy, on which everything else happens in place; the gradient is made
// in it too, and autograd casts it for the 16-bit logits.
Value unfused_cross_entropy(MegatronContext& context, const Value& logits, bool writes_in_place) {
  Tape& tape = context.tape;
  const std::uint64_t tokens = logits.size(0);
  Value wide = writes_in_place ? to(logits, DType::f32) : tape.allocate("fp32 logits", logits.shape(), DType::f32);
  const Value maximum = tape.allocate("maximum", {tokens}, DType::f32);
  std::vector<Value> saved;
  saved.push_back(writes_in_place ? wide : tape.allocate("exponentials", logits.shape(), DType::f32));
  saved.push_back(tape.allocate("target mask", {tokens}, DType::boolean));
  saved.push_back(tape.allocate("masked target", {tokens}, DType::i64));
  const Value sums = tape.allocate("sums of exponentials", {tokens}, DType::f32);
  Value loss = tape.allocate("loss", {tokens}, DType::f32);
  if (writes_in_place) {
    return record("vocab_parallel_cross_entropy", wide, std::move(loss), std::move(saved),
                  [](Tape&, std::span<const Value> kept, std::vector<Value>&) { return one(kept[0]); });
  }
  return record(
      "fused_vocab_parallel_cross_entropy", logits, std::move(loss), std::move(saved),
      [shape = logits.shape(), dtype = context.dtype](Tape& backward, std::span<const Value>, std::vector<Value>&) {
        return one(backward.allocate("gradient of the logits", shape, dtype));
      });
}

// TE cross_entropy.py:62: the gradient takes the place of the logits.
Value te_cross_entropy(MegatronContext& context, const Value& logits) {
  return record("te parallel_cross_entropy", logits, context.tape.allocate("loss", {logits.size(0)}, DType::f32),
                one(logits), [](Tape&, std::span<const Value> kept, std::vector<Value>&) { return one(kept[0]); });
}

// M tensor_parallel/layers.py, ColumnParallelLinear: never TE's. The gathered input is in the global buffer.
Value output_layer(MegatronContext& context, const Value& hidden, std::uint64_t vocabulary) {
  const std::uint64_t tokens = context.splits_sequence() ? hidden.size(0) * context.tensor() : hidden.size(0);
  const std::uint64_t features = hidden.size(-1);
  context.use.torch_products = true;
  note_weight(context, vocabulary, features);
  if (context.splits_sequence()) context.use_global_buffer(bytes_of(context, tokens * features));
  return record("output layer", hidden, context.allocate("logits", {tokens, vocabulary}), one(hidden),
                [shape = hidden.shape(), tokens, features, vocabulary, dtype = context.dtype,
                 fused = context.megatron().gradient_accumulation_fusion](Tape& tape, std::span<const Value>,
                                                                          std::vector<Value>&) {
                  Value gradient = tape.allocate("gradient of the hidden state", {tokens, features}, dtype);
                  Value scattered = shape[0] < tokens ? tape.allocate("scattered gradient", shape, dtype) : Value();
                  const Value of_weight = weight_gradient(tape, fused, dtype, vocabulary, features);
                  return one(scattered.defined() ? std::move(scattered) : std::move(gradient));
                });
}

}  // namespace

void MegatronContext::use_global_buffer(std::uint64_t bytes) {
  use.global_buffer_bytes = std::max(use.global_buffer_bytes, bytes);
}

std::uint64_t fp8_scale_bytes(Fp8Recipe recipe, std::uint64_t elements) {
  switch (recipe) {
    case Fp8Recipe::mxfp8:
      return divide_up(elements, 32);  // a byte for 32 elements
    case Fp8Recipe::blockwise:
      return 4 * divide_up(elements, 128);  // fp32 for 128 elements
    default:
      return 0;
  }
}

Value norm(MegatronContext& context, const Value& x, bool rms) {
  Tape& tape = context.tape;
  const Value input = to(x, context.dtype);
  std::vector<Value> saved = one(input);
  saved.push_back(tape.allocate("rsigma", {x.size(0)}, DType::f32));
  if (!rms) saved.push_back(tape.allocate("mu", {x.size(0)}, DType::f32));
  return record(
      "norm", input, context.allocate("norm", input.shape()), std::move(saved),
      [shape = input.shape(), dtype = context.dtype](Tape& backward, std::span<const Value>, std::vector<Value>&) {
        return one(backward.allocate("norm backward", shape, dtype));
      });
}

Value column_linear(MegatronContext& context, const Value& x, std::uint64_t output, const LinearOptions& options) {
  const bool gathers = context.splits_sequence() && !options.whole;
  const std::uint64_t input = x.size(-1);
  const std::uint64_t tokens = gathers ? x.size(0) * context.tensor() : x.size(0);
  note_products(context, output, input);
  Value gathered;
  if (gathers && context.megatron().transformer_engine) {
    gathered = context.allocate("gathered", {tokens, input});
  } else if (gathers) {
    context.use_global_buffer(bytes_of(context, tokens * input));
  }
  Value y = context.allocate("column linear", {tokens, output});
  return record("column linear", x, std::move(y), kept_input(context, x, options),
                [shape = x.shape(), tokens, input, output, gathers, again = options.recomputed_input,
                 dtype = context.dtype, fused = context.megatron().gradient_accumulation_fusion](
                    Tape& tape, std::span<const Value>, std::vector<Value>&) {
                  const Value recomputed = again ? tape.allocate("recomputed", shape, dtype) : Value();
                  const Value whole = gathers ? tape.allocate("gathered", {tokens, input}, dtype) : Value();
                  Value gradient = tape.allocate("column linear backward", {tokens, input}, dtype);
                  Value scattered = gathers ? tape.allocate("scattered", shape, dtype) : Value();
                  const Value of_weight = weight_gradient(tape, fused, dtype, output, input);
                  return one(gathers ? std::move(scattered) : std::move(gradient));
                });
}

Value row_linear(MegatronContext& context, const Value& x, std::uint64_t output, const LinearOptions& options) {
  const bool scatters = context.splits_sequence();
  const std::uint64_t input = x.size(-1);
  const std::uint64_t tokens = x.size(0);
  note_products(context, output, input);
  Value y = context.allocate("row linear", {tokens, output});
  if (scatters) y = context.allocate("scattered", {tokens / context.tensor(), output});
  return record("row linear", x, std::move(y), kept_input(context, x, options),
                [shape = x.shape(), tokens, input, output, scatters, again = options.recomputed_input,
                 dtype = context.dtype, fused = context.megatron().gradient_accumulation_fusion](
                    Tape& tape, std::span<const Value>, std::vector<Value>&) {
                  const Value recomputed = again ? tape.allocate("recomputed", shape, dtype) : Value();
                  const Value whole = scatters ? tape.allocate("gathered gradient", {tokens, output}, dtype) : Value();
                  Value gradient = tape.allocate("row linear backward", shape, dtype);
                  const Value of_weight = weight_gradient(tape, fused, dtype, output, input);
                  return one(std::move(gradient));
                });
}

Value bias_dropout_add(MegatronContext& context, const Value& x, const Value& residual, bool has_bias) {
  Tape& tape = context.tape;
  const bool drops = context.megatron().hidden_dropout > 0;
  std::vector<Value> saved;
  if (drops) saved.push_back(tape.allocate("dropout mask", x.shape(), DType::boolean));
  Value output = tape.allocate("bias dropout add", x.shape(), residual.dtype());
  const bool same = !drops && !has_bias && x.dtype() == residual.dtype();
  const std::array inputs{x, residual};
  return tape.record("bias dropout add", inputs, std::move(output), std::move(saved),
                     [shape = x.shape(), dtype = x.dtype(), drops, same](Tape& backward, std::span<const Value>,
                                                                         std::vector<Value>& incoming) {
                       std::vector<Value> gradients(2);
                       gradients[0] =
                           drops || !same ? backward.allocate("dropout backward", shape, dtype) : incoming[0];
                       gradients[1] = std::move(incoming[0]);
                       return gradients;
                     });
}

Value mlp_activation(MegatronContext& context, Value x, std::uint64_t width, bool gated, bool has_bias) {
  const bool fused = context.megatron().bias_activation_fusion;
  if (fused) {
    const bool in_fp8 = gated && context.megatron().activation_func_fp8_input_store;
    std::vector<Value> saved =
        one(in_fp8 ? context.tape.allocate("fp8 input of the activation", x.shape(), DType::f8_e4m3) : x);
    return record("activation", x, context.allocate("activation", {x.size(0), width}), std::move(saved),
                  [shape = x.shape(), dtype = context.dtype](Tape& tape, std::span<const Value>, std::vector<Value>&) {
                    return one(tape.allocate("activation backward", shape, dtype));
                  });
  }
  if (has_bias) x = shift(x);
  if (!gated) return unary("activation", x);
  const std::array<std::uint64_t, 2> halves{width, width};
  std::vector<Value> parts = split(x, halves);
  x.reset();
  return mul(unary("silu", parts[0]), parts[1]);
}

// Fused: TE attention/rope.py:142, which saves the table alone. Else M models/common/embeddings/rope_utils.py: the products
// save cos and sin, new for every call.
Value rotate(MegatronContext& context, const Value& x, std::uint64_t heads, std::uint64_t head) {
  const std::uint64_t positions = x.size(0) / context.tokens.batch;
  context.use.rotary_bytes = std::max(context.use.rotary_bytes, 4 * checked_multiply(positions, head));
  if (context.megatron().rope_fusion) {
    return record(
        "rope", x, context.allocate("rope", x.shape()), {},
        [shape = x.shape(), dtype = context.dtype](Tape& backward, std::span<const Value>, std::vector<Value>&) {
          return one(backward.allocate("rope backward", shape, dtype));
        });
  }
  const Shape by_head{positions, context.tokens.batch, heads, head};
  const Value t = view(x, by_head);
  const Value cos = context.allocate("cos", {positions, 1, 1, head});
  const Value sin = context.allocate("sin", {positions, 1, 1, head});
  const auto rotate_half = [&] {
    const std::array<std::uint64_t, 2> halves{head / 2, head - head / 2};
    const std::vector<Value> parts = split(t, halves);
    return cat(std::array{neg(parts[1]), parts[0]}, by_head);
  };
  const Value turned = add(mul(t, cos), mul(rotate_half(), sin));
  return view(cat(std::array{turned}, by_head), x.shape());
}

// TE attention/dot_product_attention/utils.py, get_attention_backend: cuDNN's where it can, from Hopper on; a deterministic
// backward may rule it out; FlashAttention 2 has one size of head.
MegatronAttention resolved_attention(const MegatronContext& context, const CoreAttention& sizes) {
  const MegatronClient& m = context.megatron();
  if (!m.transformer_engine) return MegatronAttention::local;
  if (m.attention == MegatronAttention::local) return MegatronAttention::unfused;
  if (m.attention != MegatronAttention::automatic) return m.attention;
  if (context.client.attention) {
    switch (*context.client.attention) {
      case AttentionKind::eager:
        return MegatronAttention::unfused;
      case AttentionKind::sdpa:
        return MegatronAttention::fused;
      case AttentionKind::flash:
        break;
    }
  }
  if (m.padding_mask) return MegatronAttention::unfused;
  const bool flash_can = sizes.head == sizes.value;
  return m.nondeterministic_allowed || !flash_can ? MegatronAttention::fused : MegatronAttention::flash;
}

Value core_attention(MegatronContext& context, const Value& q, const Value& k, const Value& v,
                     const CoreAttention& sizes) {
  if (!context.selects(&MegatronClient::Modules::core_attention)) return attend({context, sizes}, q, k, v);
  const std::array inputs{q, k, v};
  return context.tape.reentrant_checkpoint(
      [&context, sizes](std::span<const Value> kept) { return attend({context, sizes}, kept[0], kept[1], kept[2]); },
      inputs);
}

Value vocabulary_loss(MegatronContext& context, const Value& hidden, std::uint64_t vocabulary) {
  const Purpose before = context.tape.set_purpose(Purpose::loss);
  const Value logits = output_layer(context, hidden, vocabulary);
  const MegatronCrossEntropy kind = context.megatron().cross_entropy.value_or(
      context.client.loss == LossKind::fused ? MegatronCrossEntropy::te : MegatronCrossEntropy::unfused);
  Value loss = kind == MegatronCrossEntropy::te
                   ? te_cross_entropy(context, logits)
                   : unfused_cross_entropy(context, logits, kind == MegatronCrossEntropy::unfused);
  context.tape.set_purpose(before);
  return loss;
}

}  // namespace shardplan::autograd
