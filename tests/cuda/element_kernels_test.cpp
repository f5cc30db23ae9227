// The arithmetic of the GPU's kernels, run on the host, thread by thread: the bits of the CPU's loops. What this cannot
// see is the launch itself and the GPU's own operations, which gpu_test looks at where there is one.
#include "shard/kernels/cuda/element_kernels.h"

#include <gtest/gtest.h>

#include <array>

#include "runtime/collective_kernels.h"
#include "runtime/cuda/tree_sum.h"
#include "shard/kernels/accumulate.h"
#include "tests/cuda/update_case.h"
#include "tests/support/reference_reduction.h"

namespace shardplan::test {
namespace {

// All threads of a launch, one after the other.
template <typename Body>
void run_on_host(const cuda::Cut& cut, const Body& body) {
  constexpr std::uint64_t kThreads = 7;
  for (std::uint64_t thread = 0; thread < kThreads; ++thread) cuda::take_part(cut, thread, kThreads, body);
}

struct CountElements {
  std::vector<int>* seen;
  template <int n>
  constexpr void at(std::uint64_t first) const {
    for (std::uint64_t i = 0; i < std::uint64_t{n}; ++i) ++(*seen)[first + i];
  }
};

TEST(Cut, CoversEveryElementOnce) {
  alignas(64) std::array<std::byte, 64> memory{};
  for (std::uint64_t elements = 0; elements < 40; ++elements) {
    for (std::size_t a = 0; a < 5; ++a) {
      for (std::size_t b = 0; b < 5; ++b) {
        const cuda::Cut cut =
            cuda::cut_of(elements, {{DType::f32, memory.data() + 4 * a}, {DType::f16, memory.data() + 2 * b}});
        std::vector<int> seen(elements, 0);
        run_on_host(cut, CountElements{&seen});
        EXPECT_EQ(seen, std::vector<int>(elements, 1)) << elements << " elements at " << a << " and " << b;
        const bool has_vectors = a % 4 == b % 4 && elements >= cut.head;
        EXPECT_EQ(cut.vectors, has_vectors ? (elements - cut.head) / cuda::kVector : 0);
      }
    }
  }
}

template <typename Optimizer>
void update_on_host(const UpdateCall& call) {
  const UpdatePointers& a = call.arrays;
  const cuda::Cut cut = cuda::cut_of(a.elements, {{a.parameter_dtype, a.parameter},
                                                  {DType::f32, reinterpret_cast<const std::byte*>(a.master)},
                                                  {DType::bf16, reinterpret_cast<const std::byte*>(a.master_rest)},
                                                  {a.gradient_dtype, a.gradient},
                                                  {a.first_moment_dtype, a.first_moment},
                                                  {a.second_moment_dtype, a.second_moment},
                                                  {DType::f32, reinterpret_cast<const std::byte*>(a.ema)}});
  run_on_host(cut, cuda::UpdateElements<Optimizer>{call.scalars, a});
}

void update_on_host(const UpdateCall& call) {
  switch (call.scalars.kind) {
    case OptimizerKind::adamw:
      return update_on_host<formulas::AdamW>(call);
    case OptimizerKind::adam:
      return update_on_host<formulas::Adam>(call);
    case OptimizerKind::sgd:
      return update_on_host<formulas::Sgd>(call);
    case OptimizerKind::sgd_momentum:
      return update_on_host<formulas::SgdMomentum>(call);
    case OptimizerKind::lion:
      return update_on_host<formulas::Lion>(call);
    default:
      FAIL() << "an optimizer without a kernel";
  }
}

TEST(ElementKernels, UpdateEqualsTheCpuBitForBit) {
  for (std::uint32_t seed = 0; seed < 400; ++seed) {
    UpdateCase expected(seed);
    UpdateCase actual(seed);
    optimizer_update(expected.options(), expected.arrays());
    update_on_host(checked_update(actual.options(), actual.arrays()));
    const auto wanted = expected.all();
    const auto got = actual.all();
    for (std::size_t i = 0; i < wanted.size(); ++i) {
      ASSERT_EQ(difference(*got[i], *wanted[i]), "") << "seed " << seed << ", " << actual.text() << ", array " << i;
    }
  }
}

TEST(ElementKernels, CastAndAccumulateEqualTheCpuBitForBit) {
  std::mt19937 random(3);
  for (int trial = 0; trial < 300; ++trial) {
    const DType to = kKernelDTypes[random() % 3];
    const DType from = kKernelDTypes[random() % 3];
    const std::size_t elements = random() % 70;
    RandomArray source(from, random() % 5, elements, random);
    const std::size_t start = random() % 5;
    std::mt19937 again = random;
    RandomArray actual(to, start, elements, again);
    RandomArray expected(to, start, elements, random);
    const Elements a = actual.elements();
    const Elements s = source.elements();
    const cuda::Cut cut = cuda::cut_of(elements, {{to, a.data}, {from, s.data}});
    if (trial % 2 == 0) {
      cast(expected.elements(), s);
      run_on_host(cut, cuda::CastElements{to, a.data, from, s.data});
    } else {
      accumulate_elements(expected.elements(), s);
      run_on_host(cut, cuda::AccumulateElements{to, a.data, from, s.data});
    }
    // A cast keeps the payload of a NaN.
    ASSERT_EQ(difference(actual, expected, trial % 2 != 0), "") << name(from) << " to " << name(to) << " " << elements;
  }
}

TEST(ElementKernels, SumOfSquaresAddsInThePromisedOrder) {
  std::mt19937 random(5);
  for (const std::size_t elements : {0U, 1U, 31U, 32U, 33U, 1023U, 1024U, 1025U, 5000U, 100'003U}) {
    for (const DType dtype : kKernelDTypes) {
      // Finite ones: a NaN would hide the order.
      std::vector<std::byte> values((elements + 1) * bits(dtype) / 8);
      for (std::size_t i = 0; i <= elements; ++i) {
        store(dtype, contribution(static_cast<int>(random() % 5), i), values.data() + i * bits(dtype) / 8);
      }
      const std::byte* first = values.data() + bits(dtype) / 8;
      std::array<double, cuda::kSumLanes> lanes{};
      for (std::uint64_t lane = 0; lane < lanes.size(); ++lane) {
        lanes[lane] = cuda::lane_of_squares(dtype, first, elements, lane);
      }
      for (std::size_t half = lanes.size() / 2; half > 0; half /= 2) {
        for (std::size_t k = 0; k < half; ++k) lanes[k] += lanes[k + half];
      }
      EXPECT_EQ(lanes[0], sum_of_squares({dtype, first, elements}).sum) << name(dtype) << " " << elements;
    }
  }
}

constexpr KernelDType kernel_dtype(DType dtype) {
  if (dtype == DType::f32) return KernelDType::f32;
  return dtype == DType::bf16 ? KernelDType::bf16 : KernelDType::f16;
}

TEST(ElementKernels, TreeSumEqualsTheCpuBitForBit) {
  std::mt19937 random(7);
  for (int trial = 0; trial < 400; ++trial) {
    const DType wire = kKernelDTypes[random() % 3];
    const DType output = kKernelDTypes[random() % 3];
    const int ranks = 1 + static_cast<int>(random() % 9);
    const int own_rank = static_cast<int>(random()) & 0xff;
    const std::size_t elements = random() % 70;
    const std::size_t stride = (elements + random() % 3) * bits(wire) / 8;
    std::vector<std::byte> staged(static_cast<std::size_t>(ranks) * stride + 64);
    std::vector<std::vector<std::byte>> inputs;
    std::vector<const std::byte*> pointers;
    cuda::StagedSum sum{.wire = wire,
                        .staged = staged.data(),
                        .stride = stride,
                        .own_rank = own_rank % ranks,
                        .ranks = ranks,
                        .group_size = 1 + static_cast<int>(random() % 9),
                        .scale = random() % 2 == 0 ? 1.0F : 1.0F / 3.0F,
                        .add = random() % 2 == 0,
                        .output_dtype = output};
    for (int rank = 0; rank < ranks; ++rank) {
      std::vector<std::byte>& input = inputs.emplace_back(elements * bits(wire) / 8);
      for (std::size_t i = 0; i < elements; ++i) store(wire, contribution(rank, i), input.data() + i * bits(wire) / 8);
      pointers.push_back(input.data());
      if (rank == sum.own_rank) continue;
      const int place = rank < sum.own_rank ? rank : rank - 1;
      std::copy(input.begin(), input.end(), staged.begin() + place * static_cast<std::ptrdiff_t>(stride));
    }
    const std::size_t start = random() % 5;
    std::mt19937 again = random;
    RandomArray actual(output, start, elements, again);
    RandomArray expected(output, start, elements, random);
    sum.own = pointers[static_cast<std::size_t>(sum.own_rank)];
    sum.output = actual.elements().data;
    collective_kernels().back().reduce({.wire = kernel_dtype(wire),
                                        .output_dtype = kernel_dtype(output),
                                        .add = sum.add,
                                        .ranks = static_cast<std::size_t>(ranks),
                                        .group_size = static_cast<std::size_t>(sum.group_size),
                                        .scale = sum.scale,
                                        .inputs = pointers.data(),
                                        .output = expected.elements().data,
                                        .elements = elements});
    const std::byte* second = ranks > 2 ? sum.staged + stride : nullptr;
    run_on_host(
        cuda::cut_of(elements,
                     {{wire, sum.own}, {wire, ranks > 1 ? sum.staged : nullptr}, {wire, second}, {output, sum.output}}),
        sum);
    ASSERT_EQ(difference(actual, expected), "") << ranks << " ranks in groups of " << sum.group_size;
  }
}

}  // namespace
}  // namespace shardplan::test
