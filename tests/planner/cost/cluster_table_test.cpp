#include "planner/formats/cluster_table.h"

#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <set>

#include "base/error.h"
#include "planner/formats/gpu_table.h"

namespace shardplan {
namespace {

std::string table_with(const std::string& rows) {
  return R"({"schema": "shardplan.clusters/1", "clusters": [)" + rows + "]}";
}

std::string problem_of(const std::string& text) {
  try {
    parse_cluster_table(text, "mine.json", gpu_table());
  } catch (const ConfigError& error) {
    return error.what();
  }
  return "no error";
}

TEST(ClusterTable, HasSaneFigures) {
  const std::vector<Cluster> table = cluster_table(gpu_table());
  EXPECT_GE(table.size(), 20U);
  std::set<std::string> names;
  for (const Cluster& cluster : table) {
    SCOPED_TRACE(cluster.name);
    EXPECT_TRUE(names.insert(cluster.name).second);
    EXPECT_FALSE(cluster.source.empty());
    EXPECT_GE(cluster.gpus_per_node, 1U);
    EXPECT_GT(cluster.node.rate(), cluster.network.rate());
    EXPECT_LT(cluster.node.latency_seconds, cluster.network.latency_seconds);
    EXPECT_TRUE(cluster.gpu.bandwidth_bytes_per_second);
    EXPECT_GT(cluster.efficiency.matmul, 0.3);
    if (cluster.fp8_flops) {
      EXPECT_NEAR(*cluster.fp8_flops / static_cast<double>(*cluster.gpu.bf16_flops), 2, 0.05);
    }
  }
}

TEST(ClusterTable, GpusMayShareAnAdapter) {
  for (const Cluster& cluster : cluster_table(gpu_table())) {
    EXPECT_EQ(cluster.gpus_per_node % cluster.gpus_per_adapter, 0U) << cluster.name;
  }
  const auto read = [](const std::string& more) {
    return table_with(R"({"name": "mine", "gpu": "h100-80gb")" + more + "}");
  };
  EXPECT_EQ(parse_cluster_table(read(R"(, "gpus_per_adapter": 4)"), "mine.json", gpu_table())[0].gpus_per_adapter, 4U);
  EXPECT_EQ(parse_cluster_table(read(""), "mine.json", gpu_table())[0].gpus_per_adapter, 1U);
  EXPECT_NE(problem_of(read(R"(, "gpus_per_adapter": 16)")).find("gpus_per_adapter"), std::string::npos);
}

TEST(ClusterTable, HostLinksAreTheGpusAndDisksTheFiles) {
  for (const Cluster& cluster : cluster_table(gpu_table())) {
    EXPECT_GT(cluster.host.rate(), 10e9) << cluster.name;
    EXPECT_LT(cluster.host.rate(), cluster.gpu.bandwidth_bytes_per_second.value()) << cluster.name;
  }
  EXPECT_NEAR(require_cluster("a100", gpu_table()).host.rate(), 24.8e9, 0.2e9);
  EXPECT_NEAR(require_cluster("h100", gpu_table()).host.bytes_per_second, 63e9, 0.1e9);
  EXPECT_EQ(require_cluster("gb200", gpu_table()).host.bytes_per_second, 225e9);
  const auto read = [](const std::string& more) {
    return table_with(R"({"name": "mine", "gpu": "h100-80gb")" + more + "}");
  };
  const Cluster said = parse_cluster_table(
      read(R"(, "host": {"bytes_per_second": 1e10, "efficiency": 0.5}, "disk": {"read_bytes_per_second": 3e9})"),
      "mine.json", gpu_table())[0];
  EXPECT_EQ(said.host.rate(), 5e9);
  EXPECT_EQ(said.disk.read_bytes_per_second, 3e9);
  EXPECT_EQ(said.disk.write_bytes_per_second, Disk{}.write_bytes_per_second);
  EXPECT_NE(problem_of(read(R"(, "disk": {"reads": 1})")).find("disk.reads: is no key of a disk"), std::string::npos);
}

TEST(ClusterTable, TheDefaultIsWhatTheCommandSays) {
  const Cluster cluster = require_cluster(std::string(kDefaultCluster), gpu_table());
  EXPECT_EQ(cluster.gpu.name, "h100-80gb");
  EXPECT_EQ(cluster.gpus_per_node, 8U);
  EXPECT_EQ(cluster.node.bytes_per_second, 450e9);
  EXPECT_EQ(cluster.network.bytes_per_second, 400e9 / 8);
  EXPECT_EQ(require_cluster("DGX-H100", gpu_table()), cluster);
}

TEST(ClusterTable, AFileHasTheSameFormat) {
  const std::string path = (std::filesystem::path(testing::TempDir()) / "shardplan_cluster.json").string();
  std::ofstream(path) << table_with(R"({"name": "mine", "gpu": "a100", "gpus_per_node": 4, "node": {"efficiency": 0.5},
      "network": {"bytes_per_second": 1e9, "latency_seconds": 0}, "efficiency": {"matmul": 0.25}})");
  const Cluster cluster = require_cluster(path, gpu_table());
  EXPECT_EQ(cluster.gpu.name, "a100-80gb");
  EXPECT_EQ(cluster.gpus_per_node, 4U);
  EXPECT_EQ(cluster.node.rate(), 300e9 / 2);
  EXPECT_EQ(cluster.network.bytes_per_second, 1e9);
  EXPECT_EQ(cluster.network.latency_seconds, 0);
  EXPECT_EQ(cluster.efficiency.matmul, 0.25);
  EXPECT_EQ(cluster.efficiency.memory, Efficiency{}.memory);
  std::filesystem::remove(path);
  EXPECT_THROW(require_cluster(path, gpu_table()), IoError);
}

TEST(ClusterTable, BadTablesNameFileAndKey) {
  const auto expect_problem = [](const std::string& row, const std::string& problem) {
    const std::string found = problem_of(table_with(row));
    EXPECT_NE(found.find(problem), std::string::npos) << found;
  };
  EXPECT_EQ(problem_of(table_with(R"({"name": "x", "gpu": "h100"})")), "no error");
  EXPECT_NE(problem_of(R"({"clusters": []})").find("mine.json: schema"), std::string::npos);
  expect_problem(R"({"gpu": "h100"})", "mine.json: clusters[0].name");
  expect_problem(R"({"name": "x", "gpu": "h1000"})", "clusters[0].gpu: 'h1000' is no known GPU");
  expect_problem(R"({"name": "x", "gpu": "h100", "nodes": 3})", "clusters[0].nodes: is no key of a cluster");
  expect_problem(R"({"name": "x", "gpu": "h100", "gpus_per_node": 0})", "clusters[0].gpus_per_node");
  expect_problem(R"({"name": "x", "gpu": "h100", "node": {"bytes_per_second": -1}})",
                 "clusters[0].node.bytes_per_second: expected a positive number");
  expect_problem(R"({"name": "x", "gpu": "h100", "network": {"efficiency": 1.5}})", "clusters[0].network.efficiency");
  expect_problem(R"({"name": "x", "gpu": "h100", "efficiency": {"mamul": 0.5}})", "clusters[0].efficiency.mamul");
  expect_problem(R"({"name": "x", "gpu": "tpu-v4"})", "clusters[0].gpu: of tpu-v4 no link is known");
  expect_problem(R"({"name": "x", "gpu": "h100"}, {"name": "X", "gpu": "h100"})",
                 "clusters[1].name: 'X' is the name of x already");
}

TEST(ClusterTable, UnknownNamesListNearOnes) {
  try {
    require_cluster("h10", gpu_table());
    FAIL();
  } catch (const ConfigError& error) {
    EXPECT_EQ(error.source(), "--cluster");
    EXPECT_NE(error.problem().find("h100"), std::string::npos) << error.what();
  }
}

TEST(ClusterTable, AnyGpuWithALinkHasACluster) {
  const std::vector<Gpu> gpus = gpu_table();
  EXPECT_EQ(cluster_for(find_gpu(gpus, "h100"), gpus).name, kDefaultCluster);
  const Cluster cluster = cluster_for(find_gpu(gpus, "l4"), gpus);
  EXPECT_NEAR(cluster.node.bytes_per_second, 31.5e9, 0.1e9);
  EXPECT_FALSE(cluster.note.empty());
  EXPECT_THROW(cluster_for(find_gpu(gpus, "tpu-v4"), gpus), ConfigError);
}

}  // namespace
}  // namespace shardplan
