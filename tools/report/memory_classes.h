// What a rank's memory is divided into, wherever it is drawn or recorded.
#pragma once

#include <array>
#include <cstdint>
#include <string_view>

#include "base/bytes.h"

namespace shardplan::report {

// In the order of a memory report.
enum class MemoryClass : std::uint8_t {
  parameters,
  gathered_parameters,
  gradients,
  optimizer_states,
  communication_buffers,
  activations
};
constexpr std::size_t kMemoryClasses = 6;

// From the bottom of a stack to its top: first what is held all the time, so that what comes and goes moves nothing
// but itself.
constexpr std::array<MemoryClass, kMemoryClasses> kStackOrder{
    MemoryClass::parameters,          MemoryClass::optimizer_states,      MemoryClass::gradients,
    MemoryClass::gathered_parameters, MemoryClass::communication_buffers, MemoryClass::activations};

std::string_view name(MemoryClass which);    // "gathered parameters"
std::string_view colour(MemoryClass which);  // "#56b4e9": Okabe and Ito's palette, the same in every chart

class MemoryByClass {
 public:
  Bytes& operator[](MemoryClass which) { return bytes_[static_cast<std::size_t>(which)]; }
  Bytes operator[](MemoryClass which) const { return bytes_[static_cast<std::size_t>(which)]; }
  Bytes total() const;  // throws ArithmeticOverflow
  bool operator==(const MemoryByClass&) const = default;

 private:
  std::array<Bytes, kMemoryClasses> bytes_{};
};

}  // namespace shardplan::report
