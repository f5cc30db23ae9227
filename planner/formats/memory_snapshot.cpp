#include "planner/formats/memory_snapshot.h"

#include <algorithm>
#include <initializer_list>
#include <map>
#include <unordered_map>
#include <utility>
#include <vector>

#include "base/checked.h"
#include "base/error.h"
#include "planner/formats/pickle.h"

namespace shardplan {
namespace {

struct Block {
  Bytes size;
  BlockOrigin origin = BlockOrigin::unnamed;
};
using Live = std::unordered_map<std::uint64_t, Block>;  // by address

bool is_one_of(std::string_view word, std::initializer_list<std::string_view> words) {
  return std::find(words.begin(), words.end(), word) != words.end();
}

BlockOrigin origin_of_frame(std::string_view file, std::string_view function) {
  for (const std::string_view folder :
       {"torch/optim/", "apex/optimizers/", "bitsandbytes/optim/", "deepspeed/ops/adam/"}) {
    if (file.find(folder) != std::string_view::npos) return BlockOrigin::optimizer_states;
  }
  if (file.ends_with("torch/autograd/graph.py") && function == "_engine_run_backward") return BlockOrigin::backward;
  if (!file.ends_with("torch/nn/modules/module.py")) return BlockOrigin::unnamed;
  if (is_one_of(function, {"to", "cuda", "to_empty", "_apply"})) return BlockOrigin::parameters;
  return is_one_of(function, {"_call_impl", "_wrapped_call_impl"}) ? BlockOrigin::forward : BlockOrigin::unnamed;
}

// Innermost first, as torch writes them.
BlockOrigin origin_of(const PicklePart& holder) {
  const PicklePart frames = holder["frames"];
  if (!frames.exists() || frames.is_none()) return BlockOrigin::unnamed;
  for (std::size_t i = 0; i < frames.size(); ++i) {
    const PicklePart frame = frames.at(i);
    const BlockOrigin origin = origin_of_frame(frame["filename"].as_text(), frame["name"].as_text());
    if (origin != BlockOrigin::unnamed) return origin;
  }
  return BlockOrigin::unnamed;
}

// Blocks in use: freed ones whose stream has not come to it yet count as allocated.
bool is_live(std::string_view state) {
  return is_one_of(state, {"active_allocated", "active_pending_free", "active_awaiting_free"});
}

// One device's segments.
struct Segments {
  Live live;
  Bytes requested;
  Bytes reserved;
};

void add_segment(const PicklePart& segment, Segments& segments) {
  segments.reserved += Bytes{segment["total_size"].as_count()};
  std::uint64_t address = segment["address"].as_count();
  const PicklePart blocks = segment["blocks"];
  for (std::size_t i = 0; i < blocks.size(); ++i) {
    const PicklePart block = blocks.at(i);
    const Bytes size{block["size"].as_count()};
    // Older files have no addresses of blocks: they follow each other.
    if (block["address"].exists()) address = block["address"].as_count();
    if (is_live(block["state"].as_text())) {
      segments.live[address] = {size, origin_of(block)};
      segments.requested += block["requested_size"].exists() ? Bytes{block["requested_size"].as_count()} : size;
    }
    address = checked_add(address, size.count());
  }
}

void add(BlocksHeld& held, const Block& block) {
  held.by_origin[static_cast<std::size_t>(block.origin)] += block.size;
}

BlocksHeld sum_of(const Live& live) {
  BlocksHeld held;
  for (const auto& [address, block] : live) add(held, block);
  return held;
}

// Entries say what was asked for (CUDACachingAllocator.cpp, record_trace: orig_size, requested_size); blocks are multiples of 512.
Bytes block_size(const PicklePart& entry) {
  return Bytes{round_up(entry["size"].as_count(), 512)};
}

// Frees are of blocks: what is known of one is where it was allocated, in the trace or in the snapshot.
class Trace {
 public:
  explicit Trace(const PicklePart& entries) : entries_(entries) {}

