// Reads a file through buffers that a thread fills ahead of the one who asks: the disk works while what is there is
// checked and copied.
//
// No more is read ahead than has been asked for in a row. What is left out between two requests may be as long as the first
// of them and they are still in a row; so who wants pieces makes the disk read three times what is needed at the most.
//
// Threads: one rank's. What a read fails with is thrown by the call that asks for those bytes; asked again, they are read
// again.
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

class ReadAhead {
 public:
  // `buffers` (two or more) of `bytes` bytes each, in multiples of kFileAlignment. Nothing is read ahead from `until` on.
  // Throws OutOfMemory, and IoError where no thread can be started.
  ReadAhead(std::unique_ptr<InputFile> file, std::uint64_t until, std::size_t bytes, std::size_t buffers);
  // Waits for the read that is under way.
  ~ReadAhead();
  ReadAhead(const ReadAhead&) = delete;
  ReadAhead& operator=(const ReadAhead&) = delete;

  // All of `to`, from `offset` on.
  void read(std::uint64_t offset, std::span<std::byte> to);

 private:
  // Bytes [begin, end) of the file in a buffer; `begin` is a multiple of kFileAlignment.
  struct Window {
    explicit Window(std::size_t bytes) : buffer(bytes) {}
    FileBuffer buffer;
    std::uint64_t begin = 0;
    std::uint64_t end = 0;
    std::exception_ptr failure;
  };

  void serve();
  Window& window(std::uint64_t number) { return windows_[number % windows_.size()]; }
  bool has_window() const { return first_ < asked_; }
  void ask(std::uint64_t begin, std::uint64_t end);
  void forget(std::unique_lock<std::mutex>& lock);
  void wait_for_first(std::unique_lock<std::mutex>& lock);
  // The window that holds the byte at `offset`, read; `wanted` bytes are asked for from there on.
  const Window& window_at(std::uint64_t offset, std::uint64_t wanted);

  std::unique_ptr<InputFile> file_;
  std::uint64_t until_;
  std::vector<Window> windows_;  // number i is in windows_[i % size]
  std::mutex mutex_;
  std::condition_variable changed_;
  // Numbers: those from first_ on are kept, those before read_ are there, those before asked_ are asked for.
  std::uint64_t first_ = 0;
  std::uint64_t read_ = 0;
  std::uint64_t asked_ = 0;
  bool reading_ = false;
  bool stop_ = false;
  std::uint64_t next_ = 0;    // where the last request ended,
  std::uint64_t last_ = 0;    // how long it was,
  std::uint64_t in_row_ = 0;  // and what was asked for in a row before the one at hand
  std::thread thread_;        // the last member: it uses the others
};

}  // namespace shardplan
