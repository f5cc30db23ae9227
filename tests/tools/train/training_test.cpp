// The model learns: plain AdamW over its gradients on one thread, without the library's optimizer.
#include <gtest/gtest.h>

#include <cmath>

#include "tests/tools/train/model_state.h"
#include "tools/train/text.h"

namespace shardplan {
namespace {

using test::ModelState;

struct PlainAdamW {
  float learning_rate;
  std::vector<std::vector<float>> first, second;
  int step = 0;

  void update(const ModelState& state) {
    first.resize(state.parameters().size());
    second.resize(state.parameters().size());
    ++step;
    const auto correction_1 = static_cast<float>(1 - std::pow(0.9, step));
    const auto correction_2 = static_cast<float>(1 - std::pow(0.999, step));
    for (std::size_t t = 0; t < first.size(); ++t) {
      if (!state.owns(t)) continue;
      const std::size_t count = state.parameters()[t].elements;
      first[t].resize(count);
      second[t].resize(count);
      auto* const p = reinterpret_cast<float*>(state.parameters()[t].data);
      const auto* const g = reinterpret_cast<const float*>(state.gradients()[t].data);
      for (std::size_t i = 0; i < count; ++i) {
        first[t][i] += 0.1F * (g[i] - first[t][i]);
        second[t][i] += 0.001F * (g[i] * g[i] - second[t][i]);
        const float direction = first[t][i] / correction_1 / (std::sqrt(second[t][i] / correction_2) + 1e-8F);
        p[i] -= learning_rate * (direction + 0.01F * p[i]);
      }
    }
  }
};

double held_out_loss(Gpt& gpt, const Text& text, const ModelState& state, std::size_t sequences) {
  double sum = 0;
  for (std::size_t first = 0; first < text.held_out_windows(); first += sequences) {
    const std::size_t count = std::min(sequences, text.held_out_windows() - first);
    std::vector<std::uint8_t> batch(count * text.window_bytes());
    text.copy_held_out(first, batch);
    sum += static_cast<double>(count) * test::evaluate(gpt, batch, state);
  }
  return sum / static_cast<double>(text.held_out_windows());
}

// Within a word of this text the second byte decides the rest: half of the pair model's uncertainty is not there for a
// model that sees the whole word.
TEST(Training, LearnsMoreThanPairsOfBytes) {
  const GptConfig config{.layers = 1, .width = 32, .heads = 2, .context = 16, .tied = true, .seed = 1};
  constexpr std::size_t kSequences = 8;
  const Text text(test::words(20000, 3), config.context, "words");
  ModelState state(config);
  Gpt gpt(config, kSequences);
  const double at_first = held_out_loss(gpt, text, state, kSequences);
  EXPECT_NEAR(at_first, std::log(256.0), 0.1);

  PlainAdamW optimizer{.learning_rate = 3e-3F, .first = {}, .second = {}};
  std::vector<std::uint8_t> batch(kSequences * text.window_bytes());
  for (std::uint64_t step = 0; step < 400; ++step) {
    text.sample({.seed = 1, .step = step}, batch);
    state.zero_gradients();
    test::train_micro_batch(gpt, batch, state);
    optimizer.update(state);
  }
  EXPECT_LT(held_out_loss(gpt, text, state, kSequences), 0.8 * bigram_entropy(text));
}

}  // namespace
}  // namespace shardplan
