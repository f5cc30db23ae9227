#include "planner/formats/gpu_table.h"

#include <gtest/gtest.h>

#include <cstdio>
#include <filesystem>
#include <fstream>
#include <set>

#include "base/error.h"
#include "base/text.h"

namespace shardplan {
namespace {

std::string problem_of(const std::string& text) {
  try {
    parse_gpu_table(text, "mine.json");
  } catch (const ConfigError& error) {
    return error.what();
  }
  return "no error";
}

std::string table_with(const std::string& rows) {
  return R"({"schema": "shardplan.gpus/1", "gpus": [)" + rows + "]}";
}

TEST(GpuTable, HasFortyOrMoreWithSaneFigures) {
  const std::vector<Gpu> table = gpu_table();
  EXPECT_GE(table.size(), 40U);
  std::set<std::string> names;
  for (const Gpu& gpu : table) {
    SCOPED_TRACE(gpu.name);
    EXPECT_TRUE(names.insert(gpu.name).second);
    for (const std::string& alias : gpu.aliases) EXPECT_TRUE(names.insert(alias).second) << alias;
    EXPECT_FALSE(gpu.source.empty());
    EXPECT_FALSE(gpu.vendor.empty());
    EXPECT_GE(gpu.memory, 8_GiB);
    EXPECT_LE(gpu.memory, 512_GiB);
    // The driver shows a little less than is sold, or, where a vendor rounds down, a little more.
    if (gpu.visible_memory) {
      EXPECT_GE(gpu.visible_memory->count(), gpu.memory.count() / 10 * 9);
      EXPECT_LE(gpu.visible_memory->count(), gpu.memory.count() / 14 * 15);
    }
    if (gpu.bandwidth_bytes_per_second) {
      EXPECT_GE(*gpu.bandwidth_bytes_per_second, 100'000'000'000U);
      EXPECT_LE(*gpu.bandwidth_bytes_per_second, 20'000'000'000'000U);
    }
    // Matrix units are at least as fast as plain fp32.
    if (gpu.bf16_flops && gpu.fp32_flops) {
      EXPECT_GE(*gpu.bf16_flops, *gpu.fp32_flops);
    }
  }
}

TEST(GpuTable, FindsNamesAndAliasesInAnyCase) {
  const std::vector<Gpu> table = gpu_table();
  EXPECT_EQ(find_gpu(table, "h100-80gb").capacity(), 81559_MiB);
  EXPECT_EQ(find_gpu(table, "H100").name, "h100-80gb");
  EXPECT_EQ(find_gpu(table, "a100-40gb").capacity(), 40_GiB);
  try {
    find_gpu(table, "h1000");
    FAIL();
  } catch (const ConfigError& error) {
    EXPECT_EQ(error.source(), "--gpu");
    EXPECT_NE(error.problem().find("are h100,"), std::string::npos) << error.what();
  }
}

TEST(GpuTable, BadTablesNameFileAndKey) {
  EXPECT_EQ(problem_of(table_with(R"({"name": "x", "memory_bytes": 1})")), "no error");
  EXPECT_NE(problem_of(R"({"gpus": []})").find("mine.json: schema"), std::string::npos);
  EXPECT_NE(problem_of(table_with(R"({"name": "x"})")).find("gpus[0].memory_bytes"), std::string::npos);
  EXPECT_NE(problem_of(table_with(R"({"memory_bytes": 1})")).find("gpus[0].name"), std::string::npos);
  EXPECT_NE(problem_of(table_with(R"({"name": "x", "memory_bytes": -1})")).find("gpus[0].memory_bytes"),
            std::string::npos);
  EXPECT_NE(problem_of(table_with(R"({"name": "x", "memory_bytes": 1, "memmory": 2})")).find("gpus[0].memmory"),
            std::string::npos);
  EXPECT_NE(problem_of(table_with(R"({"name": "x", "memory_bytes": 1}, {"name": "X", "memory_bytes": 1})"))
                .find("gpus[1].name: 'X' is the name of x already"),
            std::string::npos);
}

TEST(GpuTable, AUsersTableExtendsAndReplaces) {
  const std::string path = (std::filesystem::path(testing::TempDir()) / "shardplan_gpus.json").string();
  std::ofstream(path) << table_with(R"({"name": "mine-48gb", "aliases": ["h100"], "memory_bytes": 48000000000},
                                       {"name": "A100-80GB", "memory_bytes": 1000})");
  const std::vector<Gpu> table = gpu_table({path});
  EXPECT_EQ(find_gpu(table, "mine-48gb").capacity(), 48_GB);
  EXPECT_EQ(find_gpu(table, "h100").name, "mine-48gb");
  EXPECT_EQ(find_gpu(table, "a100-80gb").capacity(), 1000_B);
  EXPECT_EQ(find_gpu(table, "h100-80gb").capacity(), 81559_MiB);
  std::filesystem::remove(path);
  EXPECT_THROW(gpu_table({path}), IoError);
}

}  // namespace
}  // namespace shardplan
