#include "tools/train/text.h"

#include <fmt/format.h>

#include <algorithm>
#include <cerrno>
#include <cmath>
#include <fstream>
#include <system_error>
#include <utility>

#include "base/error.h"
#include "tools/train/random.h"

namespace shardplan {

Text Text::read(const std::filesystem::path& path, std::size_t context) {
  std::error_code error;
  const std::uintmax_t size = std::filesystem::file_size(path, error);
  if (error) throw IoError(path.string(), 0, error.value(), "cannot read the text");
  std::vector<std::uint8_t> bytes(size);
  std::ifstream file(path, std::ios::binary);
  file.read(reinterpret_cast<char*>(bytes.data()), static_cast<std::streamsize>(size));
  if (!file) throw IoError(path.string(), 0, errno, "cannot read the text");
  return {std::move(bytes), context, path.string()};
}

Text::Text(std::vector<std::uint8_t> bytes, std::size_t context, const std::string& source)
    : bytes_(std::move(bytes)), training_bytes_(bytes_.size() - bytes_.size() / 10), window_bytes_(context + 1) {
  SHARDPLAN_CHECK(context > 0, "a window needs a byte to see and one to predict");
  if (held_out().size() < window_bytes_) {
    throw ConfigError(source, "",
                      fmt::format("holds {} bytes; a context of {} needs {}, so that the held-out tenth has a window",
                                  bytes_.size(), context, 10 * window_bytes_));
  }
}

void Text::sample(const BatchKey& key, std::span<std::uint8_t> batch) const {
  SHARDPLAN_CHECK(batch.size() % window_bytes_ == 0, "a batch is made of whole windows");
  const std::size_t starts = training_bytes_ - window_bytes_ + 1;
  for (std::size_t i = 0; i < batch.size() / window_bytes_; ++i) {
    const std::size_t start = random_bits(key.seed, key.step, key.micro_batch, key.rank, i) % starts;
    std::ranges::copy(training().subspan(start, window_bytes_), batch.subspan(i * window_bytes_).begin());
  }
}

void Text::copy_held_out(std::size_t first, std::span<std::uint8_t> batch) const {
  const std::size_t windows = batch.size() / window_bytes_;
  SHARDPLAN_CHECK(batch.size() % window_bytes_ == 0, "a batch is made of whole windows");
  SHARDPLAN_CHECK(first + windows <= held_out_windows(), "the held-out part has no such window");
  for (std::size_t i = 0; i < windows; ++i) {
    const std::size_t start = (first + i) * (window_bytes_ - 1);
    std::ranges::copy(held_out().subspan(start, window_bytes_), batch.subspan(i * window_bytes_).begin());
  }
}

double bigram_entropy(const Text& text) {
  constexpr std::size_t kBytes = 256;
  std::vector<double> pairs(kBytes * kBytes, 1.0);
  std::vector<double> before(kBytes, static_cast<double>(kBytes));
  const std::span<const std::uint8_t> training = text.training();
  for (std::size_t i = 1; i < training.size(); ++i) {
    pairs[training[i - 1] * kBytes + training[i]] += 1;
    before[training[i - 1]] += 1;
  }
  const std::span<const std::uint8_t> held_out = text.held_out();
  double nats = 0;
  for (std::size_t i = 1; i < held_out.size(); ++i) {
    nats -= std::log(pairs[held_out[i - 1] * kBytes + held_out[i]] / before[held_out[i - 1]]);
  }
  return nats / static_cast<double>(held_out.size() - 1);
}

}  // namespace shardplan
