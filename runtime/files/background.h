// A thread that does one job at a time, such as writing a file while its rank goes on.
#pragma once

#include <atomic>
#include <exception>
#include <functional>
#include <thread>

namespace shardplan {

// Runs `job` in a thread. Throws IoError (EAGAIN) where the system starts none, so that ranks can tell each other.
std::thread start_thread(std::function<void()> job);

class Background {
 public:
  Background() = default;
  // As abandon().
  ~Background();
  Background(const Background&) = delete;
  Background& operator=(const Background&) = delete;

  // CheckFailure if there is a job whose end nobody has waited for.
  void start(std::function<void()> job);
  bool busy() const { return thread_.joinable(); }
  // Whether wait() would return at once. True without a job.
  bool done() const { return !busy() || done_.load(std::memory_order_acquire); }
  // Until the job has ended; throws what it threw. Nothing without a job.
  void wait();
  // As wait(), but what the job threw is dropped: for destructors.
  void abandon();

 private:
  std::thread thread_;
  std::atomic<bool> done_{false};
  std::exception_ptr failure_;
};

}  // namespace shardplan
