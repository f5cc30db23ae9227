// What adaptors over Device, Stream and Memory derive from: everything goes to the inner one. An adaptor
// overrides what it is about.
#pragma once

#include <memory>
#include <string_view>
#include <utility>

#include "runtime/device.h"

namespace shardplan {

class ForwardingMemory : public Memory {
 public:
  ForwardingMemory(std::unique_ptr<Memory> inner, const MemoryRequest& request)
      : Memory(inner->data(), request), inner_(std::move(inner)) {}
  void handed_out(std::uint64_t offset, Bytes bytes, std::string_view purpose) override {
    inner_->handed_out(offset, bytes, purpose);
  }
  void given_back(std::uint64_t offset, Bytes bytes) override { inner_->given_back(offset, bytes); }
  std::optional<SharedHandle> shared_handle() const override { return inner_->shared_handle(); }

 private:
  std::unique_ptr<Memory> inner_;
};

// Calls before(what) ahead of each copy, zero, wait, synchronize and kernel.
class InterposedStream : public Stream {
 public:
  explicit InterposedStream(std::unique_ptr<Stream> inner) : inner_(std::move(inner)) {}
  void copy(std::byte* to, const std::byte* from, Bytes bytes) override {
    before("copy");
    inner_->copy(to, from, bytes);
  }
  void zero(std::byte* at, Bytes bytes) override {
    before("zero");
    inner_->zero(at, bytes);
  }
  void record(Event& event) override { inner_->record(event); }
  void wait(Event& event) override {
    before("wait");
    inner_->wait(event);
  }
  void synchronize() override {
    before("synchronize");
    inner_->synchronize();
  }
  void launching(std::string_view kernel, Bytes touched) override {
    before(kernel);
    inner_->launching(kernel, touched);
  }
  Stream& innermost() override { return inner_->innermost(); }

 protected:
  virtual void before(std::string_view what) = 0;

 private:
  std::unique_ptr<Stream> inner_;
};

// Does not own the inner device, which must outlive it.
class ForwardingDevice : public Device {
 public:
  explicit ForwardingDevice(Device& inner) : inner_(inner) {}
  std::string name() const override { return inner_.name(); }
  std::unique_ptr<Memory> allocate(const MemoryRequest& request) override { return inner_.allocate(request); }
  std::unique_ptr<Stream> make_stream() override { return inner_.make_stream(); }
  std::unique_ptr<Event> make_event() override { return inner_.make_event(); }

 private:
  Device& inner_;
};

}  // namespace shardplan
