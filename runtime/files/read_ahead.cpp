#include "runtime/files/read_ahead.h"

#include <algorithm>
#include <utility>

#include "base/error.h"
#include "runtime/files/background.h"

namespace shardplan {
namespace {

std::uint64_t aligned_down(std::uint64_t offset) {
  return offset / kFileAlignment * kFileAlignment;
}

std::uint64_t aligned_up(std::uint64_t offset) {
  return aligned_down(offset + kFileAlignment - 1);
}

}  // namespace

ReadAhead::ReadAhead(std::unique_ptr<InputFile> file, std::uint64_t until, std::size_t bytes, std::size_t buffers)
    : file_(std::move(file)), until_(std::min(aligned_up(until), file_->bytes())) {
  SHARDPLAN_CHECK(buffers >= 2, "one buffer cannot be filled while it is read from");
  windows_.reserve(buffers);
  for (std::size_t i = 0; i < buffers; ++i) windows_.emplace_back(bytes);
  thread_ = start_thread([this] { serve(); });
}

ReadAhead::~ReadAhead() {
  {
    const std::lock_guard lock(mutex_);
    stop_ = true;
  }
  changed_.notify_all();
  thread_.join();
}

void ReadAhead::read(std::uint64_t offset, std::span<std::byte> to) {
  if (offset + to.size() > file_->bytes()) return file_->read(offset, to);  // says what is wrong
  const std::uint64_t asked = to.size();
  if (offset < next_ || offset - next_ > last_) in_row_ = 0;
  while (!to.empty()) {
    const Window& from = window_at(offset, to.size());
    const std::size_t count = std::min<std::uint64_t>(to.size(), from.end - offset);
    std::copy_n(from.buffer.bytes().begin() + static_cast<std::ptrdiff_t>(offset - from.begin), count, to.begin());
    offset += count;
    to = to.subspan(count);
  }
  next_ = offset;
  last_ = asked;
  in_row_ += asked;
}

const ReadAhead::Window& ReadAhead::window_at(std::uint64_t offset, std::uint64_t wanted) {
  std::unique_lock lock(mutex_);
  while (read_ > first_ && window(first_).end <= offset) ++first_;
  const bool kept = has_window() && window(first_).begin <= offset && offset < window(first_).end;
  if (!kept) forget(lock);
  // What is wanted, to its end; then as much ahead as was asked for in a row, in whole buffers.
  const std::uint64_t most = windows_.front().buffer.bytes().size();
  const std::uint64_t needed = std::min(file_->bytes(), aligned_up(offset + wanted));
  const std::uint64_t ahead = std::min(until_, aligned_down(offset + wanted + in_row_));
  while (asked_ - first_ < windows_.size()) {
    const std::uint64_t begin = has_window() ? window(asked_ - 1).end : aligned_down(offset);
    const std::uint64_t end = std::min(begin + most, std::max(needed, ahead));
    if (begin >= needed && (begin >= end || end < std::min(begin + most, until_))) break;
    ask(begin, end);
  }
  wait_for_first(lock);
  if (window(first_).failure && window(first_).end > needed) {
    // What failed may be what nobody has asked for.
    forget(lock);
    ask(aligned_down(offset), std::min(aligned_down(offset) + most, needed));
    wait_for_first(lock);
  }
  if (const std::exception_ptr failure = window(first_).failure; failure) {
    forget(lock);
    std::rethrow_exception(failure);
  }
  return window(first_);
}

void ReadAhead::wait_for_first(std::unique_lock<std::mutex>& lock) {
  changed_.wait(lock, [&] { return read_ > first_; });
}

void ReadAhead::ask(std::uint64_t begin, std::uint64_t end) {
  Window& next = window(asked_);
  next.begin = begin;
  next.end = end;
  next.failure = nullptr;
  ++asked_;
  changed_.notify_all();
}

// Nothing is kept or under way.
void ReadAhead::forget(std::unique_lock<std::mutex>& lock) {
  asked_ = read_ + (reading_ ? 1 : 0);
  changed_.wait(lock, [&] { return !reading_; });
  first_ = read_;
}

void ReadAhead::serve() {
  std::unique_lock lock(mutex_);
  while (true) {
    changed_.wait(lock, [&] { return asked_ > read_ || stop_; });
    if (stop_) return;
    Window& next = window(read_);
    reading_ = true;
    lock.unlock();
    std::exception_ptr failure;
    try {
      file_->read(next.begin, next.buffer.bytes().first(next.end - next.begin));
    } catch (...) {
      failure = std::current_exception();
    }
    lock.lock();
    next.failure = failure;
    reading_ = false;
    ++read_;
    changed_.notify_all();
  }
}

}  // namespace shardplan
