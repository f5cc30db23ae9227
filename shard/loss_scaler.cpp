#include "shard/loss_scaler.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "base/error.h"

namespace shardplan {

LossScaling default_scaling(LossScaleRule rule) {
  switch (rule) {
    case LossScaleRule::constant:
      return {};
    case LossScaleRule::torch:
      return {.rule = rule, .initial = 65536, .window = 2000, .hysteresis = 1, .minimum = 0};
    case LossScaleRule::deepspeed:
      return {.rule = rule, .initial = 65536, .window = 1000, .hysteresis = 2};
    case LossScaleRule::megatron:
      return {.rule = rule, .initial = 4294967296.0, .window = 1000, .hysteresis = 2};
  }
  SHARDPLAN_CHECK(false, "an unknown loss scale rule");
  return {};
}

LossScaler::LossScaler(const LossScaling& scaling)
    : scaling_(scaling), scale_(scaling.initial), hysteresis_left_(scaling.hysteresis) {
  if (!(scaling.initial > 0) || !std::isfinite(scaling.initial)) {
    throw ConfigError("loss scale", "initial", "expected a positive number");
  }
  if (scaling.rule != LossScaleRule::constant &&
      (scaling.window == 0 || scaling.hysteresis == 0 || scaling.growth < 1 ||
       !(scaling.backoff > 0 && scaling.backoff < 1))) {
    throw ConfigError("loss scale", "", "expected window and hysteresis of 1 or more, growth >= 1 and 0 < backoff < 1");
  }
}

void LossScaler::update(bool finite) {
  if (scaling_.rule == LossScaleRule::constant) return;
  if (!finite) {
    clean_steps_ = 0;
    if (hysteresis_left_ > 1) {
      --hysteresis_left_;
    } else {
      scale_ = std::max(scale_ * scaling_.backoff, scaling_.minimum);
      if (scaling_.rule == LossScaleRule::torch) hysteresis_left_ = scaling_.hysteresis;
    }
    return;
  }
  if (++clean_steps_ < scaling_.window) return;
  clean_steps_ = 0;
  hysteresis_left_ = scaling_.hysteresis;
  const double grown = scale_ * scaling_.growth;
  if (grown <= std::numeric_limits<float>::max()) scale_ = grown;  // losses are multiplied in fp32
}

void LossScaler::restore(double scale, std::uint64_t clean_steps, std::uint64_t hysteresis_left) {
  if (!(scale > 0) || !std::isfinite(scale)) throw ConfigError("loss scale", "", "expected a positive number");
  scale_ = scale;
  clean_steps_ = clean_steps;
  hysteresis_left_ = hysteresis_left;
}

}  // namespace shardplan
