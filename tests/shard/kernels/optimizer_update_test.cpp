#include "shard/kernels/optimizer_update.h"

#include <gtest/gtest.h>
#include <rapidcheck.h>

#include <cmath>
#include <cstring>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "base/error.h"
#include "shard/kernels/split_master.h"
#include "tests/shard/kernels/reference_update.h"
#include "tests/support/property.h"

namespace shardplan {
namespace {

constexpr OptimizerKind kKinds[] = {OptimizerKind::adamw, OptimizerKind::adam, OptimizerKind::sgd,
                                    OptimizerKind::sgd_momentum, OptimizerKind::lion};
constexpr DType kDTypes[] = {DType::f32, DType::bf16, DType::f16};
enum class Master { none, whole, split };

// What a test run keeps and computes with.
struct Shape {
  OptimizerKind kind = OptimizerKind::adamw;
  DType parameter = DType::f32;
  DType gradient = DType::f32;
  DType first_moment = DType::f32;
  DType second_moment = DType::f32;
  Master master = Master::none;
  bool ema = false;
};

UpdateOptions options_of(OptimizerKind kind) {
  return {.kind = kind,
          .lr = 3e-3,
          .beta1 = 0.9,
          .beta2 = 0.95,
          .eps = 1e-6,
          .weight_decay = 0.1,
          .step = 3,
          .gradient_factor = 0.37F,
          .ema_decay = 0.99};
}

// `elements` elements, `start` elements into a buffer, with bytes on both sides that must not change.
class Array {
 public:
  Array(DType dtype, std::size_t elements, std::size_t start)
      : dtype_(dtype),
        elements_(elements),
        start_(start * width()),
        bytes_((start + elements + 16) * width(), kGuard) {}

  float get(std::size_t i) const { return test::load(dtype_, at(i)); }
  void set(std::size_t i, float value) { test::store(dtype_, value, at(i)); }
  std::uint16_t raw(std::size_t i) const {
    std::uint16_t value = 0;
    std::memcpy(&value, at(i), sizeof value);
    return value;
  }
  void set_raw(std::size_t i, std::uint16_t value) { std::memcpy(at(i), &value, sizeof value); }
  Elements view() { return elements_ == 0 ? Elements(dtype_, nullptr, 0) : Elements(dtype_, at(0), elements_); }
  template <typename T>
  std::span<T> span() {
    return {reinterpret_cast<T*>(bytes_.data() + start_), elements_};
  }
  bool operator==(const Array& other) const { return bytes_ == other.bytes_; }
  bool guards_intact() const {
    for (std::size_t i = 0; i < bytes_.size(); ++i) {
      if ((i < start_ || i >= start_ + elements_ * width()) && bytes_[i] != kGuard) return false;
    }
    return true;
  }

 private:
  static constexpr std::byte kGuard{0x5a};
  std::size_t width() const { return bits(dtype_) / 8; }
  const std::byte* at(std::size_t i) const { return bytes_.data() + start_ + i * width(); }
  std::byte* at(std::size_t i) { return bytes_.data() + start_ + i * width(); }

  DType dtype_;
  std::size_t elements_;
  std::size_t start_;
  std::vector<std::byte> bytes_;
};

struct Arrays {
  Shape shape;
  Array parameter, master, rest, gradient, first, second, ema;

  Arrays(const Shape& s, std::size_t elements, std::mt19937& random)
      : shape(s),
        parameter(s.parameter, elements, random() % 40),
        master(DType::f32, s.master == Master::whole ? elements : 0, random() % 40),
        rest(DType::bf16, s.master == Master::split ? elements : 0, random() % 40),
        gradient(s.gradient, elements, random() % 40),
        first(s.first_moment, states_of(s.kind).first_moment ? elements : 0, random() % 40),
        second(s.second_moment, states_of(s.kind).second_moment ? elements : 0, random() % 40),
        ema(DType::f32, s.ema ? elements : 0, random() % 40) {
    std::normal_distribution<float> normal;
    for (std::size_t i = 0; i < elements; ++i) {
      set_master(i, normal(random));
      gradient.set(i, normal(random) * std::ldexp(1.0F, static_cast<int>(random() % 24) - 20));
      if (states_of(s.kind).first_moment) first.set(i, 0.1F * normal(random));
      if (states_of(s.kind).second_moment) second.set(i, std::fabs(normal(random)));
      if (s.ema) ema.set(i, normal(random));
    }
  }

