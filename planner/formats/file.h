// Files and folders, and what can go wrong with them as IoError.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace shardplan {

bool exists(const std::string& path);
bool is_folder(const std::string& path);
// The paths of what a folder holds and whose name ends in `ending`, in order. Throws IoError.
std::vector<std::string> paths_ending_in(const std::string& folder, std::string_view ending);

// All of them throw IoError, with errno where the system gave one.
std::uint64_t file_bytes(const std::string& path);
// The first `count` bytes, fewer where the file is shorter.
std::string read_beginning(const std::string& path, std::uint64_t count);

// A whole text file. Throws ConfigError where it is larger than 256 MiB: whatever that is, it is no configuration.
std::string read_text(const std::string& path);

// "config.json" of "models/llama/config.json", "llama" of "models/llama" and "models/llama/".
std::string last_part(const std::string& path);

}  // namespace shardplan
