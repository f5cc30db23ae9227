#include "tools/train/attention.h"

#include <cmath>

namespace shardplan {
namespace {

// Where one head of one sequence lies in the matrices of all.
struct Head {
  std::size_t context, size, heads, sequence, head;

  template <typename Element>
  BasicMatrix<Element> part(BasicMatrix<Element> matrix, std::size_t i) const {
    return matrix.block(sequence * context, (i * heads + head) * size, context, size);
  }
  template <typename Element>
  BasicMatrix<Element> square(BasicMatrix<Element> matrix) const {
    return matrix.block((sequence * heads + head) * context, 0, context, context);
  }
  float scale() const { return 1 / std::sqrt(static_cast<float>(size)); }
};

enum Part : std::size_t { query, key, value };

template <typename Visitor>
void for_each_head(ConstMatrix qkv, ConstMatrix probabilities, Visitor visit) {
  const std::size_t context = probabilities.columns;
  const std::size_t heads = probabilities.rows / qkv.rows;
  const std::size_t size = qkv.columns / 3 / heads;
  for (std::size_t sequence = 0; sequence < qkv.rows / context; ++sequence) {
    for (std::size_t head = 0; head < heads; ++head) visit(Head{context, size, heads, sequence, head});
  }
}

}  // namespace

void attention(ConstMatrix qkv, Matrix probabilities, Matrix result) {
  for_each_head(qkv, probabilities, [&](const Head& head) {
    const Matrix p = head.square(probabilities);
    multiply(head.part(qkv, query), Transposed{head.part(qkv, key)}, p, head.scale());
    causal_softmax(p);
    multiply(p, head.part(qkv, value), head.part(result, 0));
  });
}

void attention_backward(ConstMatrix d_result, ConstMatrix qkv, ConstMatrix probabilities, Matrix d_scores,
                        Matrix d_qkv) {
  for_each_head(qkv, probabilities, [&](const Head& head) {
    const ConstMatrix p = head.square(probabilities);
    const ConstMatrix d = head.part(d_result, 0);
    multiply(Transposed{p}, d, head.part(d_qkv, value));
    multiply(d, Transposed{head.part(qkv, value)}, d_scores);
    causal_softmax_backward(p, d_scores);
    multiply(d_scores, head.part(qkv, key), head.part(d_qkv, query), head.scale());
    multiply(Transposed{d_scores}, head.part(qkv, query), head.part(d_qkv, key), head.scale());
  });
}

}  // namespace shardplan
