#include <algorithm>
#include <atomic>
#include <mutex>
#include <thread>

#include "base/error.h"
#include "shard/checkpoint/folder.h"
#include "tools/checkpoint/commands.h"

namespace shardplan::checkpoint_tool {
namespace {

bool is_checkpoint(Files& files, const std::string& path) {
  return files.exists(join_path(path, kManifestName));
}

// Files are handed out one by one, the order of the flaws is that of the files.
void verify_files(const CheckpointReader& reader, unsigned threads, Verified& verified) {
  const std::vector<CheckpointFile>& all = reader.manifest().files;
  std::vector<std::vector<Flaw>> flaws(all.size());
  std::atomic<std::size_t> next{0};
  const auto work = [&] {
    for (std::size_t i = next++; i < all.size(); i = next++) {
      const std::string path = join_path(reader.folder(), all[i].name);
      try {
        reader.verify_file(i, [&](const std::string& slice, const std::string& problem) {
          flaws[i].push_back({path, slice, problem});
        });
      } catch (const IoError& error) {
        flaws[i].push_back({path, "", error.what()});
      }
    }
  };
  std::vector<std::thread> others;
  for (unsigned i = 1; i < std::min<std::size_t>(threads, all.size()); ++i) others.emplace_back(work);
  work();
  for (std::thread& thread : others) thread.join();
  for (std::size_t i = 0; i < all.size(); ++i) {
    verified.bytes += all[i].bytes;
    verified.flaws.insert(verified.flaws.end(), flaws[i].begin(), flaws[i].end());
  }
}

}  // namespace

std::string checkpoint_at(Files& files, const std::string& path) {
  if (is_checkpoint(files, path)) return path;
  std::string problems;
  for (const std::string& name : checkpoints_to_try(files, path)) {
    const std::string one = join_path(path, name);
    try {
      const CheckpointReader reader(files, one);
      return one;
    } catch (const CheckpointError& error) {
      problems += std::string("; ") + error.what();
    } catch (const IoError& error) {
      problems += std::string("; ") + error.what();
    }
  }
  throw CheckpointError(path, "is no checkpoint, and there is no whole one in it" + problems);
}

Verified verify(Files& files, const std::string& path, unsigned threads) {
  std::vector<std::string> checkpoints;
  if (is_checkpoint(files, path)) {
    checkpoints.push_back(path);
  } else {
    for (const std::string& name : checkpoints_in(files, path)) checkpoints.push_back(join_path(path, name));
  }
  if (checkpoints.empty()) throw CheckpointError(path, "is no checkpoint, and there is none in it");
  Verified verified;
  for (const std::string& checkpoint : checkpoints) {
    ++verified.checkpoints;
    try {
      const CheckpointReader reader(files, checkpoint);
      verify_files(reader, threads, verified);
    } catch (const CheckpointError& error) {
      verified.flaws.push_back({error.path(), "", std::string(error.what()).substr(error.path().size() + 2)});
    } catch (const IoError& error) {
      verified.flaws.push_back({error.path(), "", std::string(error.what()).substr(error.path().size() + 2)});
    }
  }
  return verified;
}

}  // namespace shardplan::checkpoint_tool
