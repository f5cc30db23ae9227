#include "runtime/collective_kernels.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "runtime/streaming_copy.h"
#include "tests/support/reference_reduction.h"

namespace shardplan {
namespace {

struct Types {
  KernelDType kernel;
  DType dtype;
};
constexpr Types kTypes[] = {
    {KernelDType::f32, DType::f32}, {KernelDType::bf16, DType::bf16}, {KernelDType::f16, DType::f16}};

std::size_t width(DType dtype) {
  return bits(dtype) / 8;
}

// Ranks' contributions in the wire dtype, starting at an odd place so that no vector is aligned.
struct Inputs {
  std::vector<std::vector<std::byte>> buffers;
  std::vector<const std::byte*> pointers;

  Inputs(DType wire, std::size_t ranks, std::size_t elements, std::size_t start) {
    for (std::size_t rank = 0; rank < ranks; ++rank) {
      std::vector<std::byte>& buffer = buffers.emplace_back((start + elements) * width(wire));
      for (std::size_t i = 0; i < elements; ++i) {
        test::store(wire, test::contribution(static_cast<int>(rank), i), buffer.data() + (start + i) * width(wire));
      }
      pointers.push_back(buffer.data() + start * width(wire));
    }
  }
};

std::vector<std::byte> expected_output(const Inputs& inputs, const ReduceRange& range, DType wire, DType output,
                                       const std::vector<std::byte>& before) {
  std::vector<std::byte> bytes = before;
  for (std::size_t i = 0; i < range.elements; ++i) {
    std::vector<float> values;
    for (const std::byte* pointer : inputs.pointers) values.push_back(test::load(wire, pointer + i * width(wire)));
    float value = test::reduce_in_tree_order(values, static_cast<int>(range.group_size), range.scale);
    std::byte* at = bytes.data() + i * width(output);
    if (range.add) value = test::load(output, at) + value;
    test::store(output, value, at);
  }
  return bytes;
}

TEST(CollectiveKernels, EveryLevelEqualsTheReferenceBitForBit) {
  std::mt19937 random(1);
  for (const Types& wire : kTypes) {
    for (const Types& output : kTypes) {
      for (const std::size_t ranks : {1U, 2U, 3U, 4U, 5U, 7U, 8U, 9U}) {
        for (const std::size_t elements : {0U, 1U, 5U, 63U, 2047U, 2048U, 2049U, 5003U}) {
          const Inputs inputs(wire.dtype, ranks, elements, random() % 16);
          std::vector<std::byte> before(elements * width(output.dtype));
          for (std::size_t i = 0; i < elements; ++i) {
            test::store(output.dtype, test::contribution(99, i), before.data() + i * width(output.dtype));
          }
          ReduceRange range{.wire = wire.kernel,
                            .output_dtype = output.kernel,
                            .add = random() % 2 == 0,
                            .streams = random() % 2 == 0,
                            .ranks = ranks,
                            .group_size = 1 + random() % ranks,
                            .scale = random() % 2 == 0 ? 1.0F : 1.0F / 3.0F,
                            .inputs = inputs.pointers.data(),
                            .elements = elements};
          const auto expected = expected_output(inputs, range, wire.dtype, output.dtype, before);
          for (const CollectiveKernels& kernels : collective_kernels()) {
            std::vector<std::byte> result = before;
            range.output = result.data();
            kernels.reduce(range);
            ASSERT_EQ(result, expected) << kernels.level << ' ' << name(wire.dtype) << " to " << name(output.dtype)
                                        << ", ranks " << ranks << ", group " << range.group_size << ", " << elements;
          }
        }
      }
    }
  }
}

TEST(CollectiveKernels, InPlaceGivesTheSameBits) {
  for (const Types& wire : kTypes) {
    for (const std::size_t ranks : {1U, 4U, 7U}) {
      for (const CollectiveKernels& kernels : collective_kernels()) {
        Inputs inputs(wire.dtype, ranks, 3001, 3);
        ReduceRange range{.wire = wire.kernel,
                          .output_dtype = wire.kernel,
                          .streams = ranks != 4,
                          .ranks = ranks,
                          .group_size = 2,
                          .scale = 0.25F,
                          .inputs = inputs.pointers.data(),
                          .elements = 3001};
        const std::vector<std::byte> empty(3001 * width(wire.dtype));
        const auto expected = expected_output(inputs, range, wire.dtype, wire.dtype, empty);
        range.output = inputs.buffers[ranks / 2].data() + 3 * width(wire.dtype);
        kernels.reduce(range);
        EXPECT_EQ(std::memcmp(range.output, expected.data(), expected.size()), 0) << kernels.level;
      }
    }
  }
}

TEST(StreamingCopy, IsMemcpyAtEveryPlace) {
  std::vector<std::byte> from(600);
  for (std::size_t i = 0; i < from.size(); ++i) from[i] = static_cast<std::byte>(i * 7 + i / 256);
  for (std::size_t place = 0; place < 65; ++place) {
    for (const std::size_t bytes : {0U, 1U, 63U, 64U, 65U, 127U, 128U, 300U, 500U}) {
      std::vector<std::byte> to(600);
      std::vector<std::byte> expected(600);
      std::memcpy(expected.data() + place, from.data() + 3, bytes);
      streaming_copy(to.data() + place, from.data() + 3, bytes);
      streaming_fence();
      ASSERT_EQ(to, expected) << place << ", " << bytes;
    }
  }
}

TEST(CollectiveKernels, KeepInfinitiesNansAndDenormals) {
  const float infinity = std::numeric_limits<float>::infinity();
  const std::vector<float> first{infinity,  -infinity, std::numeric_limits<float>::quiet_NaN(),
                                 0x1p-149F, 0x1p-126F, -0.0F};
  const std::vector<float> second{infinity, infinity, 1.0F, 0x1p-149F, -0x1p-127F, -0.0F};
  const std::byte* inputs[] = {reinterpret_cast<const std::byte*>(first.data()),
                               reinterpret_cast<const std::byte*>(second.data())};
  for (const CollectiveKernels& kernels : collective_kernels()) {
    std::vector<float> sum(first.size());
    kernels.reduce({.ranks = 2,
                    .group_size = 2,
                    .inputs = inputs,
                    .output = reinterpret_cast<std::byte*>(sum.data()),
                    .elements = sum.size()});
    EXPECT_EQ(sum[0], infinity) << kernels.level;
    EXPECT_TRUE(std::isnan(sum[1]) && std::isnan(sum[2])) << kernels.level;
    EXPECT_EQ(sum[3], 0x1p-148F) << kernels.level;
    EXPECT_EQ(sum[4], 0x1p-127F) << kernels.level;
    EXPECT_TRUE(sum[5] == 0.0F && std::signbit(sum[5])) << kernels.level;
  }
}

}  // namespace
}  // namespace shardplan
