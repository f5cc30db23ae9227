#include "shard/checkpoint/folder.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>

#include "base/error.h"
#include "shard/checkpoint/checkpoint_reader.h"

namespace shardplan {
namespace {

constexpr std::string_view kLatest = "latest";
constexpr std::string_view kNewLatest = ".saving-latest";
constexpr std::string_view kSaving = ".saving-";
constexpr std::string_view kRemoving = ".removing-";

// Takes `before` and a number of digits alone off the front.
std::optional<std::uint64_t> take_number(std::string_view& text, std::string_view before) {
  if (!text.starts_with(before)) return std::nullopt;
  text.remove_prefix(before.size());
  std::uint64_t value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc()) return std::nullopt;
  text.remove_prefix(static_cast<std::size_t>(end - text.data()));
  return value;
}

// What is in it goes first; a crash leaves a rest that the next one removes.
void remove_tree(Files& files, const std::string& path) {
  for (const FolderEntry& entry : files.list(path)) {
    if (entry.folder) {
      remove_tree(files, join_path(path, entry.name));
    } else {
      files.remove_file(join_path(path, entry.name));
    }
  }
  files.remove_folder(path);
}

std::optional<std::string> latest_in(Files& files, const std::string& folder) {
  constexpr std::uint64_t kLongestName = 255;
  const std::string path = join_path(folder, kLatest);
  if (!files.exists(path)) return std::nullopt;
  std::string text;
  try {
    text = read_whole(files, path, kLongestName);
  } catch (const IoError&) {
    return std::nullopt;  // the others are tried all the same
  }
  if (text.ends_with('\n')) text.pop_back();
  if (!parse_checkpoint_name(text)) return std::nullopt;
  return text;
}

bool is_whole(Files& files, const std::string& path) {
  try {
    const CheckpointReader reader(files, path);
    return true;
  } catch (const CheckpointError&) {
    return false;
  } catch (const IoError&) {
    return false;
  }
}

}  // namespace

std::string text_of(const CheckpointName& name) {
  return fmt::format("save-{:06}-step-{:09}", name.save, name.step);
}

std::optional<CheckpointName> parse_checkpoint_name(std::string_view text) {
  std::string_view rest = text;
  const auto save = take_number(rest, "save-");
  const auto step = save ? take_number(rest, "-step-") : std::nullopt;
  if (!step || !rest.empty()) return std::nullopt;
  const CheckpointName name{*save, *step};
  if (text_of(name) != text) return std::nullopt;  // one spelling for each
  return name;
}

std::vector<std::string> checkpoints_in(Files& files, const std::string& folder) {
  std::vector<CheckpointName> found;
  if (files.exists(folder)) {
    for (const FolderEntry& entry : files.list(folder)) {
      const auto name = parse_checkpoint_name(entry.name);
      if (entry.folder && name) found.push_back(*name);
    }
  }
  std::sort(found.begin(), found.end(),
            [](const auto& a, const auto& b) { return a.save != b.save ? a.save > b.save : a.step > b.step; });
  std::vector<std::string> names;
  for (const CheckpointName& name : found) names.push_back(text_of(name));
  return names;
}

std::vector<std::string> checkpoints_to_try(Files& files, const std::string& folder) {
  std::vector<std::string> names = checkpoints_in(files, folder);
  const auto latest = latest_in(files, folder);
  if (!latest) return names;
  const auto found = std::find(names.begin(), names.end(), *latest);
  if (found != names.end()) std::rotate(names.begin(), found, found + 1);
  return names;
}

OpenCheckpoint begin_checkpoint(Files& files, const std::string& folder, std::uint64_t step) {
  make_folders(files, folder);
  for (const FolderEntry& entry : files.list(folder)) {
    if (!entry.name.starts_with(kSaving) && !entry.name.starts_with(kRemoving)) continue;
    const std::string path = join_path(folder, entry.name);
    entry.folder ? remove_tree(files, path) : files.remove_file(path);
  }
  const std::vector<std::string> names = checkpoints_in(files, folder);
  const std::uint64_t last = names.empty() ? 0 : parse_checkpoint_name(names.front())->save;
  OpenCheckpoint checkpoint{.folder = folder, .name = text_of({.save = last + 1, .step = step})};
  files.make_folder(checkpoint.working_folder());
  return checkpoint;
}

void publish_checkpoint(Files& files, const OpenCheckpoint& checkpoint, std::string_view manifest) {
  const std::string working = checkpoint.working_folder();
  write_whole(files, join_path(working, kManifestName), manifest);
  files.sync_folder(working);
  files.rename(working, checkpoint.final_folder());
  files.sync_folder(checkpoint.folder);

  const std::string new_latest = join_path(checkpoint.folder, kNewLatest);
  write_whole(files, new_latest, checkpoint.name + "\n");
  files.rename(new_latest, join_path(checkpoint.folder, kLatest));
  files.sync_folder(checkpoint.folder);
}

void remove_checkpoint(Files& files, const std::string& folder, const std::string& name) {
  const std::string removing = join_path(folder, std::string(kRemoving) + name);
  files.rename(join_path(folder, name), removing);
  files.sync_folder(folder);
  remove_tree(files, removing);
}

void keep_newest(Files& files, const std::string& folder, std::uint64_t keep) {
  if (keep == 0) return;
  const auto latest = latest_in(files, folder);
  std::uint64_t whole = 0;
  for (const std::string& name : checkpoints_in(files, folder)) {
    if (whole >= keep && name != latest) {
      remove_checkpoint(files, folder, name);
    } else if (whole < keep && is_whole(files, join_path(folder, name))) {
      ++whole;
    }
  }
}

}  // namespace shardplan