  float exact_parameter(std::size_t i) const {
    if (shape.master == Master::whole) return master.get(i);
    if (shape.master == Master::split) return join_master(parameter.raw(i), rest.raw(i));
    return parameter.get(i);
  }
  void set_master(std::size_t i, float value) {
    if (shape.master == Master::split) {
      const SplitMaster halves = split_master(value);
      parameter.set_raw(i, halves.parameter);
      rest.set_raw(i, halves.rest);
      return;
    }
    parameter.set(i, value);
    if (shape.master == Master::whole) master.set(i, value);
  }
  UpdateArrays views() {
    return {.parameter = parameter.view(),
            .master = master.span<float>(),
            .master_rest = rest.span<std::uint16_t>(),
            .gradient = gradient.view(),
            .first_moment = first.view(),
            .second_moment = second.view(),
            .ema = ema.span<float>()};
  }
  bool operator==(const Arrays& other) const {
    return parameter == other.parameter && master == other.master && rest == other.rest && gradient == other.gradient &&
           first == other.first && second == other.second && ema == other.ema;
  }
  bool guards_intact() const {
    return parameter.guards_intact() && master.guards_intact() && rest.guards_intact() && gradient.guards_intact() &&
           first.guards_intact() && second.guards_intact() && ema.guards_intact();
  }
};

// The same step, one element after the other.
void reference_step(const UpdateOptions& options, Arrays& a, std::size_t elements) {
  const OptimizerStates& states = states_of(options.kind);
  for (std::size_t i = 0; i < elements; ++i) {
    const test::ElementState<float> before{.p = a.exact_parameter(i),
                                           .m = states.first_moment ? a.first.get(i) : 0,
                                           .v = states.second_moment ? a.second.get(i) : 0};
    const auto after = test::reference_update(options, before, a.gradient.get(i));
    a.set_master(i, after.p);
    if (states.first_moment) a.first.set(i, after.m);
    if (states.second_moment) a.second.set(i, after.v);
    if (a.shape.ema)
      a.ema.set(i, test::reference_lerp(a.ema.get(i), after.p, static_cast<float>(1 - options.ema_decay)));
  }
}

void expect_reference_bits(const Shape& shape, const UpdateOptions& options, std::size_t elements,
                           std::mt19937& random) {
  const Arrays before(shape, elements, random);
  Arrays expected = before;
  reference_step(options, expected, elements);
  for (const OptimizerKernels& kernels : optimizer_kernels()) {
    Arrays result = before;
    optimizer_update(options, result.views(), kernels);
    ASSERT_TRUE(result == expected) << kernels.level << " " << states_of(shape.kind).name << " parameter "
                                    << name(shape.parameter) << " gradient " << name(shape.gradient) << " moments "
                                    << name(shape.first_moment) << " " << name(shape.second_moment) << " master "
                                    << static_cast<int>(shape.master) << " elements " << elements;
    ASSERT_TRUE(result.guards_intact());
  }
}

TEST(OptimizerUpdate, EveryLevelGivesTheReferenceBitsInEveryPolicy) {
  std::mt19937 random(7);
  for (const OptimizerKind kind : kKinds) {
    for (const DType parameter : kDTypes) {
      for (const DType gradient : kDTypes) {
        for (const DType moment : kDTypes) {
          for (const Master master : {Master::none, Master::whole, Master::split}) {
            if (master == Master::split && parameter != DType::bf16) continue;
            const Shape shape{.kind = kind,
                              .parameter = parameter,
                              .gradient = gradient,
                              .first_moment = moment,
                              .second_moment = kDTypes[random() % 3],
                              .master = master,
                              .ema = random() % 2 == 0};
            expect_reference_bits(shape, options_of(kind), random() % 1500, random);
          }
        }
      }
    }
  }
}

TEST(OptimizerUpdate, EveryLevelGivesTheReferenceBitsAtEveryLength) {
  std::mt19937 random(8);
  for (const OptimizerKind kind : kKinds) {
    for (const std::size_t elements : {0U, 1U, 5U, 511U, 512U, 513U, 1023U, 1024U, 100003U}) {
      expect_reference_bits({.kind = kind}, options_of(kind), elements, random);
      expect_reference_bits({.kind = kind, .parameter = DType::bf16, .gradient = DType::bf16, .master = Master::whole},
                            options_of(kind), elements, random);
    }
  }
}

TEST(OptimizerUpdate, RandomOptionsLengthsAndOffsets) {
  test_support::check_property(150, [](std::uint32_t seed) {
    std::mt19937 random(seed);
    std::uniform_real_distribution<double> unit(0, 1);
    const OptimizerKind kind = kKinds[random() % 5];
    const UpdateOptions options{.kind = kind,
                                .lr = std::pow(10, -4 * unit(random)),
                                .beta1 = unit(random),
                                .beta2 = unit(random),
                                .momentum = unit(random),
                                .eps = std::pow(10, -12 * unit(random)),
                                .weight_decay = random() % 3 == 0 ? 0 : unit(random),
                                .step = 1 + random() % 100000,
                                .gradient_factor = random() % 3 == 0 ? 1.0F : static_cast<float>(unit(random)),
                                .ema_decay = unit(random)};
    const Shape shape{.kind = kind,
                      .parameter = kDTypes[random() % 3],
                      .gradient = kDTypes[random() % 3],
                      .first_moment = kDTypes[random() % 3],
                      .second_moment = kDTypes[random() % 3],
                      .master = random() % 2 == 0 ? Master::none : Master::whole,
                      .ema = random() % 2 == 0};
    expect_reference_bits(shape, options, random() % 3000, random);
    RC_ASSERT(!::testing::Test::HasFatalFailure());
  });
}

// One step loses at most a few roundings of each stored value.
TEST(OptimizerUpdate, StaysWithinAFewRoundingsOfExactArithmetic) {
  constexpr std::size_t kElements = 20011;
  constexpr double kEpsilon = 0x1p-24;
  std::mt19937 random(9);
  for (const OptimizerKind kind : kKinds) {
    const UpdateOptions options = options_of(kind);
    Arrays arrays({.kind = kind}, kElements, random);
    const Arrays before = arrays;
    optimizer_update(options, arrays.views());
    const OptimizerStates& states = states_of(kind);
    for (std::size_t i = 0; i < kElements; ++i) {
      const test::ElementState<double> start{.p = before.parameter.get(i),
                                             .m = states.first_moment ? before.first.get(i) : 0,
                                             .v = states.second_moment ? before.second.get(i) : 0};
      const double g = before.gradient.get(i);
      const auto exact = test::exact_update(options, start, g);
      // The largest term of each sum bounds what a rounding can be.
      const double change = std::fabs(exact.p - start.p);
      const double term = std::fabs(g) + std::fabs(start.p);
      EXPECT_NEAR(arrays.parameter.get(i), exact.p,
                  kEpsilon * (3 * std::fabs(start.p) + 16 * change + 3 * term * options.lr))
          << states.name << " " << i;
      if (states.first_moment) {
        EXPECT_NEAR(arrays.first.get(i), exact.m, 6 * kEpsilon * (std::fabs(start.m) + term))
            << states.name << " " << i;
      }
      if (states.second_moment) {
        EXPECT_NEAR(arrays.second.get(i), exact.v, 6 * kEpsilon * (start.v + term * term)) << states.name << " " << i;
      }
    }
  }
}

TEST(OptimizerUpdate, SplitMasterFollowsTheWholeOneForManySteps) {
  constexpr std::size_t kElements = 1031;
  std::mt19937 random(10);
  std::mt19937 same = random;
  Arrays whole({.parameter = DType::bf16, .master = Master::whole}, kElements, random);
  Arrays split({.parameter = DType::bf16, .master = Master::split}, kElements, same);
  for (std::uint64_t step = 1; step <= 50; ++step) {
    UpdateOptions options = options_of(OptimizerKind::adamw);
    options.step = step;
    optimizer_update(options, whole.views());
    optimizer_update(options, split.views());
  }
  for (std::size_t i = 0; i < kElements; ++i) ASSERT_EQ(split.exact_parameter(i), whole.exact_parameter(i)) << i;
}

TEST(OptimizerUpdate, InfinitiesAndNaNsReachParameterAndMoments) {
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  std::mt19937 random(11);
  for (const OptimizerKernels& kernels : optimizer_kernels()) {
    for (const OptimizerKind kind : kKinds) {
      for (const DType dtype : kDTypes) {
        for (const float bad : {kInfinity, -kInfinity, std::numeric_limits<float>::quiet_NaN()}) {
          Arrays arrays({.kind = kind, .parameter = dtype, .gradient = dtype, .master = Master::whole}, 67, random);
          const Arrays before = arrays;
          arrays.gradient.set(41, bad);
          optimizer_update(options_of(kind), arrays.views(), kernels);
          const bool sign_only = kind == OptimizerKind::lion && !std::isnan(bad);
          EXPECT_EQ(std::isfinite(arrays.parameter.get(41)), sign_only) << kernels.level << states_of(kind).name << bad;
          EXPECT_EQ(std::isfinite(arrays.master.get(41)), sign_only);
          EXPECT_TRUE(!states_of(kind).first_moment || !std::isfinite(arrays.first.get(41)));
          EXPECT_TRUE(!states_of(kind).second_moment || !std::isfinite(arrays.second.get(41)));
          EXPECT_TRUE(std::isfinite(arrays.parameter.get(40)) && std::isfinite(arrays.parameter.get(42)));
        }
      }
    }
  }
}

TEST(OptimizerUpdate, RefusesWhatDoesNotFitTogether) {
  std::mt19937 random(12);
  const UpdateOptions options = options_of(OptimizerKind::adamw);
  Arrays arrays({.parameter = DType::bf16, .master = Master::whole}, 8, random);
  Arrays other({.parameter = DType::bf16, .master = Master::split, .ema = true}, 7, random);
  const Arrays before = arrays;
  const auto refuse = [&](const UpdateOptions& o, auto change) {
    UpdateArrays views = arrays.views();
    change(views);
    EXPECT_THROW(optimizer_update(o, views), CheckFailure);
  };
  const auto nothing = [](UpdateArrays&) {};
  UpdateOptions step_zero = options;
  step_zero.step = 0;
  refuse(step_zero, nothing);
  UpdateOptions sgd = options;
  sgd.kind = OptimizerKind::sgd;
  refuse(sgd, nothing);  // moments that it does not have
  refuse(options, [&](UpdateArrays& a) { a.gradient = other.gradient.view(); });
  refuse(options, [&](UpdateArrays& a) { a.second_moment = {}; });
  refuse(options, [&](UpdateArrays& a) { a.first_moment = other.first.view(); });
  refuse(options, [&](UpdateArrays& a) { a.master = a.master.first(7); });
  refuse(options, [&](UpdateArrays& a) { a.ema = other.ema.span<float>(); });
  refuse(options, [&](UpdateArrays& a) { a.gradient.dtype = DType::f64; });
  refuse(options, [&](UpdateArrays& a) { a.parameter.dtype = DType::i32; });
  std::vector<std::uint16_t> rest(8);
  refuse(options, [&](UpdateArrays& a) { a.master_rest = rest; });  // two masters
  refuse(options, [&](UpdateArrays& a) {
    a.master = {};
    a.master_rest = rest;
    a.parameter.dtype = DType::f16;
  });
  EXPECT_TRUE(arrays == before);
}

}  // namespace
}  // namespace shardplan