  // What was there before the first entry: from the end backwards.
  void rewind(const Segments& end) {
    live_ = end.live;
    reserved_ = end.reserved;
    for (std::size_t i = entries_.size(); i-- > 0;) {
      const PicklePart entry = entries_.at(i);
      const std::string_view action = entry["action"].as_text();
      if (action == "alloc") {
        live_.erase(entry["addr"].as_count());
      } else if (action == "free_completed") {
        live_[entry["addr"].as_count()] = {block_size(entry), BlockOrigin::unnamed};
      } else if (const int sign = segment_sign(action); sign != 0) {
        change_reserved(entry, -sign);
      }
    }
  }

  void play(MemorySnapshot& snapshot) {
    BlocksHeld now = sum_of(live_);
    snapshot.at_peak = now;
    snapshot.peak_reserved = reserved_;
    for (std::size_t i = 0; i < entries_.size(); ++i) {
      const PicklePart entry = entries_.at(i);
      const std::string_view action = entry["action"].as_text();
      if (action == "alloc") {
        const Block block{block_size(entry), origin_of(entry)};
        release(entry["addr"].as_count(), now);
        live_.emplace(entry["addr"].as_count(), block);
        add(now, block);
        if (now.sum() > snapshot.at_peak.sum()) snapshot.at_peak = now;
      } else if (action == "free_completed") {
        release(entry["addr"].as_count(), now);
      } else if (const int sign = segment_sign(action); sign != 0) {
        change_reserved(entry, sign);
        snapshot.peak_reserved = std::max(snapshot.peak_reserved, reserved_);
      }
    }
  }

 private:
  static int segment_sign(std::string_view action) {
    if (is_one_of(action, {"segment_alloc", "segment_map"})) return 1;
    return is_one_of(action, {"segment_free", "segment_unmap"}) ? -1 : 0;
  }

  void release(std::uint64_t address, BlocksHeld& now) {
    const auto found = live_.find(address);
    if (found == live_.end()) return;
    now.by_origin[static_cast<std::size_t>(found->second.origin)] -= found->second.size;
    live_.erase(found);
  }

  void change_reserved(const PicklePart& entry, int sign) {
    const Bytes size{entry["size"].as_count()};
    if (sign < 0 && size > reserved_) entry["size"].fail_expected("no more than what is reserved then");
    reserved_ = sign > 0 ? reserved_ + size : reserved_ - size;
  }

  PicklePart entries_;
  Live live_;
  Bytes reserved_;
};

}  // namespace

std::string_view name(BlockOrigin origin) {
  switch (origin) {
    case BlockOrigin::parameters:
      return "parameters";
    case BlockOrigin::optimizer_states:
      return "optimizer states";
    case BlockOrigin::forward:
      return "forward";
    case BlockOrigin::backward:
      return "backward";
    case BlockOrigin::unnamed:
      return "unnamed";
  }
  SHARDPLAN_CHECK(false, "an unknown origin");
  return {};
}

Bytes BlocksHeld::sum() const {
  Bytes all;
  for (const Bytes bytes : by_origin) all += bytes;
  return all;
}

MemorySnapshot read_memory_snapshot(std::string_view bytes, std::string source) {
  const PickleDocument document(bytes, std::move(source));
  const PicklePart root = document.root();
  std::map<std::uint64_t, Segments> devices;
  const PicklePart segments = root["segments"];
  for (std::size_t i = 0; i < segments.size(); ++i) {
    const PicklePart segment = segments.at(i);
    add_segment(segment, devices[segment["device"].as_count_or_zero()]);
  }
  if (devices.empty()) segments.fail_expected("at least one segment");
  const auto device = std::max_element(devices.begin(), devices.end(), [](const auto& a, const auto& b) {
    return a.second.reserved < b.second.reserved;
  });
  MemorySnapshot snapshot;
  snapshot.held = sum_of(device->second.live);
  snapshot.requested = device->second.requested;
  snapshot.reserved = device->second.reserved;
  snapshot.at_peak = snapshot.held;
  snapshot.peak_reserved = snapshot.reserved;
  const PicklePart traces = root["device_traces"];
  if (!traces.exists() || device->first >= traces.size() || traces.at(device->first).size() == 0) return snapshot;
  snapshot.has_trace = true;
  Trace trace(traces.at(device->first));
  trace.rewind(device->second);
  trace.play(snapshot);
  // Blocks that are not split keep some bytes more than the trace says.
  if (snapshot.held.sum() > snapshot.at_peak.sum()) snapshot.at_peak = snapshot.held;
  return snapshot;
}

}  // namespace shardplan
