#include "shard/kernels/split_master.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "base/half.h"

namespace shardplan {
namespace {

static_assert(split_master(1.0F).parameter == 0x3f80 && split_master(1.0F).rest == 0);

// Every lower half, below a spread of upper halves that holds every exponent and both signs.
template <typename Function>
void for_masters(Function function) {
  for (std::uint32_t upper = 0; upper < 0x10000; upper += 37) {
    for (std::uint32_t rest = 0; rest < 0x10000; ++rest) function(std::bit_cast<float>(upper << 16 | rest));
  }
}

TEST(SplitMaster, JoinsToTheSameBits) {
  for_masters([](float master) {
    const SplitMaster halves = split_master(master);
    const float joined = join_master(halves.parameter, halves.rest);
    if (std::isnan(master)) {
      ASSERT_TRUE(std::isnan(joined));
      ASSERT_EQ(std::signbit(joined), std::signbit(master));
      return;
    }
    ASSERT_EQ(std::bit_cast<std::uint32_t>(joined), std::bit_cast<std::uint32_t>(master));
  });
}

TEST(SplitMaster, ParameterIsTheNearestBf16) {
  for_masters([](float master) {
    const SplitMaster halves = split_master(master);
    if (halves.rest == 0x8000) {
      const float away = bf16_to_fp32(halves.parameter);
      ASSERT_GT(std::fabs(away), std::fabs(master));
    } else {
      ASSERT_EQ(halves.parameter, fp32_to_bf16(master)) << master;
    }
  });
}

TEST(SplitMaster, LargestFiniteValueComesBackFromAnInfiniteParameter) {
  const float largest = std::numeric_limits<float>::max();
  const SplitMaster halves = split_master(largest);
  EXPECT_TRUE(std::isinf(bf16_to_fp32(halves.parameter)));
  EXPECT_EQ(join_master(halves.parameter, halves.rest), largest);
}

}  // namespace
}  // namespace shardplan
