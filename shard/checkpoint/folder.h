// A folder of checkpoints: what they are called, which is the newest whole one, and how one comes and goes.
//
//   DIR/save-000007-step-000000120/    a checkpoint; the first number counts the saves in DIR, the second is of steps applied
//   DIR/latest                         the name of one of them: what to go on from
//   DIR/.saving-NAME, .removing-NAME   not yet, no longer: left by a crash, removed by the next save
//
// One program at a time may save into a folder; any number may read.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "runtime/files/files.h"

namespace shardplan {

struct CheckpointName {
  std::uint64_t save = 0;
  std::uint64_t step = 0;
  bool operator==(const CheckpointName&) const = default;
};
std::string text_of(const CheckpointName& name);
std::optional<CheckpointName> parse_checkpoint_name(std::string_view text);

// The names in `folder`, newest save first; none where there is no folder. Whether they are whole is not looked at.
std::vector<std::string> checkpoints_in(Files& files, const std::string& folder);
// What a resume should try, in order: what `latest` names, if it is there, then the others, newest first.
std::vector<std::string> checkpoints_to_try(Files& files, const std::string& folder);

// A checkpoint that is being written. From begin_checkpoint() on its files go to working_folder().
struct OpenCheckpoint {
  std::string folder;
  std::string name;
  std::string working_folder() const { return join_path(folder, ".saving-" + name); }
  std::string final_folder() const { return join_path(folder, name); }
};

// Makes the working folder, under the number after the last one that is in `folder`; removes what crashes have left.
OpenCheckpoint begin_checkpoint(Files& files, const std::string& folder, std::uint64_t step);
// All files but the manifest are written and synced. Writes the manifest, syncs it and the folder, renames the folder,
// syncs the parent; then the same with `latest`. Up to the rename nothing has changed for a reader, after it the new
// checkpoint is there as a whole. Throws IoError.
void publish_checkpoint(Files& files, const OpenCheckpoint& checkpoint, std::string_view manifest);
// Keeps the newest `keep` whole ones and whatever `latest` names, and removes all that are older than the last of them;
// 0 keeps everything. Whole here: the manifest is, and every file is there and as long as it says.
void keep_newest(Files& files, const std::string& folder, std::uint64_t keep);
// A folder with files in it. Renamed first, so that it is never half there under its name.
void remove_checkpoint(Files& files, const std::string& folder, const std::string& name);

}  // namespace shardplan
