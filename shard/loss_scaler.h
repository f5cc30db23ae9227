// The loss scale: what the client multiplies its loss by, so that small fp16 gradients do not vanish.
//
// A step's gradients are unscaled with the scale that its loss was multiplied by; the scale changes afterwards, by one
// of the field's three rules. A value, without a clock; the same on every rank, since all ranks agree on whether a step
// was finite.
#pragma once

#include <cstdint>
#include <string_view>

namespace shardplan {

enum class LossScaleRule : std::uint8_t {
  constant,   // never changes
  torch,      // torch.amp.GradScaler: halve after a skipped step, double after `window` clean ones
  deepspeed,  // DeepSpeed's DynamicLossScaler: halve only once `hysteresis` is used up; a clean window restores it
  megatron,   // Megatron-LM's DynamicGradScaler: the same, from 2^32 on
};

struct LossScaling {
  LossScaleRule rule = LossScaleRule::constant;
  double initial = 1;
  double growth = 2;     // factor after `window` clean steps
  double backoff = 0.5;  // factor after a skipped step
  std::uint64_t window = 2000;
  std::uint64_t hysteresis = 1;  // skipped steps until the scale shrinks
  double minimum = 1;            // the scale stays there (DeepSpeed stops the training then)
};

// The rules as their projects set them: torch 2^16, 2000; DeepSpeed 2^16, 1000, hysteresis 2; Megatron 2^32, 1000,
// hysteresis 2. constant: 1.
LossScaling default_scaling(LossScaleRule rule);

class LossScaler {
 public:
  explicit LossScaler(const LossScaling& scaling = {});

  double scale() const { return scale_; }
  // What the step that just ended was: applied, or skipped because a gradient was not finite.
  void update(bool finite);

  std::uint64_t clean_steps() const { return clean_steps_; }
  std::uint64_t hysteresis_left() const { return hysteresis_left_; }
  // For a resume. Throws ConfigError for a scale that is not positive and finite.
  void restore(double scale, std::uint64_t clean_steps, std::uint64_t hysteresis_left);

 private:
  LossScaling scaling_;
  double scale_;
  std::uint64_t clean_steps_ = 0;
  std::uint64_t hysteresis_left_;
};

}  // namespace shardplan
