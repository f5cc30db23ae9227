#include "tools/report/memory_classes.h"

namespace shardplan::report {
namespace {

struct Look {
  std::string_view name;
  std::string_view colour;
};

// Their vermilion is left for what should not be: exposed communication, too much memory.
constexpr std::array<Look, kMemoryClasses> kLooks{{{"parameters", "#0072b2"},
                                                   {"gathered parameters", "#56b4e9"},
                                                   {"gradients", "#e69f00"},
                                                   {"optimizer states", "#009e73"},
                                                   {"communication buffers", "#cc79a7"},
                                                   {"activations", "#f0e442"}}};

}  // namespace

std::string_view name(MemoryClass which) {
  return kLooks[static_cast<std::size_t>(which)].name;
}

std::string_view colour(MemoryClass which) {
  return kLooks[static_cast<std::size_t>(which)].colour;
}

Bytes MemoryByClass::total() const {
  Bytes sum;
  for (const Bytes bytes : bytes_) sum += bytes;
  return sum;
}

}  // namespace shardplan::report
