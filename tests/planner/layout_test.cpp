#include "planner/layout.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <boost/multiprecision/cpp_int.hpp>
#include <string>
#include <vector>

#include "base/checked.h"
#include "base/error.h"
#include "tests/support/catalogs.h"
#include "tests/support/property.h"

namespace shardplan {
namespace {

using Wide = boost::multiprecision::uint128_t;
using test_support::any_catalog;
using test_support::check_property;

std::vector<std::uint64_t> worlds() {
  std::vector<std::uint64_t> all{1000, 4096};
  for (std::uint64_t world = 1; world <= 64; ++world) all.push_back(world);
  return all;
}

rc::Gen<std::uint64_t> any_world() {
  return rc::gen::elementOf(worlds());
}

// By the definition of the header, in exact arithmetic.
std::uint64_t granule_by_definition(const Wide& used, const Wide& shards) {
  for (const std::uint64_t granule : {2048U, 64U}) {
    const Wide multiple = granule * shards;
    const Wide padding = (multiple - used % multiple) % multiple;
    if (padding * 16 < used) return granule;
  }
  return 1;
}

// Of a buffer: shards are whole bytes, which 4 elements are at 4 and at 6 bits.
std::uint64_t granule_of(const BufferLayout& buffer, std::uint64_t shards) {
  const std::uint64_t granule = granule_by_definition(buffer.used_elements, shards);
  return buffer.dtype && bits(*buffer.dtype) < 8 ? std::max<std::uint64_t>(granule, 4) : granule;
}

Catalog catalog_with(std::vector<Tensor> tensors, std::uint64_t units = 1) {
  CatalogBuilder builder("test", "tensors");
  builder.add_run("layers", 0, units, std::move(tensors));
  return builder.finish();
}

Tensor tensor_with(std::uint64_t elements) {
  return {.name = "weight", .shape = {elements}};
}

BufferLayout buffer_of(std::uint64_t elements, std::uint64_t shards) {
  return make_layout(catalog_with({tensor_with(elements)}), shards, 1).runs.at(0).unit.buffers.at(0);
}

// Everything the header says of one buffer, of the tensors that are in it. What is wrong, or "".
std::string problem_of(const BufferLayout& buffer, const std::vector<Tensor>& tensors, std::uint64_t shards) {
  std::uint64_t end = 0;
  std::uint64_t sum = 0;
  std::size_t slot = 0;
  std::vector<Range> gaps;
  for (std::size_t i = 0; i < tensors.size(); ++i) {
    const Tensor& tensor = tensors[i];
    if (!tensor.tied_to.empty() || tensor.dtype != buffer.dtype || tensor.trainable != buffer.trainable) continue;
    if (slot == buffer.tensors.size()) return "a tensor has no slot";
    const TensorSlot& found = buffer.tensors[slot++];
    if (found.tensor != i) return "a slot of another tensor: order";
    const std::uint64_t begin = round_up(end, 64);
    if (found.range != Range{begin, begin + elements(tensor.shape)})
      return "a tensor is not at the next multiple of 64";
    if (found.range.empty()) continue;  // takes no place
    if (begin > end) gaps.push_back({end, begin});
    end = found.range.end;
    sum += found.range.size();
  }
  if (slot != buffer.tensors.size()) return "a slot without a tensor";
  if (buffer.tensor_elements != sum || buffer.used_elements != end) return "element counts";
  if (buffer.granule != granule_of(buffer, shards)) return "granule";
  if (buffer.padded_elements != round_up(end, buffer.granule * shards)) return "padded elements";
  if (buffer.shard_elements * shards != buffer.padded_elements) return "shard elements";
  if (buffer.padded_elements > end) gaps.push_back({end, buffer.padded_elements});
  return padding(buffer) == gaps ? "" : "padding is not what lies between tensors and after them";
}

std::string shards_problem(const BufferLayout& buffer, std::uint64_t shards) {
  std::uint64_t next = 0;
  for (std::uint64_t shard = 0; shard < shards; ++shard) {
    const Range range = shard_range(buffer, shard);
    if (range.begin != next || range.size() != buffer.shard_elements) return "shards do not follow each other evenly";
    if (range.begin % buffer.granule != 0) return "a shard cut is not on a granule";
    next = range.end;
  }
  return next == buffer.padded_elements ? "" : "shards do not cover the buffer";
}

std::string replicas_problem(const BufferLayout& buffer, std::uint64_t replicas) {
  std::uint64_t next = 0;
  std::uint64_t least = UINT64_MAX;
  std::uint64_t most = 0;
  for (std::uint64_t replica = 0; replica < replicas; ++replica) {
    const Range range = replica_range(buffer, replica, replicas);
    if (range.size() % buffer.granule != 0) return "a replica's part is cut inside a granule";
    least = std::min(least, range.size());
    most = std::max(most, range.size());
    if (range.empty()) continue;
    if (range.begin != next) return "replicas' parts do not follow each other";
    next = range.end;
  }
  if (next != buffer.shard_elements) return "replicas' parts do not cover the shard";
  return most - least <= buffer.granule ? "" : "replicas' parts differ by more than a granule";
}

// One flat buffer for each (dtype, trainable) in order of first appearance.
std::vector<std::pair<std::optional<DType>, bool>> kinds_of(const std::vector<Tensor>& tensors) {
  std::vector<std::pair<std::optional<DType>, bool>> kinds;
  for (const Tensor& tensor : tensors) {
    const std::pair kind(tensor.dtype, tensor.trainable);
    if (tensor.tied_to.empty() && std::find(kinds.begin(), kinds.end(), kind) == kinds.end()) kinds.push_back(kind);
  }
  return kinds;
}

std::string layout_problem(const Layout& layout, const Catalog& catalog) {
  if (layout.units != unit_count(catalog) || layout.runs.size() != catalog.runs.size()) return "units or runs";
  std::uint64_t unit = 0;
  for (std::size_t i = 0; i < layout.runs.size(); ++i) {
    const LayoutRun& run = layout.runs[i];
    const std::vector<Tensor>& tensors = catalog.runs[i].tensors;
    if (run.first_unit != unit || run.count != catalog.runs[i].count) return "a run's place";
    unit += run.count;
    std::vector<std::pair<std::optional<DType>, bool>> kinds;
    for (const BufferLayout& buffer : run.unit.buffers) {
      kinds.emplace_back(buffer.dtype, buffer.trainable);
      if (const std::string problem = problem_of(buffer, tensors, layout.shards); !problem.empty()) return problem;
      if (const std::string problem = shards_problem(buffer, layout.shards); !problem.empty()) return problem;
      if (const std::string problem = replicas_problem(buffer, layout.replicas); !problem.empty()) return problem;
    }
    if (kinds != kinds_of(tensors)) return "buffers are not the kinds of tensors in order";
  }
  return "";
}

TEST(Granule, IsTheLargestThatWastesLittle) {
  EXPECT_EQ(granule_elements(0, 1), 1U);
  EXPECT_EQ(granule_elements(1, 1), 1U);
  EXPECT_EQ(granule_elements(63, 1), 64U);
  EXPECT_EQ(granule_elements(60, 1), 1U);   // 4 of padding are 1/15
  EXPECT_EQ(granule_elements(61, 1), 64U);  // 3 are less than 1/16
  EXPECT_EQ(granule_elements(64, 1), 64U);
  EXPECT_EQ(granule_elements(64, 2), 1U);
  EXPECT_EQ(granule_elements(2048, 1), 2048U);
  EXPECT_EQ(granule_elements(4096, 2), 2048U);
  EXPECT_EQ(granule_elements(131072, 64), 2048U);
  EXPECT_EQ(granule_elements(1024, 17), 1U);  // 64 of padding are exactly 1/16, which is not less
  EXPECT_EQ(granule_elements(1025, 17), 64U);
}

TEST(Granule, AgreesWithItsDefinition) {
  check_property(20'000, [] {
    const std::uint64_t shards = *any_world();
    const auto near_multiple = rc::gen::map(
        rc::gen::tuple(rc::gen::inRange<std::uint64_t>(1, 40), rc::gen::element<std::uint64_t>(1, 64, 2048),
                       rc::gen::inRange<std::uint64_t>(0, 5)),
        [=](const auto& drawn) {
          const std::uint64_t multiple = std::get<0>(drawn) * std::get<1>(drawn) * shards;
          return std::max<std::uint64_t>(multiple + 2, std::get<2>(drawn)) - std::get<2>(drawn);
        });
    const auto used = *rc::gen::oneOf(near_multiple, rc::gen::inRange<std::uint64_t>(0, 1 << 20),
                                      rc::gen::inRange<std::uint64_t>(0, 1ULL << 40));
    RC_ASSERT(granule_elements(used, shards) == granule_by_definition(used, shards));
  });
}

// The last `used` for which padding is exactly used/16 and the first for which it is less.
TEST(Granule, TurnsExactlyWherePaddingFallsBelowASixteenth) {
  for (const std::uint64_t shards : worlds()) {
    for (const std::uint64_t granule : {64U, 2048U}) {
      const std::uint64_t multiple = granule * shards;
      for (const std::uint64_t total : {multiple, 2 * multiple, 5 * multiple}) {
        // used + padding = total: padding x 16 < used where used x 17 > total x 16.
        const std::uint64_t first = total * 16 / 17 + 1;
        EXPECT_GE(granule_elements(first, shards), granule) << first << " over " << shards;
        EXPECT_EQ(granule_elements(first - 1, shards), granule_by_definition(first - 1, shards));
      }
    }
  }
}

TEST(Layout, EveryWorldHoldsWhatTheHeaderSays) {
  const std::uint64_t sizes[] = {0,      1,      2,        5,          63,         64,        65,    1009,
                                 1023,   1024,   2047,     2048,       2049,       4096,      65537, 100003,
                                 104729, 131072, 16777213, 4294967296, 4294967311, 6710886400};
  for (const std::uint64_t shards : worlds()) {
    for (const std::uint64_t size : sizes) {
      const Catalog catalog = catalog_with({tensor_with(size)}, 3);
      for (const std::uint64_t replicas : {1U, 2U, 7U}) {
        ASSERT_EQ(layout_problem(make_layout(catalog, shards, replicas), catalog), "")
            << size << " elements, " << shards << " x " << replicas;
      }
    }
  }
}

TEST(Layout, EveryCatalogHoldsWhatTheHeaderSays) {
  check_property(400, [] {
    const auto catalog = *any_catalog();
    const std::uint64_t shards = *any_world();
    const auto replicas = *rc::gen::element<std::uint64_t>(1, 2, 3, 8, 64);
    const Layout layout = make_layout(catalog, shards, replicas);
    RC_ASSERT(layout.shards == shards);
    RC_ASSERT(layout.replicas == replicas);
    const std::string problem = layout_problem(layout, catalog);
    RC_ASSERT(problem == "");
  });
}

TEST(Layout, PaddingAtTheEndIsUnderASixteenthOrUnderOneSmallGranuleForEachShard) {
  check_property(400, [] {
    const auto catalog = *any_catalog();
    const std::uint64_t shards = *any_world();
    for (const LayoutRun& run : make_layout(catalog, shards, 1).runs) {
      for (const BufferLayout& buffer : run.unit.buffers) {
        const std::uint64_t added = buffer.padded_elements - buffer.used_elements;
        RC_ASSERT((buffer.granule >= 64 ? Wide{added} * 16 < buffer.used_elements : added < buffer.granule * shards));
        if (buffer.dtype) RC_ASSERT(buffer.shard_elements * bits(*buffer.dtype) % 8 == 0U);
      }
    }
  });
}

TEST(Layout, FoldedRunsAreTheExpandedOnes) {
  check_property(300, [] {
    const auto catalog = *any_catalog();
    const std::uint64_t shards = *any_world();
    const Layout folded = make_layout(catalog, shards, 2);
    const Layout expanded = make_layout(test_support::unfolded(catalog), shards, 2);
    RC_ASSERT(folded.units == expanded.units);
    RC_ASSERT(expanded.runs.size() == expanded.units);
    for (std::uint64_t unit = 0; unit < folded.units; ++unit) {
      const LayoutRun& run = run_of_unit(folded, unit);
      RC_ASSERT(run.first_unit <= unit);
      RC_ASSERT(unit < run.first_unit + run.count);
      RC_ASSERT(&folded.runs[run_index_of_unit(folded, unit)] == &run);
      RC_ASSERT(run.unit == run_of_unit(expanded, unit).unit);
    }
  });
}

// What a person computes by hand.
TEST(Layout, OfAMixedUnit) {
  const std::vector<Tensor> tensors{{.name = "a", .shape = {10, 10}},
                                    {.name = "frozen", .shape = {7}, .trainable = false},
                                    {.name = "router", .shape = {3}, .dtype = DType::f32},
                                    {.name = "tied", .shape = {10, 10}, .tied_to = "layers.0.a"},
                                    {.name = "none", .shape = {0, 5}},
                                    {.name = "scalar", .shape = {}}};
  const Layout layout = make_layout(catalog_with(tensors), 3, 1);
  const std::vector<BufferLayout>& buffers = layout.runs.at(0).unit.buffers;
  ASSERT_EQ(buffers.size(), 3U);
  const std::vector<TensorSlot> slots{{0, {0, 100}}, {4, {128, 128}}, {5, {128, 129}}};
  EXPECT_EQ(buffers[0], (BufferLayout{std::nullopt, true, slots, 101, 129, 1, 129, 43}));
  EXPECT_EQ(buffers[1], (BufferLayout{std::nullopt, false, {{1, {0, 7}}}, 7, 7, 1, 9, 3}));
  EXPECT_EQ(buffers[2], (BufferLayout{DType::f32, true, {{2, {0, 3}}}, 3, 3, 1, 3, 1}));
  EXPECT_EQ(padding(buffers[0]), (std::vector<Range>{{100, 128}}));
  EXPECT_EQ(padding(buffers[1]), (std::vector<Range>{{7, 9}}));
  EXPECT_EQ(padding(buffers[2]), std::vector<Range>{});
  EXPECT_EQ(shard_range(buffers[1], 2), (Range{6, 9}));
}

TEST(Layout, ReplicasShareGranulesEvenly) {
  const BufferLayout buffer = buffer_of(40960, 2);
  ASSERT_EQ(buffer.granule, 2048U);
  ASSERT_EQ(buffer.shard_elements, 2048U * 10);
  EXPECT_EQ(replicas_problem(buffer, 4), "");
  EXPECT_EQ(replica_range(buffer, 0, 1), (Range{0, 20480}));
  for (const std::uint64_t replicas : worlds()) EXPECT_EQ(replicas_problem(buffer, replicas), "") << replicas;
  EXPECT_EQ(replicas_problem(buffer_of(0, 2), 3), "");
  EXPECT_EQ(replicas_problem(buffer_of(1, 2), 3), "");
}

TEST(Layout, RanksOfAGroupAreConsecutive) {
  const Layout layout = make_layout(catalog_with({tensor_with(100)}), 4, 3);
  for (std::uint64_t rank = 0; rank < 12; ++rank) {
    EXPECT_EQ(place_of_rank(layout, rank).replica, rank / 4);
    EXPECT_EQ(place_of_rank(layout, rank).shard, rank % 4);
  }
}

TEST(Layout, ATrillionUnitsAreOneRun) {
  const Catalog catalog = catalog_with({tensor_with(5)}, 1'000'000'000'000);
  const Layout layout = make_layout(catalog, 8, 1);
  ASSERT_EQ(layout.runs.size(), 1U);
  EXPECT_EQ(layout.units, 1'000'000'000'000U);
  EXPECT_EQ(run_index_of_unit(layout, 999'999'999'999), 0U);
}

TEST(Layout, OverflowIsAnErrorNotAWrap) {
  constexpr std::uint64_t huge = 1ULL << 63;
  EXPECT_THROW(make_layout(catalog_with({{.name = "a", .shape = {1ULL << 32, 1ULL << 32}}}), 1, 1), ArithmeticOverflow);
  EXPECT_THROW(make_layout(catalog_with({tensor_with(huge), tensor_with(huge)}), 1, 1), ArithmeticOverflow);
  EXPECT_THROW(make_layout(catalog_with({tensor_with(UINT64_MAX), tensor_with(1)}), 1, 1), ArithmeticOverflow);
  EXPECT_THROW(make_layout(catalog_with({tensor_with(UINT64_MAX)}), 1000, 1), ArithmeticOverflow);
  Catalog many = catalog_with({tensor_with(1)}, huge);
  many.runs.push_back(many.runs[0]);
  EXPECT_THROW(make_layout(many, 1, 1), ArithmeticOverflow);
  EXPECT_EQ(make_layout(catalog_with({tensor_with(huge)}), 2, 1).runs[0].unit.buffers[0].shard_elements, huge / 2);
}

TEST(Ranges, Intersect) {
  EXPECT_EQ(intersect({0, 10}, {5, 15}), (Range{5, 10}));
  EXPECT_EQ(intersect({5, 15}, {0, 10}), (Range{5, 10}));
  EXPECT_EQ(intersect({0, 20}, {5, 15}), (Range{5, 15}));
  EXPECT_TRUE(intersect({0, 5}, {5, 10}).empty());
  EXPECT_TRUE(intersect({0, 5}, {7, 10}).empty());
  EXPECT_TRUE(intersect({7, 10}, {0, 5}).empty());
  EXPECT_TRUE(intersect({3, 3}, {0, 5}).empty());
}

}  // namespace
}  // namespace shardplan
