// Counts what the whole program allocates, by taking the place of operator new. Not inlined: g++ takes a free that it
// sees for the wrong partner of a new that it does not see.
#include <gtest/gtest.h>

#include <atomic>
#include <cstdlib>
#include <new>

#include "tests/tools/train/model_state.h"
#include "tools/train/text.h"

namespace {
std::atomic<std::size_t> allocations{0};
}  // namespace

// NOLINTBEGIN(misc-new-delete-overloads): the aligned forms stay the library's
[[gnu::noinline]] void* operator new(std::size_t size) {
  ++allocations;
  if (void* const memory = std::malloc(size == 0 ? 1 : size)) return memory;
  throw std::bad_alloc();
}
[[gnu::noinline]] void operator delete(void* memory) noexcept {
  std::free(memory);
}
[[gnu::noinline]] void operator delete(void* memory, std::size_t) noexcept {
  std::free(memory);
}
// NOLINTEND(misc-new-delete-overloads)

namespace shardplan {
namespace {

TEST(Allocation, AStepOfTheModelMakesNone) {
  const GptConfig config{.layers = 2, .width = 32, .heads = 2, .context = 16};
  const Text text(test::words(2000, 1), config.context, "words");
  for (const DType dtype : {DType::f32, DType::bf16, DType::f16}) {
    const test::ModelState state(config, dtype);
    Gpt gpt(config, 4);
    std::vector<std::uint8_t> batch(4 * text.window_bytes());
    const std::size_t before = allocations;
    EXPECT_GT(before, 0U) << "nothing is counted";
    for (std::uint64_t step = 0; step < 3; ++step) {
      text.sample({.step = step}, batch);
      test::train_micro_batch(gpt, batch, state);
      test::evaluate(gpt, std::span(batch).first(text.window_bytes()), state);
    }
    EXPECT_EQ(allocations - before, 0U) << name(dtype);
  }
}

}  // namespace
}  // namespace shardplan
