// The three rules against their projects' own, written out again, over sequences that reach every branch.
#include "shard/loss_scaler.h"

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>
#include <string>
#include <vector>

#include "tests/support/config_error.h"

namespace shardplan {
namespace {

using test_support::expect_config_error;

// torch/csrc or ATen: _amp_update_scale_ (aten/src/ATen/native/cuda/AmpKernels.cu). The scale is a float.
struct TorchScale {
  float scale;
  int growth_tracker = 0;
  float growth_factor = 2;
  float backoff_factor = 0.5;
  int growth_interval = 2000;
  void update(bool found_inf) {
    if (found_inf) {
      scale = scale * backoff_factor;
      growth_tracker = 0;
      return;
    }
    const int successful = growth_tracker + 1;
    if (successful == growth_interval) {
      const float new_scale = scale * growth_factor;
      if (std::isfinite(new_scale)) scale = new_scale;
      growth_tracker = 0;
    } else {
      growth_tracker = successful;
    }
  }
};

// deepspeed/runtime/fp16/loss_scaler.py: DynamicLossScaler.update_scale, raise_error_at_min_scale=False,
// consecutive_hysteresis=False.
struct DeepSpeedScale {
  double cur_scale;
  int scale_window = 1000;
  int delayed_shift = 2;
  double min_scale = 1;
  double scale_factor = 2;
  int cur_iter = 0;
  int last_overflow_iter = -1;
  int cur_hysteresis = delayed_shift;
  void update(bool overflow) {
    if (overflow) {
      if (delayed_shift == 1 || cur_hysteresis == 1) {
        cur_scale = std::max(cur_scale / scale_factor, min_scale);
      } else {
        cur_hysteresis -= 1;
      }
      last_overflow_iter = cur_iter;
    } else if ((cur_iter - last_overflow_iter) % scale_window == 0) {
      cur_hysteresis = delayed_shift;
      cur_scale *= scale_factor;
    }
    cur_iter += 1;
  }
};

// megatron/core/optimizer/grad_scaler.py: DynamicGradScaler.update.
struct MegatronScale {
  float scale;
  float min_scale = 1;
  float growth_factor = 2;
  float backoff_factor = 0.5;
  int growth_interval = 1000;
  int hysteresis = 2;
  int growth_tracker = 0;
  int hysteresis_tracker = hysteresis;
  void update(bool found_inf) {
    if (found_inf) {
      growth_tracker = 0;
      hysteresis_tracker -= 1;
      if (hysteresis_tracker <= 0) scale = std::max(scale * backoff_factor, min_scale);
    } else {
      growth_tracker += 1;
      if (growth_tracker == growth_interval) {
        growth_tracker = 0;
        hysteresis_tracker = hysteresis;
        scale = scale * growth_factor;
      }
    }
  }
};

// '.' is a clean step, 'x' a skipped one. Every word of `length` letters is tried.
void for_each_sequence(std::size_t length, const std::function<void(const std::string&)>& visit) {
  for (std::size_t word = 0; word < std::size_t{1} << length; ++word) {
    std::string sequence;
    for (std::size_t i = 0; i < length; ++i) sequence += (word >> i & 1U) != 0 ? 'x' : '.';
    visit(sequence);
  }
}

template <typename Reference, typename Scale>
void expect_same(LossScaler scaler, Reference reference, Scale scale_of, const std::string& sequence) {
  for (std::size_t i = 0; i < sequence.size(); ++i) {
    const bool skipped = sequence[i] == 'x';
    scaler.update(!skipped);
    reference.update(skipped);
    ASSERT_EQ(scaler.scale(), static_cast<double>(scale_of(reference))) << sequence << " after " << i + 1;
  }
}

LossScaling small(LossScaleRule rule, double initial, std::uint64_t window) {
  LossScaling scaling = default_scaling(rule);
  scaling.initial = initial;
  scaling.window = window;
  return scaling;
}

TEST(LossScalerTest, TorchsRule) {
  for_each_sequence(12, [](const std::string& sequence) {
    const LossScaler scaler(small(LossScaleRule::torch, 16, 3));
    expect_same(scaler, TorchScale{.scale = 16, .growth_interval = 3}, [](const auto& r) { return r.scale; }, sequence);
  });
}

TEST(LossScalerTest, TorchsScaleStaysAFiniteFloat) {
  const LossScaler scaler(small(LossScaleRule::torch, 0x1p126, 1));
  expect_same(
      scaler, TorchScale{.scale = 0x1p126F, .growth_interval = 1}, [](const auto& r) { return r.scale; },
      "....x..x...");
}

TEST(LossScalerTest, DeepSpeedsRule) {
  for (const int hysteresis : {1, 2, 3}) {
    LossScaling scaling = small(LossScaleRule::deepspeed, 4, 3);
    scaling.hysteresis = static_cast<std::uint64_t>(hysteresis);
    for_each_sequence(12, [&](const std::string& sequence) {
      expect_same(
          LossScaler(scaling), DeepSpeedScale{.cur_scale = 4, .scale_window = 3, .delayed_shift = hysteresis},
          [](const auto& r) { return r.cur_scale; }, sequence);
    });
  }
}

TEST(LossScalerTest, MegatronsRule) {
  for (const int hysteresis : {1, 2, 3}) {
    LossScaling scaling = small(LossScaleRule::megatron, 4, 3);
    scaling.hysteresis = static_cast<std::uint64_t>(hysteresis);
    for_each_sequence(12, [&](const std::string& sequence) {
      expect_same(
          LossScaler(scaling), MegatronScale{.scale = 4, .growth_interval = 3, .hysteresis = hysteresis},
          [](const auto& r) { return r.scale; }, sequence);
    });
  }
}

// By hand: window 2, hysteresis 2.
TEST(LossScalerTest, SequencesWorkedOutByHand) {
  const auto scales = [](LossScaleRule rule, const std::string& sequence) {
    LossScaling scaling = small(rule, 8, 2);
    LossScaler scaler(scaling);
    std::vector<double> result;
    for (const char step : sequence) {
      scaler.update(step == '.');
      result.push_back(scaler.scale());
    }
    return result;
  };
  using Scales = std::vector<double>;
  EXPECT_EQ(scales(LossScaleRule::constant, "x..x"), (Scales{8, 8, 8, 8}));
  EXPECT_EQ(scales(LossScaleRule::torch, "x..xx...."), (Scales{4, 4, 8, 4, 2, 2, 4, 4, 8}));
  EXPECT_EQ(scales(LossScaleRule::deepspeed, "xxx..x.x"), (Scales{8, 4, 2, 2, 4, 4, 4, 2}));
  EXPECT_EQ(scales(LossScaleRule::megatron, "x.x..xxxxx"), (Scales{8, 8, 4, 4, 8, 8, 4, 2, 1, 1}));
}

TEST(LossScalerTest, DefaultsAreTheProjects) {
  EXPECT_EQ(LossScaler(default_scaling(LossScaleRule::torch)).scale(), 65536);
  EXPECT_EQ(LossScaler(default_scaling(LossScaleRule::deepspeed)).scale(), 65536);
  EXPECT_EQ(LossScaler(default_scaling(LossScaleRule::megatron)).scale(), 4294967296);
  LossScaler torch(default_scaling(LossScaleRule::torch));
  for (int i = 0; i < 1999; ++i) torch.update(true);
  EXPECT_EQ(torch.scale(), 65536);
  torch.update(true);
  EXPECT_EQ(torch.scale(), 131072);
}

TEST(LossScalerTest, GoesOnAfterARestore) {
  for_each_sequence(8, [](const std::string& sequence) {
    LossScaler whole(small(LossScaleRule::deepspeed, 64, 3));
    LossScaler resumed(small(LossScaleRule::deepspeed, 64, 3));
    for (std::size_t i = 0; i < sequence.size(); ++i) {
      whole.update(sequence[i] == '.');
      LossScaler next(small(LossScaleRule::deepspeed, 64, 3));
      next.restore(resumed.scale(), resumed.clean_steps(), resumed.hysteresis_left());
      next.update(sequence[i] == '.');
      resumed = next;
      ASSERT_EQ(resumed.scale(), whole.scale()) << sequence << " after " << i + 1;
    }
  });
}

TEST(LossScalerTest, RefusesWhatMakesNoSense) {
  LossScaling scaling = default_scaling(LossScaleRule::torch);
  for (const double initial : {0.0, -1.0, std::numeric_limits<double>::infinity(), std::nan("")}) {
    scaling.initial = initial;
    expect_config_error([&] { LossScaler{scaling}; }, "loss scale", "initial", "positive");
    expect_config_error([&] { LossScaler().restore(initial, 0, 1); }, "loss scale", "", "positive");
  }
  scaling = default_scaling(LossScaleRule::torch);
  scaling.window = 0;
  expect_config_error([&] { LossScaler{scaling}; }, "loss scale", "", "window");
  scaling = default_scaling(LossScaleRule::torch);
  scaling.backoff = 1;
  expect_config_error([&] { LossScaler{scaling}; }, "loss scale", "", "backoff");
}

}  // namespace
}  // namespace shardplan
