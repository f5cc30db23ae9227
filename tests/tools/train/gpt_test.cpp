#include "tools/train/gpt.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <thread>

#include "base/error.h"
#include "tests/tools/train/model_state.h"
#include "tests/tools/train/reference_gpt.h"
#include "tools/train/random.h"
#include "tools/train/text.h"

extern "C" int openblas_get_num_threads();

namespace shardplan {
namespace {

using test::ModelState;

constexpr std::size_t kSequences = 3;

GptConfig small(bool tied) {
  return {.layers = 2, .width = 24, .heads = 3, .context = 7, .tied = tied, .seed = 5};
}

std::vector<std::uint8_t> windows_for(const GptConfig& config, std::size_t sequences, std::uint64_t seed = 1) {
  std::vector<std::uint8_t> windows(sequences * (config.context + 1));
  const Text text(test::words(4000, seed), config.context, "words");
  text.sample({.seed = seed}, windows);
  return windows;
}

// First values are so small and so regular (norms 1, biases 0) that a wrong derivative could hide: move every tensor.
void perturb(const ModelState& state) {
  for (std::size_t t = 0; t < state.parameters().size(); ++t) {
    if (!state.owns(t)) continue;
    auto* const values = reinterpret_cast<float*>(state.parameters()[t].data);
    for (std::size_t i = 0; i < state.parameters()[t].elements; ++i) {
      values[i] += static_cast<float>(0.2 * normal(1000 + t, i));
    }
  }
}

test::ReferenceParameters in_double(const ModelState& state) {
  test::ReferenceParameters parameters;
  for (const TensorView& tensor : state.parameters()) parameters.push_back(test::values_of(tensor));
  return parameters;
}

// Up to 16 elements of a tensor; of the token embedding those of bytes that occur, whose gradient is not zero.
std::vector<std::size_t> sampled_elements(std::size_t tensor, std::size_t size, std::span<const std::uint8_t> windows,
                                          std::size_t width) {
  std::vector<std::size_t> elements;
  for (std::size_t i = 0; i < std::min<std::size_t>(size, 16); ++i) {
    const std::uint64_t random = random_bits(tensor, i);
    const bool of_token = tensor == embedding::tokens && i % 4 != 0;
    elements.push_back(size <= 16 ? i
                       : of_token ? windows[random % windows.size()] * width + i % width
                                  : random % size);
  }
  return elements;
}

class GptGradients : public testing::TestWithParam<bool> {};

TEST_P(GptGradients, LossIsTheReferences) {
  const GptConfig config = small(GetParam());
  ModelState state(config);
  perturb(state);
  Gpt gpt(config, kSequences);
  const std::vector<std::uint8_t> windows = windows_for(config, kSequences);
  const double expected = test::reference_loss(config, in_double(state), windows);
  EXPECT_NEAR(test::evaluate(gpt, windows, state), expected, 2e-6 * expected);
}

// The derivative by central differences of the double reference: its error is far below fp32's rounding.
TEST_P(GptGradients, OfEveryTensorAreTheFiniteDifferences) {
  const GptConfig config = small(GetParam());
  ModelState state(config);
  perturb(state);
  Gpt gpt(config, kSequences);
  const std::vector<std::uint8_t> windows = windows_for(config, kSequences);
  test::train_micro_batch(gpt, windows, state);

  test::ReferenceParameters parameters = in_double(state);
  std::size_t tensor = 0;
  for_each_tensor(gpt.catalog(), [&](const std::string& name, const Tensor&) {
    const std::size_t t = tensor++;
    if (!state.owns(t)) return;
    const std::vector<double> gradient = test::values_of(state.gradients()[t]);
    double largest = 0;
    for (const double value : gradient) largest = std::max(largest, std::abs(value));
    EXPECT_GT(largest, 1e-4) << name << ": a gradient of nothing proves nothing";
    for (const std::size_t i : sampled_elements(t, gradient.size(), windows, config.width)) {
      constexpr double kStep = 1e-4;
      double& element = parameters[t][i];
      const double before = element;
      element = before + kStep;
      const double above = test::reference_loss(config, parameters, windows);
      element = before - kStep;
      const double below = test::reference_loss(config, parameters, windows);
      element = before;
      EXPECT_NEAR(gradient[i], (above - below) / (2 * kStep), 1e-5 * largest) << name << " element " << i;
    }
  });
}

INSTANTIATE_TEST_SUITE_P(Heads, GptGradients, testing::Bool(),
                         [](const auto& head) { return head.param ? "tied" : "untied"; });

// Everything a micro-batch leaves behind, byte for byte.
std::vector<std::byte> trace(const GptConfig& config, std::uint64_t seed, DType dtype = DType::f32) {
  ModelState state(config, dtype);
  Gpt gpt(config, kSequences);
  std::vector<std::byte> bytes;
  for (int step = 0; step < 3; ++step) {
    const double loss =
        test::train_micro_batch(gpt, windows_for(config, kSequences, seed + static_cast<std::uint64_t>(step)), state);
    const auto* const of_loss = reinterpret_cast<const std::byte*>(&loss);
    bytes.insert(bytes.end(), of_loss, of_loss + sizeof loss);
  }
  for (const TensorView& gradient : state.gradients()) {
    bytes.insert(bytes.end(), gradient.data, gradient.data + bytes_for(dtype, gradient.elements).count());
  }
  return bytes;
}

TEST(Gpt, MakesOpenBlasUseOneThread) {
  const Gpt gpt(small(true), 1);
  EXPECT_EQ(openblas_get_num_threads(), 1);
}

TEST(Gpt, GivesTheSameBitsOnFourThreadsAtOnceAsOnOne) {
  const GptConfig config{.layers = 2, .width = 96, .heads = 4, .context = 48, .tied = true, .seed = 9};
  std::vector<std::vector<std::byte>> alone;
  for (std::uint64_t rank = 0; rank < 4; ++rank) alone.push_back(trace(config, rank));
  EXPECT_NE(alone[0], alone[1]);
  for (int round = 0; round < 3; ++round) {
    std::vector<std::vector<std::byte>> together(4);
    std::vector<std::thread> threads;
    for (std::uint64_t rank = 0; rank < 4; ++rank) {
      threads.emplace_back([&, rank] { together[rank] = trace(config, rank); });
    }
    for (std::thread& thread : threads) thread.join();
    EXPECT_TRUE(together == alone) << "round " << round;
  }
}

// Where the optimizer keeps a tensor is its own affair.
TEST(Gpt, DoesNotDependOnWhereTheTensorsLie) {
  const GptConfig config = small(false);
  const std::vector<std::uint8_t> windows = windows_for(config, kSequences);
  ModelState state(config);
  Gpt gpt(config, kSequences);
  test::train_micro_batch(gpt, windows, state);
  for (const std::size_t shift : {1U, 3U, 8U}) {
    std::vector<std::vector<float>> storage;
    std::vector<std::vector<TensorView>> moved(2);
    for (const bool gradients : {false, true}) {
      for (const TensorView& tensor : gradients ? state.gradients() : state.parameters()) {
        storage.emplace_back(tensor.elements + shift, 0.0F);
        auto* const data = reinterpret_cast<std::byte*>(storage.back().data() + shift);
        if (!gradients) std::memcpy(data, tensor.data, tensor.elements * 4);
        moved[gradients ? 1 : 0].push_back({data, tensor.dtype, tensor.elements});
      }
    }
    const auto views = [&](std::uint64_t unit) {
      const auto first = static_cast<std::size_t>(state.views(unit).parameters.data() - state.parameters().data());
      const std::size_t count = state.views(unit).parameters.size();
      return UnitViews{std::span(moved[0]).subspan(first, count), std::span(moved[1]).subspan(first, count)};
    };
    gpt.set_batch(windows);
    for (std::uint64_t unit = 0; unit < gpt.units(); ++unit) gpt.forward(unit, views(unit));
    for (std::uint64_t unit = gpt.units(); unit-- > 0;) gpt.backward(unit, views(unit));
    for (std::size_t t = 0; t < moved[1].size(); ++t) {
      EXPECT_EQ(std::memcmp(moved[1][t].data, state.gradients()[t].data, moved[1][t].elements * 4), 0) << t;
    }
  }
}

// What a 16-bit gradient is made of: the fp32 gradient of the widened parameters, rounded once for each contribution.
void expect_rounded_gradients(DType dtype, double unit_roundoff) {
  const GptConfig config = small(true);
  const std::vector<std::uint8_t> windows = windows_for(config, kSequences);
  ModelState narrow(config, dtype);
  ModelState wide(config);
  for (std::size_t t = 0; t < narrow.parameters().size(); ++t) {
    const std::vector<double> values = test::values_of(narrow.parameters()[t]);
    auto* const to = reinterpret_cast<float*>(wide.parameters()[t].data);
    for (std::size_t i = 0; i < values.size(); ++i) to[i] = static_cast<float>(values[i]);
  }
  Gpt gpt(config, kSequences);
  gpt.set_loss_scale(1024);
  const double loss = test::train_micro_batch(gpt, windows, narrow);
  EXPECT_EQ(loss, test::train_micro_batch(gpt, windows, wide));
  for (std::size_t t = 0; t < narrow.gradients().size(); ++t) {
    const std::vector<double> got = test::values_of(narrow.gradients()[t]);
    const std::vector<double> exact = test::values_of(wide.gradients()[t]);
    double largest = 0;
    for (const double value : exact) largest = std::max(largest, std::abs(value));
    // The tied tensor, the first and the last, has two contributions: the head's is rounded before the embedding's is
    // added.
    const bool tied = t == embedding::tokens || !narrow.owns(t);
    for (std::size_t i = 0; i < got.size(); ++i) {
      const double allowed = tied ? 2 * largest : std::abs(exact[i]);
      EXPECT_NEAR(got[i], exact[i], unit_roundoff * allowed + 0x1p-25) << "tensor " << t << " element " << i;
    }
  }
}

TEST(Gpt, WidensBf16AndRoundsItsGradients) {
  expect_rounded_gradients(DType::bf16, 0x1p-8);
}
TEST(Gpt, WidensFp16AndRoundsItsGradients) {
  expect_rounded_gradients(DType::f16, 0x1p-11);
}

TEST(Gpt, LossScaleMultipliesGradientsAndNotTheLoss) {
  const GptConfig config = small(true);
  const std::vector<std::uint8_t> windows = windows_for(config, kSequences);
  ModelState plain(config);
  ModelState scaled(config);
  Gpt gpt(config, kSequences);
  const double loss = test::train_micro_batch(gpt, windows, plain);
  gpt.set_loss_scale(0x1p16F);
  EXPECT_EQ(test::train_micro_batch(gpt, windows, scaled), loss);
  // A power of two scales every intermediate exactly.
  for (std::size_t t = 0; t < plain.gradients().size(); ++t) {
    std::vector<double> expected = test::values_of(plain.gradients()[t]);
    for (double& value : expected) value *= 0x1p16;
    EXPECT_EQ(test::values_of(scaled.gradients()[t]), expected) << t;
  }
}

TEST(Gpt, AScaleTooLargeForFp16GivesInfinities) {
  const GptConfig config = small(false);
  ModelState state(config, DType::f16);
  Gpt gpt(config, kSequences);
  gpt.set_loss_scale(0x1p30F);
  test::train_micro_batch(gpt, windows_for(config, kSequences), state);
  const std::vector<double> gradient = test::values_of(state.gradients().back());
  EXPECT_TRUE(std::ranges::any_of(gradient, [](double value) { return std::isinf(value); }));
}

TEST(Gpt, ANanInAParameterReachesTheLoss) {
  const GptConfig config = small(false);
  for (std::size_t t = 0; t < ModelState(config).parameters().size(); ++t) {
    ModelState state(config);
    const std::vector<std::uint8_t> windows = windows_for(config, kSequences);
    const std::size_t element = t == embedding::tokens ? windows[0] * config.width : 0;
    reinterpret_cast<float*>(state.parameters()[t].data)[element] = std::numeric_limits<float>::quiet_NaN();
    Gpt gpt(config, kSequences);
    EXPECT_TRUE(std::isnan(test::evaluate(gpt, windows, state))) << t;
  }
}

TEST(Gpt, AddsToWhatTheGradientsHold) {
  const GptConfig config = small(true);
  const std::vector<std::uint8_t> windows = windows_for(config, kSequences);
  ModelState once(config);
  ModelState twice(config);
  Gpt gpt(config, kSequences);
  test::train_micro_batch(gpt, windows, once);
  test::train_micro_batch(gpt, windows, twice);
  test::train_micro_batch(gpt, windows, twice);
  for (std::size_t t = 1; t + 1 < once.gradients().size(); ++t) {  // all with one contribution
    std::vector<double> expected = test::values_of(once.gradients()[t]);
    for (double& value : expected) value *= 2;
    EXPECT_EQ(test::values_of(twice.gradients()[t]), expected) << t;
  }
}

TEST(Gpt, ASmallerBatchIsTheMeanOfItsOwnBytes) {
  const GptConfig config = small(true);
  const ModelState state(config);
  const std::vector<std::uint8_t> windows = windows_for(config, kSequences);
  Gpt gpt(config, kSequences);
  const double whole = test::evaluate(gpt, windows, state);
  double sum = 0;
  const std::size_t window = config.context + 1;
  for (std::size_t i = 0; i < kSequences; ++i) {
    sum += test::evaluate(gpt, std::span(windows).subspan(i * window, window), state);
  }
  EXPECT_NEAR(sum / kSequences, whole, 1e-6);
}

TEST(Gpt, FrozenTensorsHaveNoGradientAndChangeNoOther) {
  const GptConfig config = small(false);
  const std::vector<std::uint8_t> windows = windows_for(config, kSequences);
  ModelState all(config);
  ModelState some(config);
  Gpt gpt(config, kSequences);
  test::train_micro_batch(gpt, windows, all);
  const auto frozen = [](std::size_t place) { return place % 3 == 0; };
  gpt.set_batch(windows);
  for (std::uint64_t unit = 0; unit < gpt.units(); ++unit) gpt.forward(unit, some.parameter_views(unit));
  for (std::uint64_t unit = gpt.units(); unit-- > 0;) {
    const UnitViews views = some.views(unit);
    std::vector<TensorView> gradients(views.gradients.begin(), views.gradients.end());
    for (std::size_t i = 0; i < gradients.size(); i += 3) gradients[i] = {};
    gpt.backward(unit, {views.parameters, gradients});
    for (std::size_t i = 0; i < gradients.size(); ++i) {
      std::vector<double> expected = test::values_of(all.views(unit).gradients[i]);
      if (frozen(i)) std::ranges::fill(expected, 0.0);
      EXPECT_EQ(test::values_of(views.gradients[i]), expected) << unit << " " << i;
    }
  }
}

TEST(Gpt, RefusesWhatDoesNotFit) {
  const GptConfig config = small(true);
  ModelState state(config);
  Gpt gpt(config, 2);
  std::vector<std::uint8_t> windows = windows_for(config, 3);
  EXPECT_THROW(gpt.set_batch(windows), CheckFailure);
  windows.resize(windows.size() - 1);
  EXPECT_THROW(gpt.set_batch(windows), CheckFailure);
  gpt.set_batch(windows_for(config, 2));
  EXPECT_THROW(gpt.forward(0, state.views(1)), CheckFailure);
  EXPECT_THROW(gpt.forward(1, state.views(gpt.units() - 1)), CheckFailure);
  EXPECT_THROW(gpt.backward(1, state.parameter_views(1)), CheckFailure);
}

}  // namespace
}  // namespace shardplan
