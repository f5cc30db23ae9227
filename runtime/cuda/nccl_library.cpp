#include "runtime/cuda/nccl_library.h"

#include <dlfcn.h>
#include <fmt/format.h>

#include <string>

#include "base/error.h"

namespace shardplan::cuda {
namespace {

constexpr const char* kName = "libnccl.so.2";

template <typename Function>
void find(void* library, const char* name, Function& function) {
  function = reinterpret_cast<Function>(dlsym(library, name));
  if (function == nullptr) throw ConfigError("NCCL", "", fmt::format("{} has no {}", kName, name));
}

std::string version_text(int code) {
  return fmt::format("{}.{}.{}", code / 10000, code % 10000 / 100, code % 100);
}

NcclLibrary load() {
  void* const library = dlopen(kName, RTLD_NOW | RTLD_LOCAL);
  if (library == nullptr) throw ConfigError("NCCL", "", fmt::format("cannot be loaded: {}", dlerror()));
  NcclLibrary found;
  find(library, "ncclGetVersion", found.GetVersion);
  find(library, "ncclGetUniqueId", found.GetUniqueId);
  find(library, "ncclCommInitRankConfig", found.CommInitRankConfig);
  find(library, "ncclCommFinalize", found.CommFinalize);
  find(library, "ncclCommDestroy", found.CommDestroy);
  find(library, "ncclCommAbort", found.CommAbort);
  find(library, "ncclCommGetAsyncError", found.CommGetAsyncError);
  find(library, "ncclGetErrorString", found.GetErrorString);
  find(library, "ncclGetLastError", found.GetLastError);
  find(library, "ncclGroupStart", found.GroupStart);
  find(library, "ncclGroupEnd", found.GroupEnd);
  find(library, "ncclSend", found.Send);
  find(library, "ncclRecv", found.Recv);
  find(library, "ncclAllGather", found.AllGather);
  find(library, "ncclBroadcast", found.Broadcast);
  find(library, "ncclReduce", found.Reduce);
  find(library, "ncclReduceScatter", found.ReduceScatter);
  int version = 0;
  const ncclResult_t result = found.GetVersion(&version);
  if (result != ncclSuccess) throw ConfigError("NCCL", "", found.GetErrorString(result));
  if (version < NCCL_VERSION_CODE) {
    throw ConfigError("NCCL", "",
                      fmt::format("{} is version {}: expected {} or newer", kName, version_text(version),
                                  version_text(NCCL_VERSION_CODE)));
  }
  return found;
}

}  // namespace

const NcclLibrary& nccl() {
  static const NcclLibrary library = load();
  return library;
}

}  // namespace shardplan::cuda
