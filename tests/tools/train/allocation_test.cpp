#include <gtest/gtest.h>

#include "tests/support/allocation_count.h"
#include "tests/tools/train/model_state.h"
#include "tools/train/text.h"

namespace shardplan {
namespace {

TEST(Allocation, AStepOfTheModelMakesNone) {
  const GptConfig config{.layers = 2, .width = 32, .heads = 2, .context = 16};
  const Text text(test::words(2000, 1), config.context, "words");
  EXPECT_GT(test::allocations_of_this_thread(), 0U) << "nothing is counted";
  for (const DType dtype : {DType::f32, DType::bf16, DType::f16}) {
    const test::ModelState state(config, dtype);
    Gpt gpt(config, 4);
    std::vector<std::uint8_t> batch(4 * text.window_bytes());
    const std::uint64_t before = test::allocations_of_this_thread();
    for (std::uint64_t step = 0; step < 3; ++step) {
      text.sample({.step = step}, batch);
      test::train_micro_batch(gpt, batch, state);
      test::evaluate(gpt, std::span(batch).first(text.window_bytes()), state);
    }
    EXPECT_EQ(test::allocations_of_this_thread() - before, 0U) << name(dtype);
  }
}

}  // namespace
}  // namespace shardplan
