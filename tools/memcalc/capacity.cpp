#include <cctype>

#include "base/error.h"
#include "tools/memcalc/planning.h"

namespace shardplan::memcalc {

Capacity find_capacity(const std::string& text, const std::vector<std::string>& gpu_files) {
  if (!text.empty() && std::isdigit(static_cast<unsigned char>(text.front())) != 0) return {text, parse_bytes(text)};
  (void)gpu_files;
  throw ConfigError("--gpu", "", "names come with the table");
}

}  // namespace shardplan::memcalc
