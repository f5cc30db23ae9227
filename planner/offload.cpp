#include "planner/offload.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstdlib>

#include "base/error.h"

namespace shardplan {
namespace {

[[noreturn]] void refuse(const std::string& problem) {
  throw ConfigError("--offload", "", problem);
}

double fraction_of(const std::string& text) {
  char* end = nullptr;
  const double fraction = std::strtod(text.c_str(), &end);
  if (text.empty() || *end != '\0' || !(fraction > 0 && fraction <= 1)) {
    refuse(fmt::format("'{}' is no fraction: expected a number above 0, at most 1", text));
  }
  return fraction;
}

// TIER[@FRACTION][:FOLDER]
void parse_class(const std::string& text, OffloadedClass& placed, std::string& folder) {
  const std::size_t colon = std::min(text.find(':'), text.size());
  const std::size_t at = std::min(text.substr(0, colon).find('@'), colon);
  const std::string tier = text.substr(0, at);
  const bool file = tier == "file" || tier == "nvme";
  if (!file && (tier != "cpu" || colon != text.size())) {
    refuse(fmt::format("'{}' is no tier: expected cpu, file or file:FOLDER", text));
  }
  placed.tier = file ? Tier::file : Tier::pinned;
  if (at != colon) placed.fraction = fraction_of(text.substr(at + 1, colon - at - 1));
  if (colon != text.size()) folder = text.substr(colon + 1);
}

}  // namespace

std::string_view name(Tier tier) {
  switch (tier) {
    case Tier::device:
      return "device";
    case Tier::pinned:
      return "pinned host";
    case Tier::pageable:
      return "pageable host";
    case Tier::file:
      return "file";
  }
  return "";
}

OffloadWords parse_offload(std::string_view text) {
  OffloadWords words;
  for (std::size_t begin = 0; begin <= text.size();) {
    const std::size_t end = std::min(text.find(',', begin), text.size());
    const std::string item(text.substr(begin, end - begin));
    const std::size_t equals = item.find('=');
    if (equals == std::string::npos) refuse(fmt::format("'{}' is not CLASS=TIER", item));
    const std::string what = item.substr(0, equals);
    OffloadedClass* placed = what == "optimizer"    ? &words.offload.optimizer
                             : what == "parameters" ? &words.offload.parameters
                             : what == "gradients"  ? &words.offload.gradients
                                                    : nullptr;
    if (placed == nullptr) refuse(fmt::format("'{}' is no class: expected optimizer, parameters or gradients", what));
    if (placed->elsewhere()) refuse(fmt::format("{} is given twice", what));
    parse_class(item.substr(equals + 1), *placed,
                what == "optimizer"    ? words.optimizer_folder
                : what == "parameters" ? words.parameters_folder
                                       : words.gradients_folder);
    begin = end + 1;
  }
  return words;
}

std::string file_folder(const OffloadWords& words) {
  std::string folder;
  for (const std::string* named : {&words.optimizer_folder, &words.gradients_folder, &words.parameters_folder}) {
    if (named->empty() || *named == folder) continue;
    if (!folder.empty()) {
      refuse(fmt::format("folders {} and {}: expected one, for engine shardplan has one file for each rank", folder,
                         *named));
    }
    folder = *named;
  }
  return folder;
}

}  // namespace shardplan
