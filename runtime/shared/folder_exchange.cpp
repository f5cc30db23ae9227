#include <fmt/format.h>

#include <algorithm>
#include <cerrno>
#include <fstream>
#include <string>
#include <system_error>
#include <thread>
#include <utility>

#include "base/error.h"
#include "runtime/shared/shared_communicator.h"

namespace shardplan {
namespace {

namespace fs = std::filesystem;
using Clock = std::chrono::steady_clock;

class FolderExchange {
 public:
  FolderExchange(fs::path folder, int rank, int size, std::chrono::milliseconds deadline)
      : folder_(std::move(folder)), rank_(rank), size_(size), deadline_(deadline) {}

  void operator()(std::span<const std::byte> mine, std::span<std::byte> all) {
    publish(mine);
    const auto end = Clock::now() + deadline_;
    for (int peer = 0; peer < size_; ++peer) {
      collect(peer, all.subspan(static_cast<std::size_t>(peer) * mine.size(), mine.size()), end);
    }
    // Whoever has come to this round has read all of the one before.
    std::error_code ignored;  // a file that stays is in nobody's way
    if (round_ > 0) fs::remove(file_of(round_ - 1, rank_), ignored);
    ++round_;
  }

 private:
  static bool exists(const fs::path& file) {
    std::error_code error;
    return fs::exists(file, error);
  }
  fs::path file_of(int round, int rank) const { return folder_ / fmt::format("{}.{}", round, rank); }

  void publish(std::span<const std::byte> mine) const {
    const fs::path file = file_of(round_, rank_);
    if (exists(file)) throw IoError(file.string(), 0, EEXIST, "the folder of an exchange must be new for each run");
    const fs::path hidden = fs::path(file) += ".part";
    std::ofstream stream(hidden, std::ios::binary);
    stream.write(reinterpret_cast<const char*>(mine.data()), static_cast<std::streamsize>(mine.size()));
    stream.close();
    if (!stream) throw IoError(hidden.string(), 0, errno, "cannot be written");
    std::error_code error;
    fs::rename(hidden, file, error);
    if (error) throw IoError(file.string(), 0, error.value(), "cannot be written");
  }

  void collect(int peer, std::span<std::byte> record, Clock::time_point end) const {
    const fs::path file = file_of(round_, peer);
    std::chrono::milliseconds pause{1};
    while (!exists(file)) {
      if (Clock::now() >= end) {
        throw CommunicationError(peer, "exchange_through_folder", deadline_,
                                 fmt::format("has written nothing to {}", folder_.string()));
      }
      std::this_thread::sleep_for(pause);
      pause = std::min(2 * pause, std::chrono::milliseconds{50});
    }
    std::error_code error;
    const auto bytes = fs::file_size(file, error);
    std::ifstream stream(file, std::ios::binary);
    stream.read(reinterpret_cast<char*>(record.data()), static_cast<std::streamsize>(record.size()));
    if (!stream || error || bytes != record.size()) {
      throw IoError(file.string(), 0, error.value(), fmt::format("expected a record of {} bytes", record.size()));
    }
  }

  fs::path folder_;
  int rank_;
  int size_;
  std::chrono::milliseconds deadline_;
  int round_ = 0;
};

}  // namespace

ExchangeBlobs exchange_through_folder(fs::path folder, int rank, int size, std::chrono::milliseconds deadline) {
  return FolderExchange(std::move(folder), rank, size, deadline);
}

}  // namespace shardplan
