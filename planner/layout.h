// The layout: catalog x mesh -> which elements of each unit's flat buffers each rank owns.
//
// ALL partition arithmetic of the project is in this folder's layout.{h,cpp}: nothing else divides by a world size.
//
// A unit has one flat buffer for each (dtype, trainable) it contains, in order of first appearance; gradients and
// optimizer states mirror it. Inside a buffer
//   1. tensors follow in catalog order, each starting at a multiple of 64 elements;
//   2. the whole is padded to a multiple of granule x shards; every shard has the same length;
//   3. padding (between tensors and at the end) is explicit, zero, and in no digest or norm.
// The layout does not depend on the stage: a stage changes where bytes live, never what they are.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "base/dtype.h"
#include "planner/catalog.h"

namespace shardplan {

inline constexpr std::uint64_t kTensorAlignment = 64;  // elements

// The element count on which shard cuts fall: the largest of 2048, 64, 1 for which padding `used` elements to a
// multiple of it times `shards` adds less than used/16; 1 if none does. 2048 elements are 4 KiB in 16 bit. Buffers of a
// fixed type of 4 or 6 bits use at least 4, so that a shard is whole bytes.
std::uint64_t granule_elements(std::uint64_t used_elements, std::uint64_t shards);

// A half-open range of elements of a flat buffer.
struct Range {
  std::uint64_t begin = 0;
  std::uint64_t end = 0;
  std::uint64_t size() const { return end - begin; }
  bool empty() const { return end <= begin; }
  bool operator==(const Range&) const = default;
};

Range intersect(Range a, Range b);

struct TensorSlot {
  std::uint32_t tensor = 0;  // index into UnitRun::tensors; tied tensors have no slot
  Range range;               // of the flat buffer
  bool operator==(const TensorSlot&) const = default;
};

struct BufferLayout {
  // What the model fixes; empty where the policy decides (Tensor::dtype).
  std::optional<DType> dtype;
  bool trainable = true;
  std::vector<TensorSlot> tensors;
  std::uint64_t tensor_elements = 0;  // without any padding
  std::uint64_t used_elements = 0;    // up to the end of the last tensor that has elements
  std::uint64_t granule = 1;
  std::uint64_t padded_elements = 0;  // a multiple of granule x shards
  std::uint64_t shard_elements = 0;   // padded_elements / shards
  bool operator==(const BufferLayout&) const = default;
};

struct UnitLayout {
  std::vector<BufferLayout> buffers;
  bool operator==(const UnitLayout&) const = default;
};

// A run of equal units, as in the catalog.
struct LayoutRun {
  std::uint64_t first_unit = 0;
  std::uint64_t count = 1;
  UnitLayout unit;
  bool operator==(const LayoutRun&) const = default;
};

struct Layout {
  std::uint64_t shards = 1;    // ranks of a shard group
  std::uint64_t replicas = 1;  // shard groups
  std::uint64_t units = 0;
  std::vector<LayoutRun> runs;
  bool operator==(const Layout&) const = default;
};

Layout make_layout(const Catalog& catalog, std::uint64_t shards, std::uint64_t replicas);

// The elements of the buffer that shard `shard` owns. 0 <= shard < layout.shards.
Range shard_range(const BufferLayout& buffer, std::uint64_t shard);

// The part of a shard that replica `replica` reduces when groups combine their sums: the shard's granules split as
// evenly as granules allow, relative to the start of the shard. Empty for some replicas when there are few granules.
Range replica_range(const BufferLayout& buffer, std::uint64_t replica, std::uint64_t replicas);

// Elements of the buffer that are padding, in order of place.
std::vector<Range> padding(const BufferLayout& buffer);

// Which of a world's ranks: rank = replica * shards + shard.
struct RankPlace {
  std::uint64_t replica = 0;
  std::uint64_t shard = 0;
};
RankPlace place_of_rank(const Layout& layout, std::uint64_t rank);

// The run that holds `unit` (binary search).
const LayoutRun& run_of_unit(const Layout& layout, std::uint64_t unit);
std::size_t run_index_of_unit(const Layout& layout, std::uint64_t unit);

}  // namespace shardplan
