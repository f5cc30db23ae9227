#include "runtime/files/background.h"

#include <system_error>
#include <utility>

#include "base/error.h"

namespace shardplan {

std::thread start_thread(std::function<void()> job) {
  try {
    return std::thread(std::move(job));
  } catch (const std::system_error& error) {
    throw IoError("a thread for files", 0, error.code().value(), "cannot be started");
  }
}

Background::~Background() {
  abandon();
}

void Background::start(std::function<void()> job) {
  SHARDPLAN_CHECK(!busy(), "a job is started before the one before it was waited for");
  done_.store(false, std::memory_order_relaxed);
  failure_ = nullptr;
  thread_ = start_thread([this, job = std::move(job)] {
    try {
      job();
    } catch (...) {
      failure_ = std::current_exception();
    }
    done_.store(true, std::memory_order_release);
  });
}

void Background::wait() {
  if (!busy()) return;
  thread_.join();
  if (failure_) std::rethrow_exception(std::exchange(failure_, nullptr));
}

void Background::abandon() {
  if (busy()) thread_.join();
  failure_ = nullptr;
}

}  // namespace shardplan
