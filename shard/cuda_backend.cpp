#include "shard/cuda_backend.h"

#include <dlfcn.h>
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <filesystem>
#include <string_view>
#include <system_error>

#include "base/error.h"

namespace shardplan {
namespace {

namespace fs = std::filesystem;

// As plug-ins are kept: it is no library to link with, so it is not among them.
constexpr const char* kFolder = "shardplan";
constexpr const char* kFile = "libshardplan-cuda.so";

// The folders of the library or program that holds this function, as the loader and as the system know it.
std::vector<fs::path> own_folders() {
  std::vector<fs::path> folders;
  std::error_code ignored;  // a folder that cannot be found out is not looked at
  Dl_info info{};
  if (dladdr(reinterpret_cast<const void*>(&load_cuda_backend), &info) != 0 && info.dli_fname != nullptr) {
    const fs::path file = fs::canonical(info.dli_fname, ignored);
    if (!file.empty()) folders.push_back(file.parent_path());
  }
  const fs::path program = fs::read_symlink("/proc/self/exe", ignored);
  if (!program.empty() && (folders.empty() || folders.front() != program.parent_path())) {
    folders.push_back(program.parent_path());
  }
  return folders;
}

std::string find_module() {
  std::vector<std::string> looked;
  for (const fs::path& folder : own_folders()) {
    for (const fs::path& place : {folder / kFolder, folder.parent_path() / SHARDPLAN_LIBRARY_FOLDER / kFolder,
                                  folder.parent_path() / "lib" / kFolder}) {
      std::error_code ignored;
      const std::string file = (place / kFile).string();
      if (fs::exists(file, ignored)) return file;
      if (std::find(looked.begin(), looked.end(), place) == looked.end()) looked.push_back(place.string());
    }
  }
  throw ConfigError("CUDA", "",
                    fmt::format("this installation has no {} (looked in {})", kFile, fmt::join(looked, ", ")));
}

}  // namespace

const CudaBackend& load_cuda_backend(const std::string& path) {
  const std::string file = path.empty() ? find_module() : path;
  // Never closed: what it makes has its code there.
  void* const library = dlopen(file.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (library == nullptr) throw ConfigError("CUDA", "", fmt::format("the module cannot be loaded: {}", dlerror()));
  using Entry = const CudaModule* (*)();
  const auto entry = reinterpret_cast<Entry>(dlsym(library, kCudaModuleEntry));
  if (entry == nullptr) throw ConfigError("CUDA", "", fmt::format("{} is not a module of shardplan", file));
  const CudaModule& module = *entry();
  if (std::string_view(module.version) != SHARDPLAN_VERSION) {
    throw ConfigError("CUDA", "",
                      fmt::format("{} is of shardplan {}: expected {}", file, module.version, SHARDPLAN_VERSION));
  }
  return *module.backend;
}

}  // namespace shardplan
