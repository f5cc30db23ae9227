// What the opaque handles of the C interface hold. A handle shares what it was made from, so that handles may be freed
// in any order.
#pragma once

#include <array>
#include <memory>
#include <string>
#include <vector>

#include "planner/report.h"
#include "runtime/communicator.h"
#include "runtime/device.h"
#include "runtime/files/posix_files.h"
#include "shard/c_api/call.h"
#include "shard/checkpoint/background_save.h"
#include "shard/checkpoint/checkpoint.h"
#include "shard/cuda_backend.h"
#include "shard/zero_optimizer.h"

namespace shardplan::c_api {

struct PlanState {
  Catalog catalog;
  StepPlan plan;
  ZeroOptions options;  // without its functions
  Report report;
  std::string json;
};

struct CommunicatorState {
  std::shared_ptr<Device> device;  // one for the ranks of a process, so that they count free memory once
  std::unique_ptr<Communicator> communicator;
  const CudaBackend* cuda = nullptr;  // where the device is a GPU
};

// Our dtypes follow shardplan.h's, from 1 on.
inline shardplan_dtype c_dtype(DType dtype) {
  return static_cast<shardplan_dtype>(dtype) + 1;
}
static_assert(static_cast<int>(DType::boolean) + 1 == SHARDPLAN_BOOL);
static_assert(static_cast<int>(DType::f16) + 1 == SHARDPLAN_F16 && static_cast<int>(DType::f32) + 1 == SHARDPLAN_F32);
static_assert(static_cast<int>(DType::u64) + 1 == SHARDPLAN_U64);
// CheckFailure for a number that is none, or SHARDPLAN_UNSPECIFIED.
DType dtype_of(shardplan_dtype dtype);

std::string report_json(const PlanState& plan);

}  // namespace shardplan::c_api

struct shardplan_catalog {
  shardplan::Catalog catalog;
};

struct shardplan_plan {
  std::shared_ptr<const shardplan::c_api::PlanState> state;
};

struct shardplan_communicator {
  std::shared_ptr<shardplan::c_api::CommunicatorState> state;
};

struct shardplan_optimizer {
  std::shared_ptr<const shardplan::c_api::PlanState> plan;
  std::shared_ptr<shardplan::c_api::CommunicatorState> world;
  std::unique_ptr<shardplan::Communicator> shard_group;  // with hybrid sharding, as the next one
  std::unique_ptr<shardplan::Communicator> replicas;
  std::unique_ptr<shardplan::ZeroOptimizer> optimizer;
  // What calls return views in; as large as they get.
  std::vector<shardplan_view> parameters;
  std::vector<shardplan_view> gradients;
  std::vector<shardplan::ConstElements> contributions;
  std::string saved;  // the last checkpoint's name
  shardplan::PosixFiles files;
  std::unique_ptr<shardplan::BackgroundSave> background;  // since the first save in the background
  shardplan::LoadReport loaded;
  std::vector<const char*> notes;  // of `loaded`
};
