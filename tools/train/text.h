// The text that the example trains on: the bytes of a file, the last tenth held out.
//
// A window is context + 1 consecutive bytes: the model sees the first `context` of them and predicts each one's
// successor. A batch is windows one after the other in a buffer of the caller.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <span>
#include <string>
#include <vector>

namespace shardplan {

// Which micro-batch of which training run. The order of the data is a function of this and nothing else: it does not
// depend on stage, precision, or on what has been read before, so a resumed run sees what an undisturbed one sees.
struct BatchKey {
  std::uint64_t seed = 0;
  std::uint64_t step = 0;
  std::uint64_t micro_batch = 0;  // within the step
  std::uint64_t rank = 0;
};

class Text {
 public:
  // Throws IoError, and ConfigError if the file is too short to hold out a window.
  static Text read(const std::filesystem::path& path, std::size_t context);

  // `source` is what errors call the text. Throws ConfigError as above.
  Text(std::vector<std::uint8_t> bytes, std::size_t context, const std::string& source);

  std::size_t window_bytes() const { return window_bytes_; }
  std::span<const std::uint8_t> training() const { return std::span(bytes_).first(training_bytes_); }
  std::span<const std::uint8_t> held_out() const { return std::span(bytes_).subspan(training_bytes_); }

  // Fills a batch with windows from anywhere in the training part. Its size is a multiple of window_bytes(); window i
  // does not depend on how many there are.
  void sample(const BatchKey& key, std::span<std::uint8_t> batch) const;

  // The held-out part as windows that overlap by one byte, so that each byte is predicted once (the first, and a rest
  // shorter than a window, not at all). Fills a batch with windows first, first + 1, ...
  std::size_t held_out_windows() const { return (held_out().size() - 1) / (window_bytes_ - 1); }
  void copy_held_out(std::size_t first, std::span<std::uint8_t> batch) const;

 private:
  std::vector<std::uint8_t> bytes_;
  std::size_t training_bytes_;
  std::size_t window_bytes_;
};

// What a model of pairs reaches: the mean over the held-out bytes of -log P(byte | the byte before), in nats, with
// P = (pairs in the training part + 1) / (occurrences of the byte before + 256). A model that does better has learned
// more than which byte follows which.
double bigram_entropy(const Text& text);

}  // namespace shardplan
