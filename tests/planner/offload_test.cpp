// What --offload says, and what a plan with offload holds on each tier: every array against its own arithmetic.
#include "planner/offload.h"

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <array>
#include <map>
#include <string>
#include <tuple>
#include <utility>

#include "planner/arena_plan.h"
#include "planner/report.h"
#include "tests/planner/offloaded_setup.h"
#include "tests/support/catalogs.h"
#include "tests/support/config_error.h"

namespace shardplan {
namespace {

using namespace test_support;  // NOLINT(google-build-using-namespace)

TEST(OffloadWords, ClassesTiersFractionsAndFolders) {
  const OffloadWords words = parse_offload("optimizer=nvme@0.25:/mnt/a:b,gradients=cpu@0.5,parameters=cpu");
  EXPECT_EQ(words.offload.optimizer, (OffloadedClass{Tier::file, 0.25}));
  EXPECT_EQ(words.offload.gradients, (OffloadedClass{Tier::pinned, 0.5}));
  EXPECT_EQ(words.offload.parameters, (OffloadedClass{Tier::pinned, 1}));
  EXPECT_EQ(words.optimizer_folder, "/mnt/a:b");
  EXPECT_EQ(words.gradients_folder, "");
  EXPECT_EQ(parse_offload("optimizer=file").offload, parse_offload("optimizer=nvme").offload);
  EXPECT_EQ(parse_offload("optimizer=file:/x@0.5").optimizer_folder, "/x@0.5");
  EXPECT_EQ(parse_offload("optimizer=file:/x@0.5").offload.optimizer.fraction, 1);
}

TEST(OffloadWords, WhatTheyDoNotKnowIsNamed) {
  for (const auto& [text, expected] : std::array<std::pair<const char*, const char*>, 13>{
           {{"", "not CLASS=TIER"},
            {"optimizer", "not CLASS=TIER"},
            {"optimizer=cpu,", "not CLASS=TIER"},
            {"states=cpu", "expected optimizer, parameters or gradients"},
            {"optimizer=disk", "expected cpu, file or file:FOLDER"},
            {"optimizer=cpu:/mnt", "expected cpu, file or file:FOLDER"},
            {"optimizer=", "expected cpu, file or file:FOLDER"},
            {"optimizer=file:", "names no folder"},
            {"optimizer=cpu@", "no fraction"},
            {"optimizer=cpu@0", "no fraction"},
            {"optimizer=cpu@1.5", "no fraction"},
            {"optimizer=cpu@half", "no fraction"},
            {"optimizer=cpu,optimizer=file", "given twice"}}}) {
    SCOPED_TRACE(text);
    expect_config_error([&, words = text] { parse_offload(words); }, "--offload", "", expected);
  }
}

// All classes of a rank are in one file.
TEST(OffloadWords, FoldersOfAllClassesAreOne) {
  EXPECT_EQ(file_folder(parse_offload("optimizer=file,gradients=file:/b")), "/b");
  EXPECT_EQ(file_folder(parse_offload("optimizer=file:/b,parameters=file:/b")), "/b");
  EXPECT_EQ(file_folder(parse_offload("optimizer=cpu")), "");
  expect_config_error([] { file_folder(parse_offload("optimizer=file:/a,parameters=file:/b")); }, "--offload", "",
                      "expected one");
}

using Placed = std::tuple<Tier, BufferRole>;

// Bytes of the arrays by tier and role, unit by unit through resident_place, each once.
std::map<Placed, Bytes> placed_bytes(const StepPlan& plan) {
  std::map<Placed, Bytes> bytes;
  for (std::uint64_t unit = 0; unit < plan.layout.units; ++unit) {
    const std::size_t buffers = run_of_unit(plan.layout, unit).unit.buffers.size();
    for (std::size_t b = 0; b < buffers; ++b) {
      for (const BufferRole role : {BufferRole::parameter, BufferRole::gradient, BufferRole::master,
                                    BufferRole::first_moment, BufferRole::second_moment, BufferRole::ema}) {
        const auto place = resident_place(plan, role, unit, b);
        if (place) bytes[{place->tier, role}] += place->range.bytes;
      }
    }
  }
  return bytes;
}

Bytes sum(const std::map<Placed, Bytes>& bytes, Tier tier) {
  Bytes total;
  for (const auto& [placed, each] : bytes) {
    if (std::get<Tier>(placed) == tier) total += each;
  }
  return total;
}

// No two arrays of a tier share a byte, and none lies beyond what is reserved.
void expect_disjoint(const StepPlan& plan, const ArenaPlan& arena, Bytes limit) {
  std::map<Bytes, Bytes> ranges;
  for (const Array& array : arena.arrays) {
    for (std::uint64_t i = 0; i < array.count; ++i) {
      if (array.bytes > 0_B) ranges[array.offset + i * array.stride] = array.bytes;
    }
  }
  Bytes end;
  for (const auto& [offset, bytes] : ranges) {
    ASSERT_GE(offset, end) << plan.setup.stage;
    end = offset + bytes;
  }
  EXPECT_LE(end, limit);
}

TEST(OffloadPlan, EveryClassIsWhereItWasPut) {
  for (const Catalog& catalog : known_catalogs()) {
    for (int stage = 0; stage <= 3; ++stage) {
      const bool file = stage % 2 == 1;
      const char* const others =
          file ? "optimizer=file,gradients=file,parameters=file" : "optimizer=file,gradients=cpu,parameters=cpu";
      shardplan::Setup setup = offloaded_setup(others, stage, 8);
      const StepPlan plan = make_step_plan(catalog, setup);
      setup.offload = {};
      const std::map<Placed, Bytes> plain = placed_bytes(make_step_plan(catalog, setup));
      const std::map<Placed, Bytes> bytes = placed_bytes(plan);
      for (const auto& [placed, each] : plain) {
        const BufferRole role = std::get<BufferRole>(placed);
        const bool pinned = !file && (role == BufferRole::parameter || role == BufferRole::gradient);
        EXPECT_EQ(bytes.at({pinned ? Tier::pinned : Tier::file, role}), each) << name(role);
      }
      EXPECT_EQ(sum(bytes, Tier::device), 0_B);
      expect_disjoint(plan, plan.pinned, plan.pinned.bytes - kArenaBaseShift);
      expect_disjoint(plan, plan.file, plan.file.bytes);
      expect_disjoint(plan, plan.device, plan.device.bytes - kArenaBaseShift);
    }
  }
}

// Pages of 4096 B and nothing more: no power of two, no reserve.
TEST(OffloadPlan, TheFileHasWholePagesAndTheRingAHandfulOfBlocks) {
  for (const Catalog& catalog : known_catalogs()) {
    const StepPlan plan = make_step_plan(catalog, offloaded_setup("optimizer=file", 1, 8));
    std::uint64_t blocks = 0;
    Bytes largest;
    for (std::uint64_t unit = 0; unit < plan.layout.units; ++unit) {
      const auto& buffers = run_of_unit(plan.layout, unit).unit.buffers;
      for (std::size_t b = 0; b < buffers.size(); ++b) {
        Bytes slot;
        for (const BufferRole role : kStateRoles) {
          const auto place = resident_place(plan, role, unit, b);
          if (!place) continue;
          ASSERT_EQ(place->tier, Tier::file);
          EXPECT_EQ(place->range.offset.count() % 4096, 0U);
          const Bytes width{place->range.bytes.count() / std::max<std::uint64_t>(buffers[b].shard_elements, 1)};
          const ByteRange part = role_in_ring_slot(plan, role, unit, b);
          EXPECT_EQ(part.offset, slot);
          slot += round_up(std::min(place->range.bytes, kBlockElements * width), 4_KiB);
          EXPECT_EQ(part.offset + part.bytes, slot);
        }
        largest = std::max(largest, slot);
      }
    }
    Bytes all;
    for (const Array& array : plan.file.arrays) {
      all += array.count * round_up(array.bytes, 4_KiB);
      blocks += array.count * ((array.elements + kBlockElements - 1) / kBlockElements);
    }
    EXPECT_EQ(plan.file.bytes, all);
    EXPECT_EQ(plan.file.live_peak, all);
    EXPECT_EQ(plan.blocks.blocks, blocks);
    EXPECT_EQ(plan.blocks.slot, largest);
    EXPECT_LE(plan.blocks.ring_slots, kRingSlots);
    const Bytes host = kValuesBuffer + plan.blocks.ring_slots * plan.blocks.slot + 32 * Bytes{blocks};
    EXPECT_EQ(plan.pinned.resident, host);
    EXPECT_LE(plan.pinned.bytes, host + kArenaBaseShift + 3 * 32_KiB);  // a shift for each of three kinds
    // The device is spared what the file holds.
    shardplan::Setup plain = plan.setup;
    plain.offload = {};
    EXPECT_LT(plan.device.bytes + sum(placed_bytes(plan), Tier::file),
              make_step_plan(catalog, plain).device.bytes + 1_MiB);
  }
}

TEST(OffloadPlan, AFractionIsTheFewestFirstUnitsThatHoldIt) {
  for (const Catalog& catalog : known_catalogs()) {
    for (const double fraction : {0.01, 0.3, 0.5, 0.99}) {
      for (const char* tier : {"cpu", "file"}) {
        const StepPlan plan =
            make_step_plan(catalog, offloaded_setup(fmt::format("optimizer={}@{}", tier, fraction), 1, 8));
        std::uint64_t total = 0;
        std::uint64_t away = 0;
        std::uint64_t last = 0;  // of the last unit that is away
        bool on_device = false;
        for (std::uint64_t unit = 0; unit < plan.layout.units; ++unit) {
          const auto& buffers = run_of_unit(plan.layout, unit).unit.buffers;
          for (std::size_t b = 0; b < buffers.size(); ++b) {
            const auto place = resident_place(plan, BufferRole::first_moment, unit, b);
            if (!place) continue;
            total += buffers[b].padded_elements;
            if (place->tier == Tier::device) {
              on_device = true;
              continue;
            }
            EXPECT_FALSE(on_device) << "unit " << unit << " is away after one that is not";
            if (b == 0) last = 0;
            away += buffers[b].padded_elements;
            last += buffers[b].padded_elements;
          }
        }
        EXPECT_GE(static_cast<double>(away), fraction * static_cast<double>(total) * (1 - 1e-12));
        EXPECT_LT(static_cast<double>(away - last), fraction * static_cast<double>(total));
      }
    }
  }
}

TEST(OffloadPlan, UpdatesFetchAndEvictAndParametersAreFetchedWhereTheyAreNotSharded) {
  const Catalog catalog = known_catalogs().front();
  for (int stage = 0; stage <= 3; ++stage) {
    const StepPlan plan = make_step_plan(catalog, offloaded_setup("optimizer=file@0.5,parameters=cpu", stage, 4));
    std::uint64_t fetched = 0;
    std::optional<Operation> before;
    for_each_operation(plan.programs[static_cast<std::size_t>(ProgramKind::update)], [&](const Operation& operation) {
      if (operation.kind == OperationKind::update) {
        const bool in_file = operation.unit < plan.offloaded.optimizer;
        EXPECT_EQ(before && before->kind == OperationKind::fetch, in_file);
        if (in_file) {
          EXPECT_EQ(before->unit, operation.unit);
          EXPECT_EQ(before->subject, Subject::optimizer_states);
        }
      }
      if (operation.kind == OperationKind::evict) {
        EXPECT_EQ(before->kind, OperationKind::update);
        EXPECT_EQ(operation.waits_for[0], (Dependency{OperationKind::update, Pass::none, operation.unit}));
        ++fetched;
      }
      before = operation;
    });
    EXPECT_GT(fetched, 0U);
    for_each_operation(plan.programs[static_cast<std::size_t>(ProgramKind::evaluate)], [&](const Operation& operation) {
      EXPECT_NE(operation.kind, stage == 3 ? OperationKind::fetch : OperationKind::gather);
    });
    EXPECT_TRUE(parameters_in_slots(plan));
  }
}

TEST(OffloadPlan, TheReportAndTheExplanationAreThePlans) {
  const Catalog catalog = known_catalogs().front();
  const StepPlan plan = make_step_plan(catalog, offloaded_setup("optimizer=file,gradients=cpu", 2, 8));
  const RankReport rank = report_shardplan(catalog, plan).ranks.front();
  EXPECT_EQ(rank.host.pinned, plan.pinned.bytes);
  EXPECT_EQ(rank.host.total, plan.pinned.bytes);
  EXPECT_EQ(rank.file, plan.file.bytes);
  EXPECT_EQ(rank.arenas->pinned, plan.pinned.bytes);
  EXPECT_EQ(rank.arenas->file, plan.file.bytes);
  EXPECT_EQ(rank.device.optimizer_states, 0_B);
  EXPECT_EQ(rank.device.gradients, 0_B);
  EXPECT_GT(rank.device.parameters, 0_B);
}

TEST(OffloadPlan, DifferentPlacementsHaveDifferentHashesAndNoOffloadHasNoHostMemory) {
  const Catalog catalog = known_catalogs().front();
  const auto hash = [&](const char* offload) { return make_step_plan(catalog, offloaded_setup(offload, 1, 2)).hash; };
  EXPECT_NE(hash("optimizer=cpu"), hash("optimizer=file"));
  EXPECT_NE(hash("optimizer=cpu"), hash("optimizer=cpu@0.5"));
  shardplan::Setup plain;
  plain.world_size = 2;
  const StepPlan plan = make_step_plan(catalog, plain);
  EXPECT_EQ(plan.pinned, ArenaPlan{});
  EXPECT_EQ(plan.file, ArenaPlan{});
}

TEST(OffloadPlan, WhatTheRuntimeCannotCarryOutIsRefused) {
  const Catalog catalog = known_catalogs().front();
  const auto refused = [&](const char* offload, int stage, std::uint64_t world, const char* expected) {
    expect_config_error([&] { make_step_plan(catalog, offloaded_setup(offload, stage, world)); }, "--offload", "",
                        expected);
  };
  for (const char* part : {"parameters=cpu@0.5", "parameters=file@0.5"}) {
    refused(part, 1, 8, "expected parameters=cpu or file, all of them");
    refused(part, 3, 1, "expected parameters=cpu or file, all of them");
    EXPECT_NO_THROW(make_step_plan(catalog, offloaded_setup(part, 3, 8)));
  }
  shardplan::Setup setup = offloaded_setup("optimizer=file", 1, 8);
  setup.offload.block_elements = 1000;
  expect_config_error([&] { make_step_plan(catalog, setup); }, "--offload", "", "multiple of 2048");
}

}  // namespace
}  // namespace shardplan
