#include "planner/layout.h"

#include <algorithm>

#include "base/error.h"

namespace shardplan {
namespace {

UnitLayout layout_of_unit(const UnitRun& run, std::uint64_t shards) {
  UnitLayout unit;
  for (std::size_t i = 0; i < run.tensors.size(); ++i) {
    const Tensor& tensor = run.tensors[i];
    if (!tensor.tied_to.empty()) continue;
    auto buffer = std::find_if(unit.buffers.begin(), unit.buffers.end(), [&](const BufferLayout& candidate) {
      return candidate.dtype == tensor.dtype && candidate.trainable == tensor.trainable;
    });
    if (buffer == unit.buffers.end()) {
      buffer = unit.buffers.insert(buffer,
                                   BufferLayout{.dtype = tensor.dtype, .trainable = tensor.trainable, .tensors = {}});
      buffer->tensors.reserve(run.tensors.size() - i);
    }
    const std::uint64_t count = elements(tensor.shape);
    const std::uint64_t begin = round_up(buffer->used_elements, kTensorAlignment);
    const std::uint64_t end = checked_add(begin, count);
    buffer->tensors.push_back({static_cast<std::uint32_t>(i), {begin, end}});
    buffer->tensor_elements = checked_add(buffer->tensor_elements, count);
    // A tensor of 0 elements takes no place: it must not leave alignment behind it.
    if (count > 0) buffer->used_elements = end;
  }
  for (BufferLayout& buffer : unit.buffers) {
    buffer.granule = granule_elements(buffer.used_elements, shards);
    // A shard is whole bytes: 4 elements are, at 4 and at 6 bits.
    if (buffer.dtype && bits(*buffer.dtype) % 8 != 0) buffer.granule = std::max<std::uint64_t>(buffer.granule, 4);
    buffer.padded_elements = round_up(buffer.used_elements, checked_multiply(buffer.granule, shards));
    buffer.shard_elements = buffer.padded_elements / shards;
  }
  return unit;
}

}  // namespace

std::uint64_t granule_elements(std::uint64_t used_elements, std::uint64_t shards) {
  for (const std::uint64_t granule : {std::uint64_t{2048}, std::uint64_t{64}}) {
    const std::uint64_t remainder = used_elements % checked_multiply(granule, shards);
    const std::uint64_t padding = remainder == 0 ? 0 : granule * shards - remainder;
    if (checked_multiply(padding, 16) < used_elements) return granule;
  }
  return 1;
}

Range intersect(Range a, Range b) {
  const Range both{std::max(a.begin, b.begin), std::min(a.end, b.end)};
  return both.begin < both.end ? both : Range{both.begin, both.begin};
}

Layout make_layout(const Catalog& catalog, std::uint64_t shards, std::uint64_t replicas) {
  SHARDPLAN_CHECK(shards > 0 && replicas > 0, "a layout needs at least one shard and one replica");
  Layout layout{.shards = shards, .replicas = replicas, .units = 0, .runs = {}};
  layout.runs.reserve(catalog.runs.size());
  for (const UnitRun& run : catalog.runs) {
    layout.runs.push_back({layout.units, run.count, layout_of_unit(run, shards)});
    layout.units = checked_add(layout.units, run.count);
  }
  return layout;
}

Range shard_range(const BufferLayout& buffer, std::uint64_t shard) {
  const Range range{shard * buffer.shard_elements, (shard + 1) * buffer.shard_elements};
  SHARDPLAN_CHECK(range.end <= buffer.padded_elements, "a shard beyond the end of its buffer");
  return range;
}

Range replica_range(const BufferLayout& buffer, std::uint64_t replica, std::uint64_t replicas) {
  SHARDPLAN_CHECK(replica < replicas, "a replica beyond the number of replicas");
  const std::uint64_t granules = buffer.shard_elements / buffer.granule;
  const std::uint64_t each = granules / replicas;
  const std::uint64_t longer = granules % replicas;  // the first ones take one more
  const std::uint64_t begin = replica * each + std::min(replica, longer);
  const std::uint64_t end = begin + each + (replica < longer ? 1 : 0);
  return {begin * buffer.granule, end * buffer.granule};
}

std::vector<Range> padding(const BufferLayout& buffer) {
  std::vector<Range> ranges;
  std::uint64_t end = 0;
  for (const TensorSlot& slot : buffer.tensors) {
    if (slot.range.empty()) continue;
    if (slot.range.begin > end) ranges.push_back({end, slot.range.begin});
    end = slot.range.end;
  }
  if (buffer.padded_elements > end) ranges.push_back({end, buffer.padded_elements});
  return ranges;
}

RankPlace place_of_rank(const Layout& layout, std::uint64_t rank) {
  SHARDPLAN_CHECK(rank / layout.shards < layout.replicas, "a rank beyond the world");
  return {rank / layout.shards, rank % layout.shards};
}

std::size_t run_index_of_unit(const Layout& layout, std::uint64_t unit) {
  const auto after = std::upper_bound(layout.runs.begin(), layout.runs.end(), unit,
                                      [](std::uint64_t u, const LayoutRun& run) { return u < run.first_unit; });
  SHARDPLAN_CHECK(after != layout.runs.begin() && unit < layout.units, "a unit beyond the end of the layout");
  return static_cast<std::size_t>(after - layout.runs.begin()) - 1;
}

const LayoutRun& run_of_unit(const Layout& layout, std::uint64_t unit) {
  return layout.runs[run_index_of_unit(layout, unit)];
}

}  // namespace shardplan
