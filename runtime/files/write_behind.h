// Writes a file from buffers that are filled while others are written, by a thread that never waits for the one who
// fills as long as there is something to write.
//
// Threads: one rank's. What a write fails with is thrown by a later call; nothing more is written then.
#pragma once

#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <memory>
#include <mutex>
#include <span>
#include <thread>
#include <vector>

#include "runtime/files/files.h"

namespace shardplan {

class WriteBehind {
 public:
  // `buffers` (two or more) of `bytes` bytes each, in multiples of kFileAlignment. Throws OutOfMemory, and IoError where no
  // thread can be started.
  WriteBehind(std::unique_ptr<OutputFile> file, std::size_t bytes, std::size_t buffers);
  // Writes no more than what is under way.
  ~WriteBehind();
  WriteBehind(const WriteBehind&) = delete;
  WriteBehind& operator=(const WriteBehind&) = delete;

  // The buffer that is next, to be filled from its beginning. Waits until it is free.
  std::span<std::byte> room();
  // What comes next in the file: that many bytes of room().
  void hand_in(std::size_t bytes);
  // Waits until all is written, and syncs.
  void finish();

 private:
  void serve();
  void wait_until_written(std::unique_lock<std::mutex>& lock, std::uint64_t count);

  std::unique_ptr<OutputFile> file_;
  std::vector<FileBuffer> buffers_;  // number i is in buffers_[i % size]
  std::vector<std::size_t> used_;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::uint64_t handed_in_ = 0;
  std::uint64_t written_ = 0;
  bool stop_ = false;
  std::exception_ptr failure_;
  std::thread thread_;  // the last member: it uses the others
};

}  // namespace shardplan
