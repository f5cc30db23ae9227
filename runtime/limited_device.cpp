#include "runtime/limited_device.h"

#include <mutex>
#include <utility>

#include "base/error.h"

namespace shardplan {

class LimitedDevice::Budget {
 public:
  explicit Budget(Bytes capacity) : available_(capacity) {}
  void spend(const MemoryRequest& request) {
    const std::lock_guard lock(mutex_);
    if (request.bytes > available_) {
      throw OutOfMemory(std::string(shardplan::name(request.tier)), request.bytes, available_);
    }
    available_ -= request.bytes;
  }
  void restore(Bytes bytes) {
    const std::lock_guard lock(mutex_);
    available_ += bytes;
  }

 private:
  std::mutex mutex_;
  Bytes available_;
};

class LimitedDevice::LimitedMemory final : public ForwardingMemory {
 public:
  LimitedMemory(std::unique_ptr<Memory> inner, const MemoryRequest& request, std::shared_ptr<Budget> budget)
      : ForwardingMemory(std::move(inner), request), budget_(std::move(budget)) {}
  ~LimitedMemory() override { budget_->restore(bytes()); }

 private:
  std::shared_ptr<Budget> budget_;
};

LimitedDevice::LimitedDevice(Device& inner, MemoryTier tier, Bytes capacity)
    : ForwardingDevice(inner), tier_(tier), budget_(std::make_shared<Budget>(capacity)) {}

std::unique_ptr<Memory> LimitedDevice::allocate(const MemoryRequest& request) {
  if (request.tier != tier_) return ForwardingDevice::allocate(request);
  budget_->spend(request);
  try {
    return std::make_unique<LimitedMemory>(ForwardingDevice::allocate(request), request, budget_);
  } catch (...) {
    budget_->restore(request.bytes);
    throw;
  }
}

}  // namespace shardplan
