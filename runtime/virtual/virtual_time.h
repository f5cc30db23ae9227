// Virtual time, in seconds. Internal to runtime/virtual.
#pragma once

#include <chrono>
#include <cmath>

namespace shardplan {

// Every duration is a whole number of ticks of 2^-36 s (15 ps), so that sums and differences of times are exact in a
// double below 2^17 s (a day and a half): the parts of a step add up to the step.
inline double in_ticks(double seconds) {
  return std::nearbyint(seconds * 0x1p36) * 0x1p-36;
}

inline double in_ticks(std::chrono::milliseconds duration) {
  return in_ticks(std::chrono::duration<double>(duration).count());
}

}  // namespace shardplan
