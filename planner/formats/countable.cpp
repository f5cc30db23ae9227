#include "planner/formats/countable.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include "base/error.h"

namespace shardplan {
namespace {

template <typename Count>
std::uint64_t counted(Count count, const std::string& source, const std::string& key, const std::string& what) {
  try {
    return count();
  } catch (const ArithmeticOverflow&) {
    throw ConfigError(source, key, fmt::format("{} more elements than 64 bits can count", what));
  }
}

}  // namespace

void require_countable(const Catalog& catalog, const std::string& source) {
  std::uint64_t total = 0;
  for (const UnitRun& run : catalog.runs) {
    std::uint64_t unit = 0;
    for (const Tensor& tensor : run.tensors) {
      const std::string key = tensor_name(run, 0, tensor);
      const std::uint64_t own = counted([&] { return elements(tensor.shape); }, source, key,
                                        fmt::format("shape [{}] has", fmt::join(tensor.shape, ", ")));
      unit = counted([&] { return checked_add(unit, own); }, source, key, "this and the tensors before it have");
    }
    total = counted([&] { return checked_add(total, checked_multiply(unit, run.count)); }, source, run.name,
                    fmt::format("with its {} units the model has", run.count));
  }
}

}  // namespace shardplan
