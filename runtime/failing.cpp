#include "runtime/failing.h"

#include <fmt/format.h>

#include <utility>

#include "base/error.h"

namespace shardplan {
namespace {

class FailingStream final : public InterposedStream {
 public:
  FailingStream(std::unique_ptr<Stream> inner, Countdown& work) : InterposedStream(std::move(inner)), work_(work) {}

 protected:
  void before(std::string_view what) override {
    if (work_.strikes()) throw Error(fmt::format("{} failed: the {}-th operation was to fail", what, work_.count()));
  }

 private:
  Countdown& work_;
};

}  // namespace

std::unique_ptr<Memory> FailingDevice::allocate(const MemoryRequest& request) {
  if (allocations_.strikes()) throw OutOfMemory(std::string(shardplan::name(request.tier)), request.bytes, 0_B);
  return ForwardingDevice::allocate(request);
}

std::unique_ptr<Stream> FailingDevice::make_stream() {
  return std::make_unique<FailingStream>(ForwardingDevice::make_stream(), work_);
}

void FailingCommunicator::before(const char* operation) {
  if (!calls_.strikes()) return;
  const CommunicationError error(world_rank(), operation, deadline(),
                                 fmt::format("the {}-th call was to fail", calls_.count()));
  abort(error.what());
  throw error;
}

std::unique_ptr<Communicator> FailingCommunicator::wrap(std::unique_ptr<Communicator> inner) const {
  return std::make_unique<FailingCommunicator>(std::move(inner), calls_);
}

}  // namespace shardplan
