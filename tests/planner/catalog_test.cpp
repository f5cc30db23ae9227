#include "planner/catalog.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <set>
#include <string>
#include <vector>

#include "base/error.h"
#include "base/glob.h"
#include "tests/support/catalogs.h"
#include "tests/support/config_error.h"
#include "tests/support/property.h"

namespace shardplan {
namespace {

using test_support::any_catalog;
using test_support::check_property;

struct Named {
  std::string unit;
  std::string name;
  Tensor tensor;
  bool operator==(const Named&) const = default;
};

// Every tensor with its unit's name and its own, unit by unit, through names alone.
std::vector<Named> expanded(const Catalog& catalog) {
  std::vector<Named> all;
  for (const UnitRun& run : catalog.runs) {
    for (std::uint64_t i = 0; i < run.count; ++i) {
      const std::string unit = run.numbered ? run.name + "." + std::to_string(run.first_number + i) : run.name;
      for (const Tensor& tensor : run.tensors) {
        all.push_back({unit, run.numbered ? unit + "." + tensor.name : tensor.name, tensor});
      }
    }
  }
  return all;
}

// Whether the second run continues the first: it would have been one.
bool could_be_one(const UnitRun& a, const UnitRun& b) {
  return a.numbered && b.numbered && a.name == b.name && a.first_number + a.count == b.first_number &&
         a.tensors == b.tensors;
}

Tensor tensor_of(std::string name, Shape shape = {4}) {
  return {.name = std::move(name), .shape = std::move(shape)};
}
Tensor tied_tensor(std::string name, std::string owner, Shape shape = {4}) {
  return {.name = std::move(name), .shape = std::move(shape), .tied_to = std::move(owner)};
}

Catalog blocks(std::uint64_t count) {
  CatalogBuilder builder("test", "tensors");
  builder.begin_unit("embed");
  builder.add(tensor_of("embed.weight", {100, 8}));
  builder.add_run("layers", 0, count, {tensor_of("w", {8, 8}), tensor_of("b", {8})});
  builder.begin_unit("head");
  builder.add(tensor_of("head.weight", {100, 8}));
  return builder.finish();
}

TEST(Shapes, ElementsAreTheProduct) {
  EXPECT_EQ(elements({}), 1U);
  EXPECT_EQ(elements({7}), 7U);
  EXPECT_EQ(elements({2, 3, 4, 5, 6}), 720U);
  EXPECT_EQ(elements({5, 0, 3}), 0U);
  EXPECT_EQ(elements({1ULL << 32, (1ULL << 32) - 1}), (1ULL << 32) * ((1ULL << 32) - 1));
  EXPECT_THROW(elements({1ULL << 32, 1ULL << 32}), ArithmeticOverflow);
  // Wherever the 0 stands.
  EXPECT_EQ(elements({0, 1ULL << 32, 1ULL << 32}), 0U);
  EXPECT_EQ(elements({1ULL << 32, 1ULL << 32, 0}), 0U);
}

TEST(Catalogs, CountUnitsTensorsAndElements) {
  const Catalog catalog = blocks(12);
  EXPECT_EQ(unit_count(catalog), 14U);
  EXPECT_EQ(tensor_count(catalog), 26U);
  EXPECT_EQ(parameter_elements(catalog), 800U + 12 * 72 + 800);
  EXPECT_EQ(trainable_elements(catalog), parameter_elements(catalog));
  EXPECT_EQ(unit_count(Catalog{}), 0U);
  EXPECT_EQ(parameter_elements(Catalog{}), 0U);
}

TEST(Catalogs, CountATiedTensorOnceAndAFrozenOneApart) {
  Catalog catalog = blocks(2);
  catalog.runs[2].tensors[0].tied_to = "embed.weight";
  EXPECT_EQ(parameter_elements(catalog), 800U + 2 * 72);
  EXPECT_EQ(tensor_count(catalog), 6U);
  catalog.runs[1].tensors[0].trainable = false;
  EXPECT_EQ(trainable_elements(catalog), 800U + 2 * 8);
  EXPECT_EQ(parameter_elements(catalog), 800U + 2 * 72);
}

TEST(Catalogs, CountsThatDoNotFitAreErrors) {
  EXPECT_EQ(parameter_elements(test_support::uniform_catalog(1ULL << 31, 1ULL << 32)), 1ULL << 63);
  EXPECT_THROW(parameter_elements(test_support::uniform_catalog(1ULL << 32, 1ULL << 32)), ArithmeticOverflow);
  EXPECT_THROW(trainable_elements(test_support::uniform_catalog(1ULL << 32, 1ULL << 32)), ArithmeticOverflow);
  Catalog two = test_support::uniform_catalog(1ULL << 63, 1);
  two.runs.push_back(two.runs[0]);
  EXPECT_THROW(unit_count(two), ArithmeticOverflow);
  EXPECT_THROW(tensor_count(two), ArithmeticOverflow);
}

TEST(Catalogs, NamesArePutTogether) {
  const Catalog catalog = blocks(12);
  EXPECT_EQ(unit_name(catalog.runs[0], 0), "embed");
  EXPECT_EQ(unit_name(catalog.runs[1], 11), "layers.11");
  EXPECT_EQ(tensor_name(catalog.runs[1], 3, catalog.runs[1].tensors[1]), "layers.3.b");
  EXPECT_EQ(tensor_name(catalog.runs[2], 0, catalog.runs[2].tensors[0]), "head.weight");
  const auto expect_place = [&](std::uint64_t unit, std::size_t run, std::uint64_t index) {
    EXPECT_EQ(place_of_unit(catalog, unit).run, run) << unit;
    EXPECT_EQ(place_of_unit(catalog, unit).index, index) << unit;
  };
  expect_place(0, 0, 0);
  expect_place(1, 1, 0);
  expect_place(12, 1, 11);
  expect_place(13, 2, 0);
}

TEST(Catalogs, VisitingIsTheExpansion) {
  check_property(200, [] {
    const auto catalog = *any_catalog();
    std::vector<std::pair<std::string, Tensor>> visited;
    for_each_tensor(catalog,
                    [&](const std::string& name, const Tensor& tensor) { visited.emplace_back(name, tensor); });
    std::vector<std::pair<std::string, Tensor>> wanted;
    for (Named& named : expanded(catalog)) wanted.emplace_back(named.name, named.tensor);
    RC_ASSERT(visited == wanted);
    RC_ASSERT(tensor_count(catalog) == wanted.size());
    std::uint64_t unit = 0;
    for (std::size_t run = 0; run < catalog.runs.size(); ++run) {
      for (std::uint64_t i = 0; i < catalog.runs[run].count; ++i, ++unit) {
        RC_ASSERT(place_of_unit(catalog, unit).run == run);
        RC_ASSERT(place_of_unit(catalog, unit).index == i);
      }
    }
    RC_ASSERT(unit_count(catalog) == unit);
  });
}

TEST(Builder, FoldsEqualNeighbours) {
  CatalogBuilder builder("m", "f");
  for (const std::uint64_t number : {0U, 1U, 2U}) {
    builder.begin_unit("layers", number);
    builder.add(tensor_of("w"));
  }
  const Catalog catalog = builder.finish();
  ASSERT_EQ(catalog.runs.size(), 1U);
  EXPECT_EQ(catalog.runs[0], (UnitRun{"layers", true, 0, 3, {tensor_of("w")}}));
  EXPECT_EQ(catalog.name, "m");
  EXPECT_EQ(catalog.family, "f");
}

TEST(Builder, DoesNotFoldWhatDiffers) {
  const auto runs_of = [](std::uint64_t second_number, const std::string& second_prefix, const Tensor& second_tensor) {
    CatalogBuilder builder("m", "f");
    builder.begin_unit("layers", 4);
    builder.add(tensor_of("w"));
    builder.begin_unit(second_prefix, second_number);
    builder.add(second_tensor);
    return builder.finish().runs.size();
  };
  EXPECT_EQ(runs_of(5, "layers", tensor_of("w")), 1U);
  EXPECT_EQ(runs_of(6, "layers", tensor_of("w")), 2U);  // a number is missing
  EXPECT_EQ(runs_of(3, "layers", tensor_of("w")), 2U);  // backwards
  EXPECT_EQ(runs_of(5, "blocks", tensor_of("w")), 2U);
  EXPECT_EQ(runs_of(5, "layers", tensor_of("v")), 2U);
  EXPECT_EQ(runs_of(5, "layers", tensor_of("w", {2, 2})), 2U);
  EXPECT_EQ(runs_of(5, "layers", tied_tensor("w", "layers.4.w")), 2U);
  Tensor fixed = tensor_of("w");
  fixed.dtype = DType::f32;
  EXPECT_EQ(runs_of(5, "layers", fixed), 2U);
  Tensor frozen = tensor_of("w");
  frozen.trainable = false;
  EXPECT_EQ(runs_of(5, "layers", frozen), 2U);
}

TEST(Builder, UnitsWithoutANumberStayApart) {
  CatalogBuilder builder("m", "f");
  for (int i = 0; i < 2; ++i) {
    builder.begin_unit("same");
    builder.add(tensor_of("same.w"));
  }
  const Catalog catalog = builder.finish();
  ASSERT_EQ(catalog.runs.size(), 2U);
  EXPECT_FALSE(catalog.runs[0].numbered);
  EXPECT_EQ(catalog.runs[0].count, 1U);
}

// Any sequence of units comes out as it went in, and as few runs as there can be.
TEST(Builder, KeepsEverythingAndFoldsAllItCan) {
  check_property(500, [] {
    CatalogBuilder builder("m", "f");
    std::vector<Named> wanted;
    const auto steps = *rc::gen::inRange(0, 12);
    for (int step = 0; step < steps; ++step) {
      const auto kind = *rc::gen::inRange(0, 4);
      const auto number = *rc::gen::inRange<std::uint64_t>(0, 4);
      const std::string prefix = *rc::gen::element<std::string>("layers", "blocks");
      const Tensor tensor = tensor_of("w", {*rc::gen::inRange<std::uint64_t>(1, 3)});
      if (kind == 0) {
        builder.begin_unit("head");
        builder.add(tensor);
        wanted.push_back({"head", "w", tensor});
        continue;
      }
      const std::uint64_t count = kind == 1 ? *rc::gen::inRange<std::uint64_t>(1, 4) : 1;
      if (kind == 1) {
        builder.add_run(prefix, number, count, {tensor});
      } else {
        builder.begin_unit(prefix, number);
        builder.add(tensor);
      }
      for (std::uint64_t i = 0; i < count; ++i) {
        const std::string unit = prefix + "." + std::to_string(number + i);
        wanted.push_back({unit, unit + ".w", tensor});
      }
    }
    const Catalog catalog = builder.finish();
    RC_ASSERT(expanded(catalog) == wanted);
    for (std::size_t i = 1; i < catalog.runs.size(); ++i) {
      RC_ASSERT(!could_be_one(catalog.runs[i - 1], catalog.runs[i]));
    }
  });
}

TEST(Freeze, SplitsOnlyWhereUnitsDiffer) {
  Catalog catalog = blocks(8);
  EXPECT_EQ(freeze(catalog, "layers.3.*"), 2U);
  ASSERT_EQ(catalog.runs.size(), 5U);
  EXPECT_EQ(catalog.runs[1].count, 3U);
  EXPECT_EQ(catalog.runs[2].first_number, 3U);
  EXPECT_EQ(catalog.runs[2].count, 1U);
  EXPECT_FALSE(catalog.runs[2].tensors[0].trainable);
  EXPECT_EQ(catalog.runs[3].first_number, 4U);
  EXPECT_EQ(catalog.runs[3].count, 4U);
  EXPECT_TRUE(catalog.runs[3].tensors[0].trainable);

  Catalog all = blocks(8);
  EXPECT_EQ(freeze(all, "*"), 18U);
  EXPECT_EQ(all.runs.size(), 3U);
  EXPECT_EQ(trainable_elements(all), 0U);

  Catalog biases = blocks(8);
  EXPECT_EQ(freeze(biases, "layers.*.b"), 8U);
  EXPECT_EQ(biases.runs.size(), 3U);

  Catalog none = blocks(8);
  EXPECT_EQ(freeze(none, "layers.8.*"), 0U);
  EXPECT_EQ(none, blocks(8));
  EXPECT_EQ(freeze(none, "layers"), 0U);  // a tensor's whole name, not a unit's
}

// A tied tensor is frozen with its owner or not at all.
TEST(Freeze, FreezesExactlyWhatMatches) {
  check_property(500, [] {
    auto catalog = *any_catalog(test_support::Sizes::small);
    const std::string glob = *rc::gen::element<std::string>("*", "*.1.*", "run?.2.*", "*t0", "run1*", "*3*", "*tied*",
                                                            "run0.?.t1", "none", "");
    std::vector<Named> wanted = expanded(catalog);
    std::uint64_t matching = 0;
    bool splits_a_tie = false;
    std::set<std::string> trainable;
    for (const Named& named : wanted) {
      if (named.tensor.trainable) trainable.insert(named.name);
    }
    for (Named& named : wanted) {
      if (!glob_matches(glob, named.name)) continue;
      ++matching;
      named.tensor.trainable = false;
      const std::string& owner = named.tensor.tied_to;
      splits_a_tie = splits_a_tie || (trainable.contains(owner) && !glob_matches(glob, owner));
    }
    RC_CLASSIFY(matching > 0, "matches");
    RC_CLASSIFY(splits_a_tie, "splits a tie");
    if (splits_a_tie) {
      const Catalog before = catalog;
      RC_ASSERT_THROWS_AS(freeze(catalog, glob), ConfigError);
      RC_ASSERT(catalog == before);
      return;
    }
    RC_ASSERT(freeze(catalog, glob) == matching);
    RC_ASSERT(expanded(catalog) == wanted);
    for (const UnitRun& run : catalog.runs) RC_ASSERT((run.numbered || run.count == 1));
  });
}

TEST(Freeze, RefusesWhatItCannotDo) {
  Catalog tied = blocks(2);
  tied.runs[2].tensors[0].tied_to = "embed.weight";
  EXPECT_THROW(freeze(tied, "head.*"), ConfigError);
  EXPECT_EQ(freeze(tied, "embed.*"), 1U);
  Catalog large = test_support::uniform_catalog(1'000'000'000'000, 1);
  EXPECT_THROW(freeze(large, "*.7.*"), ConfigError);
}

TEST(Freeze, MakesAsFewRunsAsItCan) {
  for (const char* glob : {"layers.1?.*", "layers.?.w", "layers.*", "*.2*.b"}) {
    Catalog catalog = blocks(30);
    freeze(catalog, glob);
    for (std::size_t i = 1; i < catalog.runs.size(); ++i) {
      EXPECT_FALSE(could_be_one(catalog.runs[i - 1], catalog.runs[i])) << glob << ", run " << i;
    }
  }
}

Catalog with_head(Tensor head) {
  Catalog catalog = blocks(3);
  catalog.runs[2].tensors = {std::move(head)};
  return catalog;
}

TEST(Ties, AreListedByUnit) {
  EXPECT_EQ(unit_ties(blocks(3)), std::vector<UnitTie>{});
  EXPECT_EQ(unit_ties(with_head(tied_tensor("head.weight", "embed.weight", {100, 8}))), (std::vector<UnitTie>{{4, 0}}));
  EXPECT_EQ(unit_ties(with_head(tied_tensor("head.b", "layers.2.b", {8}))), (std::vector<UnitTie>{{4, 3}}));
}

TEST(Ties, InsideAUnitAreNotListed) {
  Catalog catalog = blocks(3);
  catalog.runs[2].tensors.push_back(tied_tensor("head.again", "head.weight", {100, 8}));
  EXPECT_EQ(unit_ties(catalog), std::vector<UnitTie>{});
}

TEST(Ties, OfARunToItsFirstUnit) {
  Catalog catalog;
  catalog.runs = {{"layers", true, 5, 3, {tensor_of("w"), tied_tensor("shared", "layers.5.w")}}};
  EXPECT_EQ(unit_ties(catalog), (std::vector<UnitTie>{{1, 0}, {2, 0}}));
  catalog.runs[0].tensors[1].tied_to = "layers.6.w";  // comes later than unit 0
  test_support::expect_config_error([&] { unit_ties(catalog); }, "", "layers.5.shared", "layers.6.w");
}

// The key is the tied tensor, and the problem names the other.
void expect_bad_tie(const Catalog& catalog, const std::string& tied, const std::string& owner) {
  try {
    unit_ties(catalog);
    ADD_FAILURE() << "no error for " << tied << " tied to " << owner;
  } catch (const ConfigError& error) {
    EXPECT_EQ(error.key(), tied) << error.what();
    EXPECT_NE(error.problem().find(owner), std::string::npos) << error.what();
  }
}

TEST(Ties, MustNameAnEarlierTensorThatOwnsTheSameShape) {
  expect_bad_tie(with_head(tied_tensor("head.weight", "nowhere.weight", {100, 8})), "head.weight", "nowhere.weight");
  expect_bad_tie(with_head(tied_tensor("head.weight", "layers.3.b", {8})), "head.weight", "layers.3.b");
  expect_bad_tie(with_head(tied_tensor("head.weight", "layers.b", {8})), "head.weight", "layers.b");
  expect_bad_tie(with_head(tied_tensor("head.weight", "layers.02.b", {8})), "head.weight", "layers.02.b");
  expect_bad_tie(with_head(tied_tensor("head.weight", "embed.weight", {8, 100})), "head.weight", "embed.weight");
  expect_bad_tie(with_head(tied_tensor("head.weight", "embed.weight", {800})), "head.weight", "embed.weight");
  expect_bad_tie(with_head(tied_tensor("head.weight", "head.weight", {100, 8})), "head.weight", "head.weight");

  Catalog later = blocks(3);
  later.runs[0].tensors[0].tied_to = "head.weight";
  expect_bad_tie(later, "embed.weight", "head.weight");

  Catalog later_in_unit = blocks(3);
  later_in_unit.runs[0].tensors.insert(later_in_unit.runs[0].tensors.begin(),
                                       tied_tensor("embed.first", "embed.weight", {100, 8}));
  expect_bad_tie(later_in_unit, "embed.first", "embed.weight");

  Catalog chain = with_head(tied_tensor("head.weight", "embed.weight", {100, 8}));
  chain.runs[2].tensors.push_back(tied_tensor("head.again", "head.weight", {100, 8}));
  expect_bad_tie(chain, "head.again", "head.weight");
}

TEST(Ties, OfAnyCatalogAreThoseOfTheExpandedOne) {
  check_property(300, [] {
    const auto catalog = *any_catalog();
    std::vector<UnitTie> wanted;
    std::uint64_t unit = 0;
    std::vector<std::pair<std::string, std::uint64_t>> owners;
    for (const UnitRun& run : catalog.runs) {
      for (std::uint64_t i = 0; i < run.count; ++i, ++unit) {
        for (const Tensor& tensor : run.tensors) {
          owners.emplace_back(tensor_name(run, i, tensor), unit);
          if (tensor.tied_to.empty()) continue;
          const auto owner = std::find_if(owners.begin(), owners.end(),
                                          [&](const auto& known) { return known.first == tensor.tied_to; });
          const UnitTie tie{unit, owner->second};
          if (tie.owner != unit && std::find(wanted.begin(), wanted.end(), tie) == wanted.end()) wanted.push_back(tie);
        }
      }
    }
    std::vector<UnitTie> ties = unit_ties(catalog);
    RC_ASSERT(std::is_sorted(ties.begin(), ties.end(), [](auto& a, auto& b) { return a.unit < b.unit; }));
    const auto by_owner = [](const UnitTie& a, const UnitTie& b) {
      return std::pair(a.unit, a.owner) < std::pair(b.unit, b.owner);
    };
    std::sort(ties.begin(), ties.end(), by_owner);
    std::sort(wanted.begin(), wanted.end(), by_owner);
    ties.erase(std::unique(ties.begin(), ties.end()), ties.end());
    RC_ASSERT(ties == wanted);
  });
}

}  // namespace
}  // namespace shardplan
