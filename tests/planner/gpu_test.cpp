// The table of accelerators that is compiled in, row by row, and users' tables on top of it.
#include "planner/gpu.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cctype>
#include <string>

#include "planner/formats/gpu_table.h"
#include "tests/support/config_error.h"
#include "tests/support/temporary_folder.h"

namespace shardplan {
namespace {

using test_support::expect_config_error;

std::string table_of(const std::string& rows) {
  return R"({"schema": "shardplan.gpus/1", "gpus": [)" + rows + "]}";
}

// "h100-80gb-pcie" -> 80; nothing for names without a size.
std::uint64_t size_in_name(const std::string& name) {
  const std::size_t end = name.find("gb", name.find('-') == std::string::npos ? 0 : name.find('-'));
  if (end == std::string::npos || end == 0 || std::isdigit(static_cast<unsigned char>(name[end - 1])) == 0) return 0;
  return std::stoull(name.substr(name.rfind('-', end) + 1));
}

TEST(GpuRows, SizesInNamesAreTheMemory) {
  int named = 0;
  for (const Gpu& gpu : gpu_table()) {
    const std::uint64_t size = size_in_name(gpu.name);
    if (size == 0) continue;
    ++named;
    EXPECT_TRUE(gpu.memory == size * 1_GB || gpu.memory == size * 1_GiB) << gpu.name << " " << in_gib(gpu.memory);
    for (const std::string& alias : gpu.aliases) {
      if (size_in_name(alias) != 0) {
        EXPECT_EQ(size_in_name(alias), size) << alias << " of " << gpu.name;
      }
    }
  }
  EXPECT_GE(named, 30);
}

TEST(GpuRows, SayHowGbIsCountedWhereTheDriversSizeIsUnknown) {
  for (const Gpu& gpu : gpu_table()) {
    if (gpu.visible_memory) {
      EXPECT_LE(*gpu.visible_memory, gpu.memory) << gpu.name << ": the driver shows no more than there is";
      continue;
    }
    const bool binary = gpu.memory.count() % (1_GiB).count() == 0;
    EXPECT_NE(gpu.note.find(binary ? "2^30" : "1e9"), std::string::npos) << gpu.name << ": " << gpu.note;
    EXPECT_EQ(gpu.capacity(), gpu.memory) << gpu.name;
  }
}

TEST(GpuRows, FiguresAreOfOneKind) {
  for (const Gpu& gpu : gpu_table()) {
    SCOPED_TRACE(gpu.name);
    EXPECT_TRUE(std::all_of(gpu.name.begin(), gpu.name.end(),
                            [](unsigned char c) { return std::islower(c) != 0 || std::isdigit(c) != 0 || c == '-'; }));
    const bool google = gpu.vendor == "Google";
    EXPECT_EQ(gpu.pcie_generation.has_value(), !google);
    if (gpu.pcie_generation) {
      EXPECT_TRUE(*gpu.pcie_generation >= 3 && *gpu.pcie_generation <= 6);
    }
    ASSERT_TRUE(gpu.bandwidth_bytes_per_second);
    // A link to one peer, in one direction, is slower than the memory.
    if (gpu.link_bytes_per_second) {
      EXPECT_GE(*gpu.link_bytes_per_second, 20'000'000'000U);
      EXPECT_LT(*gpu.link_bytes_per_second, *gpu.bandwidth_bytes_per_second);
    }
    // Between 10 and 1000 operations for a byte from memory: a sparse or an int8 figure, or a wrong unit, is outside.
    for (const auto& flops : {gpu.bf16_flops, gpu.fp16_flops}) {
      if (!flops) continue;
      const double per_byte = static_cast<double>(*flops) / static_cast<double>(*gpu.bandwidth_bytes_per_second);
      EXPECT_GT(per_byte, 10);
      EXPECT_LT(per_byte, 1000);
    }
  }
}

// As their drivers show them, written out here so that one mistake in the table cannot pass.
TEST(GpuRows, KnownCapacities) {
  const std::pair<const char*, Bytes> known[] = {{"h100", 81559_MiB},
                                                 {"a100", 81920_MiB},
                                                 {"a100-40gb", 40960_MiB},
                                                 {"a10", 23028_MiB},
                                                 {"l40s", 46068_MiB},
                                                 {"l4", 23034_MiB},
                                                 {"t4", 15360_MiB},
                                                 {"rtx-4090", 24564_MiB},
                                                 {"3090", 24576_MiB},
                                                 {"h200", 143771_MiB},
                                                 {"b200", 183359_MiB},
                                                 {"mi300x", Bytes{206'141'652'992}},
                                                 {"mi250x", Bytes{67'092'480ULL * 1024}}};
  const std::vector<Gpu> table = gpu_table();
  for (const auto& [name, capacity] : known) EXPECT_EQ(find_gpu(table, name).capacity(), capacity) << name;
}

TEST(GpuTables, BadOnesNameFileAndKey) {
  const auto expect_bad = [](const std::string& row, const std::string& key, const std::string& problem) {
    expect_config_error([&] { parse_gpu_table(table_of(row), "mine.json"); }, "mine.json", key, problem);
  };
  expect_bad("3", "gpus[0]", "object");
  expect_bad(R"({"name": 3, "memory_bytes": 1})", "gpus[0].name", "string");
  expect_bad(R"({"name": "", "memory_bytes": 1})", "gpus[0].name", "empty");
  expect_bad(R"({"name": "x", "memory_bytes": 0})", "gpus[0].memory_bytes", "positive");
  expect_bad(R"({"name": "x", "memory_bytes": null})", "gpus[0].memory_bytes", "positive");
  expect_bad(R"({"name": "x", "memory_bytes": "80GiB"})", "gpus[0].memory_bytes", "positive");
  expect_bad(R"({"name": "x", "memory_bytes": 1, "aliases": "y"})", "gpus[0].aliases", "array");
  expect_bad(R"({"name": "x", "memory_bytes": 1, "aliases": [1]})", "gpus[0].aliases[0]", "string");
  expect_bad(R"({"name": "x", "memory_bytes": 1, "bf16_flops": -1})", "gpus[0].bf16_flops", "positive");
  expect_bad(R"({"name": "x", "memory_bytes": 1}, {"name": "y", "aliases": ["X"], "memory_bytes": 1})",
             "gpus[1].aliases", "'X' is the name of x already");
  expect_config_error([] { parse_gpu_table("{", "mine.json"); }, "mine.json", "", "line 1");
  expect_config_error([] { parse_gpu_table("[]", "mine.json"); }, "mine.json", "", "object");
  expect_config_error([] { parse_gpu_table(R"({"schema": "shardplan.gpus/2", "gpus": []})", "mine.json"); },
                      "mine.json", "schema", "shardplan.gpus/1");
  expect_config_error([] { parse_gpu_table(R"({"schema": "shardplan.gpus/1"})", "mine.json"); }, "mine.json", "gpus",
                      "array");
}

TEST(GpuTables, LaterFilesWin) {
  const test_support::TemporaryFolder folder;
  const std::string first =
      folder.write("first.json", table_of(R"({"name": "mine", "aliases": ["h100", "ours"], "memory_bytes": 1})"));
  const std::string second = folder.write(
      "second.json", table_of(R"({"name": "MINE", "memory_bytes": 2}, {"name": "ours", "memory_bytes": 3})"));
  const std::vector<Gpu> table = gpu_table({first, second});
  EXPECT_EQ(table.size(), gpu_table().size() + 2);
  EXPECT_EQ(find_gpu(table, "mine").capacity(), 2_B);
  EXPECT_EQ(find_gpu(table, "ours").capacity(), 3_B);
  EXPECT_EQ(find_gpu(gpu_table({first}), "H100").name, "mine");
  EXPECT_EQ(find_gpu(gpu_table({first}), "h100-80gb").capacity(), 81559_MiB);
}

// A user's alias is a user's name: it is found before a row of ours that is called so.
TEST(GpuTables, AUsersAliasWinsOverAKnownName) {
  const test_support::TemporaryFolder folder;
  const std::string file =
      folder.write("mine.json", table_of(R"({"name": "mine", "aliases": ["h100-80gb"], "memory_bytes": 1})"));
  EXPECT_EQ(find_gpu(gpu_table({file}), "h100-80gb").name, "mine");
}

}  // namespace
}  // namespace shardplan
