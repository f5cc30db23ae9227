#include "runtime/files/write_behind.h"

#include <utility>

#include "base/error.h"
#include "runtime/files/background.h"

namespace shardplan {

WriteBehind::WriteBehind(std::unique_ptr<OutputFile> file, std::size_t bytes, std::size_t buffers)
    : file_(std::move(file)), used_(buffers) {
  SHARDPLAN_CHECK(buffers >= 2, "one buffer cannot be filled while it is written");
  buffers_.reserve(buffers);
  for (std::size_t i = 0; i < buffers; ++i) buffers_.emplace_back(bytes);
  thread_ = start_thread([this] { serve(); });
}

WriteBehind::~WriteBehind() {
  {
    const std::lock_guard lock(mutex_);
    stop_ = true;
  }
  changed_.notify_all();
  thread_.join();
}

std::span<std::byte> WriteBehind::room() {
  std::unique_lock lock(mutex_);
  if (handed_in_ >= buffers_.size()) wait_until_written(lock, handed_in_ - buffers_.size() + 1);
  return buffers_[handed_in_ % buffers_.size()].bytes();
}

void WriteBehind::hand_in(std::size_t bytes) {
  {
    const std::lock_guard lock(mutex_);
    SHARDPLAN_CHECK(handed_in_ - written_ < buffers_.size(), "a buffer is handed in that is not free");
    used_[handed_in_ % buffers_.size()] = bytes;
    ++handed_in_;
  }
  changed_.notify_all();
}

void WriteBehind::finish() {
  std::unique_lock lock(mutex_);
  wait_until_written(lock, handed_in_);
  file_->sync();
}

void WriteBehind::wait_until_written(std::unique_lock<std::mutex>& lock, std::uint64_t count) {
  changed_.wait(lock, [&] { return written_ >= count || failure_; });
  if (failure_) std::rethrow_exception(failure_);
}

void WriteBehind::serve() {
  std::unique_lock lock(mutex_);
  while (true) {
    changed_.wait(lock, [&] { return handed_in_ > written_ || stop_; });
    if (stop_) return;
    const std::size_t next = written_ % buffers_.size();
    const std::span<const std::byte> bytes = buffers_[next].bytes().first(used_[next]);
    lock.unlock();
    std::exception_ptr failure;
    try {
      file_->write(bytes);
    } catch (...) {
      failure = std::current_exception();
    }
    lock.lock();
    if (failure) {
      failure_ = failure;
      changed_.notify_all();
      return;
    }
    ++written_;
    changed_.notify_all();
  }
}

}  // namespace shardplan
