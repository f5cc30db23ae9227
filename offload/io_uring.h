// Linux's io_uring: a range of a file is read or written in pieces that are all on their way at once, so that one thread
// keeps a disk busy that several would otherwise have to.
//
// What it is built with is liburing (SHARDPLAN_IO_URING); kernel.io_uring_disabled and the filters of containers may refuse it.
// See io_uring(7).
#pragma once

#include <sys/types.h>

#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <vector>

namespace shardplan {

// One for each of so many callers at once; others wait until one is free.
class IoUrings {
 public:
  // Throws ConfigError where there is no io_uring: with why, and what to ask for instead.
  explicit IoUrings(int callers);
  ~IoUrings();
  IoUrings(const IoUrings&) = delete;
  IoUrings& operator=(const IoUrings&) = delete;

  // As pread and pwrite: how many bytes, from the first one on, have been moved; or -1, and errno. Returns when nothing is
  // under way any more. Any number of threads.
  ssize_t read(int file, std::byte* to, std::size_t bytes, std::uint64_t offset);
  ssize_t write(int file, const std::byte* from, std::size_t bytes, std::uint64_t offset);

 private:
  class Ring;
  template <typename Act>
  ssize_t with_ring(Act&& act);

  std::mutex mutex_;
  std::condition_variable freed_;
  std::vector<std::unique_ptr<Ring>> free_;
};

}  // namespace shardplan
