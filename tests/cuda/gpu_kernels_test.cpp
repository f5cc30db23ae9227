#include <gtest/gtest.h>

#include <cstring>

#include "base/error.h"
#include "runtime/cpu_device.h"
#include "shard/kernels/accumulate.h"
#include "tests/cuda/gpu.h"
#include "tests/cuda/update_case.h"
#include "tests/support/reference_reduction.h"

namespace shardplan::test {
namespace {

using CudaKernelsTest = GpuTest;

TEST_F(CudaKernelsTest, UpdateEqualsTheCpuBitForBit) {
  for (std::uint32_t seed = 0; seed < 400; ++seed) {
    UpdateCase expected(seed);
    UpdateCase actual(seed);
    optimizer_update(expected.options(), expected.arrays());
    const auto got = actual.all();
    OnDeviceArrays copies(*device_, *stream_, got);
    UpdateArrays arrays = actual.arrays();
    arrays = {.parameter = copies.at(arrays.parameter),
              .master = copies.at(arrays.master),
              .master_rest = copies.at(arrays.master_rest),
              .gradient = copies.at(arrays.gradient),
              .first_moment = copies.at(arrays.first_moment),
              .second_moment = copies.at(arrays.second_moment),
              .ema = copies.at(arrays.ema)};
    cuda_->kernels().update(*stream_, actual.options(), arrays);
    copies.download(*stream_);
    const auto wanted = expected.all();
    for (std::size_t i = 0; i < wanted.size(); ++i) {
      ASSERT_EQ(difference(*got[i], *wanted[i]), "") << "seed " << seed << ", " << actual.text() << ", array " << i;
    }
  }
}

TEST_F(CudaKernelsTest, CastAndAccumulateEqualTheCpuBitForBit) {
  std::mt19937 random(3);
  for (int trial = 0; trial < 200; ++trial) {
    const DType to = kKernelDTypes[random() % 3];
    const DType from = kKernelDTypes[random() % 3];
    const std::size_t elements = trial % 10 == 0 ? 5'000'003 : random() % 3000;
    RandomArray source(from, random() % 5, elements, random);
    const std::size_t start = random() % 5;
    std::mt19937 again = random;
    RandomArray actual(to, start, elements, again);
    RandomArray expected(to, start, elements, random);
    const MemoryTier tier = trial % 3 == 0 ? MemoryTier::pinned_host : MemoryTier::device;
    OnDeviceArrays copies(*device_, *stream_, {&source, &actual}, tier);
    const Elements target = copies.at(actual.elements());
    const ConstElements part = copies.at(ConstElements(source.elements()));
    if (trial % 2 == 0) {
      cast(expected.elements(), source.elements());
      cuda_->kernels().cast(*stream_, target, part);
    } else {
      accumulate_elements(expected.elements(), source.elements());
      cuda_->kernels().accumulate(*stream_, target, part);
    }
    copies.download(*stream_);
    ASSERT_EQ(difference(actual, expected, trial % 2 != 0), "") << name(from) << " to " << name(to) << " " << elements;
  }
}

TEST_F(CudaKernelsTest, SumOfSquaresHasTheBitsOfTheCpu) {
  for (const std::size_t elements : {0U, 1U, 31U, 32U, 33U, 1023U, 1024U, 1025U, 100'003U, 3'000'001U}) {
    for (const DType dtype : kKernelDTypes) {
      std::mt19937 random(9);
      RandomArray values(dtype, elements % 5, elements, random);
      for (std::size_t i = 0; i < elements; ++i) {
        store(dtype, contribution(3, i), values.elements().data + i * bits(dtype) / 8);
      }
      const OnDeviceArrays copies(*device_, *stream_, {&values});
      EXPECT_EQ(cuda_->kernels().sum_of_squares(*stream_, copies.at(ConstElements(values.elements()))),
                sum_of_squares(values.elements()).sum)
          << name(dtype) << " " << elements;
    }
  }
}

TEST_F(CudaKernelsTest, RefusesWhatTheCpuRefuses) {
  UpdateCase update(0);
  UpdateOptions options = update.options();
  options.step = 0;
  EXPECT_THROW(cuda_->kernels().update(*stream_, options, update.arrays()), CheckFailure);
  EXPECT_THROW(cuda_->kernels().cast(*CpuDevice().make_stream(), {}, {}), CheckFailure);
}

}  // namespace
}  // namespace shardplan::test
