#include "tools/memcalc/detected.h"

#include <fmt/format.h>

#include <algorithm>
#include <boost/json.hpp>
#include <cctype>
#include <cmath>
#include <tuple>

#include "planner/formats/gpu_table.h"
#include "shard/cuda_backend.h"

namespace shardplan::memcalc {

namespace json = boost::json;

namespace {

// In lower case, divided at what is neither a letter nor a digit.
std::vector<std::string> words_of(std::string_view text) {
  std::vector<std::string> words(1);
  for (const char letter : text) {
    const auto code = static_cast<unsigned char>(letter);
    if (std::isalnum(code) != 0) {
      words.back() += static_cast<char>(std::tolower(code));
    } else if (!words.back().empty()) {
      words.emplace_back();
    }
  }
  if (words.back().empty()) words.pop_back();
  return words;
}

bool is_size(const std::string& word) {
  return std::isdigit(static_cast<unsigned char>(word.front())) != 0 && word.ends_with("gb");
}

std::string compute_capability(const CudaGpu& gpu) {
  return fmt::format("{}.{}", gpu.compute_major, gpu.compute_minor);
}

}  // namespace

const Gpu* row_of(const std::vector<Gpu>& table, std::string_view driver_name, Bytes memory) {
  const std::vector<std::string> known = words_of(driver_name);
  const Gpu* best = nullptr;
  std::tuple<std::size_t, double> best_rank;
  for (const Gpu& gpu : table) {
    std::vector<std::string> words = words_of(gpu.name);
    std::erase_if(words, is_size);
    const bool named = std::all_of(words.begin(), words.end(), [&](const std::string& word) {
      return std::find(known.begin(), known.end(), word) != known.end();
    });
    const double off = static_cast<double>(memory.count()) / static_cast<double>(gpu.capacity().count()) - 1;
    if (words.empty() || !named || off < -0.05 || off > 0.05) continue;
    const std::tuple rank(words.size(), -std::abs(off));
    if (best != nullptr && rank <= best_rank) continue;
    best = &gpu;
    best_rank = rank;
  }
  return best;
}

std::string detected_gpus_text(const ListOptions& options) {
  const std::vector<Gpu> table = gpu_table(options.gpu_files);
  const std::vector<CudaGpu> found = load_cuda_backend().gpus();
  std::string text;
  json::array rows;
  for (const CudaGpu& gpu : found) {
    const Gpu* row = row_of(table, gpu.name, gpu.memory);
    const std::string name = row == nullptr ? "" : row->name;
    rows.push_back({{"index", gpu.index},
                    {"name", gpu.name},
                    {"memory_bytes", gpu.memory.count()},
                    {"compute_capability", compute_capability(gpu)},
                    {"multiprocessors", gpu.multiprocessors},
                    {"gpu", row == nullptr ? json::value() : json::value(name)}});
    if (options.names) {
      if (row != nullptr) text += name + "\n";
      continue;
    }
    text += fmt::format("{}  {}  {} ({})  compute capability {}  {}\n", gpu.index, gpu.name, in_gb(gpu.memory),
                        in_gib(gpu.memory), compute_capability(gpu),
                        row == nullptr ? "in no table (docs/gpus.md)" : "--gpu " + name);
  }
  if (!options.json) return text;
  return json::serialize(json::object{{"schema", "memcalc.gpus/1"}, {"detected", std::move(rows)}}) + "\n";
}

}  // namespace shardplan::memcalc
