// A device: where bytes live and in which order they are touched. One interface for the CPU, for simulated
// devices and for accelerators, whose own types never appear here.
//
// Ownership: what a device makes (memory, streams, events) is owned by whoever asked for it. Memory may
// outlive the device that made it, because the last rank of a group frees the arenas of all; streams and
// events may not. Threads: allocate may be called from any thread. A stream, an event and a Memory belong to
// one rank at a time. Adaptors over this interface (recording, limited, failing, delaying) are stacked; each
// is a device of its own.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>

#include "base/bytes.h"

namespace shardplan {

// The tiers that are addressed as memory. Files are a tier too, but not of a device.
enum class MemoryTier : std::uint8_t { device, pinned_host, host };
std::string_view name(MemoryTier tier);

// `bytes` in all. Offset 0 lies `shift` bytes into them; offsets end at bytes - shift_room, so that memories
// of equal size and different shifts have equal offsets. shift <= shift_room <= bytes.
struct MemoryRequest {
  MemoryTier tier = MemoryTier::device;
  Bytes bytes = {};
  Bytes shift = {};
  Bytes shift_room = {};
};

// How another process of this machine gets at a memory: the pages are those of a file that the process `process` has open
// as `descriptor`. Plain data, meant to be sent.
struct SharedHandle {
  std::int64_t process = 0;
  std::int64_t descriptor = -1;
  std::uint64_t bytes = 0;   // of the file
  std::uint64_t offset = 0;  // where in it the memory's offset 0 lies
};

// One allocation, freed by the destructor. Its owner (an Arena) reports which ranges are in use: checked
// builds poison every byte outside of them, and a recording device counts them. Both calls allocate nothing.
// `purpose` is what a range is for, for those who draw memory; a text that stays.
class Memory {
 public:
  Memory(std::byte* data, const MemoryRequest& request) : data_(data), request_(request) {}
  virtual ~Memory() = default;
  Memory(const Memory&) = delete;
  Memory& operator=(const Memory&) = delete;

  std::byte* data() const { return data_; }  // offset 0; on a 4096-byte boundary if the shift is
  MemoryTier tier() const { return request_.tier; }
  Bytes bytes() const { return request_.bytes; }
  Bytes capacity() const { return request_.bytes - request_.shift_room; }
  // For memory that another process can map; valid while this object lives. What is mapped stays when it is gone.
  virtual std::optional<SharedHandle> shared_handle() const { return std::nullopt; }

  virtual void handed_out(std::uint64_t offset, Bytes bytes, std::string_view purpose) = 0;
  virtual void given_back(std::uint64_t offset, Bytes bytes) = 0;

 private:
  std::byte* data_;
  MemoryRequest request_;
};

// A point in a stream's order. Not yet recorded counts as reached.
class Event {
 public:
  virtual ~Event() = default;
  virtual bool reached() const = 0;
  virtual void wait() = 0;  // blocks this rank until reached
};

// Work in order. On the CPU each call has finished when it returns.
class Stream {
 public:
  virtual ~Stream() = default;
  virtual void copy(std::byte* to, const std::byte* from, Bytes bytes) = 0;  // the ranges must not overlap
  virtual void zero(std::byte* at, Bytes bytes) = 0;
  virtual void record(Event& event) = 0;
  virtual void wait(Event& event) = 0;  // later work of this stream waits, the rank does not
  // The rank waits until all of it is done.
  virtual void synchronize() = 0;
  // Every kernel and collective calls this before its work, with its name: where an adaptor counts, delays or
  // fails, and a virtual device books the time. `touched` is what a kernel reads and writes; a collective's is 0.
  virtual void launching(std::string_view kernel, Bytes touched) = 0;
  // The device's own stream, beneath all adaptors: what a device's kernels put their work on.
  virtual Stream& innermost() { return *this; }
};

class Device {
 public:
  virtual ~Device() = default;
  virtual std::string name() const = 0;
  // Zeroed memory with real pages behind it: it cannot run out later. Throws OutOfMemory with the bytes
  // requested and the bytes available. 0 bytes are an allocation like any other.
  virtual std::unique_ptr<Memory> allocate(const MemoryRequest& request) = 0;
  virtual std::unique_ptr<Stream> make_stream() = 0;
  virtual std::unique_ptr<Event> make_event() = 0;
};

}  // namespace shardplan
