#include "runtime/delaying.h"

#include <thread>
#include <utility>

namespace shardplan {
namespace {

class DelayingStream final : public InterposedStream {
 public:
  DelayingStream(std::unique_ptr<Stream> inner, RandomDelay& delay)
      : InterposedStream(std::move(inner)), delay_(delay) {}

 protected:
  void before(std::string_view) override { delay_.wait(); }

 private:
  RandomDelay& delay_;
};

}  // namespace

void RandomDelay::wait() {
  const std::uint64_t draw = generator_();
  if ((draw & 1U) == 0) return;
  const auto steps = static_cast<std::uint64_t>(longest_.count()) + 1;
  std::this_thread::sleep_for(std::chrono::microseconds{(draw >> 1) % steps});
}

std::unique_ptr<Stream> DelayingDevice::make_stream() {
  return std::make_unique<DelayingStream>(ForwardingDevice::make_stream(), delay_);
}

void DelayingCommunicator::before(const char*) {
  delay_.wait();
}

std::unique_ptr<Communicator> DelayingCommunicator::wrap(std::unique_ptr<Communicator> inner) const {
  return std::make_unique<DelayingCommunicator>(std::move(inner), delay_);
}

}  // namespace shardplan
