#include <fmt/format.h>

#include <cctype>

#include "base/error.h"
#include "planner/formats/gpu_table.h"
#include "tools/memcalc/planning.h"

namespace shardplan::memcalc {

bool is_capacity(const std::string& text) {
  return !text.empty() && std::isdigit(static_cast<unsigned char>(text.front())) != 0;
}

Capacity find_capacity(const std::string& text, const std::vector<std::string>& gpu_files) {
  if (is_capacity(text)) {
    try {
      const Bytes bytes = parse_bytes(text);
      if (bytes == Bytes{}) throw ConfigError("", "", fmt::format("'{}' is no memory: expected more than 0", text));
      return {text, bytes};
    } catch (const ConfigError& error) {
      throw ConfigError("--gpu", "", error.problem());
    }
  }
  const std::vector<Gpu> table = gpu_table(gpu_files);
  const Gpu& gpu = find_gpu(table, text);
  return {gpu.name, gpu.capacity()};
}

}  // namespace shardplan::memcalc
