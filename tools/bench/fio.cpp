#include "tools/bench/fio.h"

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <memory>

#include "base/error.h"

namespace shardplan::bench {
namespace {

// Of terse output, version 3: the runtimes of reads and of writes, in milliseconds.
constexpr int kReadRuntime = 9;
constexpr int kWriteRuntime = 50;

double field(const std::string& line, int number) {
  std::size_t at = 0;
  for (int i = 1; i < number; ++i) {
    at = line.find(';', at);
    SHARDPLAN_CHECK(at != std::string::npos, "fio said something else: " + line);
    ++at;
  }
  return std::strtod(line.c_str() + at, nullptr);
}

}  // namespace

std::optional<double> fio_seconds(const std::string& arguments) {
  static const bool kInstalled = std::system("fio --version >/dev/null 2>&1") == 0;
  if (!kInstalled) return std::nullopt;
  const std::string command = "fio --direct=1 --group_reporting --output-format=terse --terse-version=3 " + arguments;
  const std::unique_ptr<std::FILE, int (*)(std::FILE*)> output(popen(command.c_str(), "r"), pclose);
  std::string line(1 << 14, '\0');
  SHARDPLAN_CHECK(output && std::fgets(line.data(), static_cast<int>(line.size()), output.get()) != nullptr,
                  "fio said nothing");
  const double slower = std::max(field(line, kReadRuntime), field(line, kWriteRuntime)) * 1e-3;
  SHARDPLAN_CHECK(slower > 0, "fio reported no runtime: " + line);
  return slower;
}

}  // namespace shardplan::bench
