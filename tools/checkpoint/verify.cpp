#include <algorithm>
#include <atomic>
#include <memory>

#include "base/error.h"
#include "runtime/files/background.h"
#include "shard/checkpoint/folder.h"
#include "tools/checkpoint/commands.h"

namespace shardplan::checkpoint_tool {
namespace {

bool is_checkpoint(Files& files, const std::string& path) {
  return files.exists(join_path(path, kManifestName));
}

// What a thread takes at once: some blocks of a file, with its header where they are the first.
struct Piece {
  std::size_t file = 0;
  std::size_t first = 0;
  std::size_t end = 0;
};

// Pieces that are large enough to be read in a row, and so many that no thread waits long for the last.
std::vector<Piece> pieces_of(const Manifest& manifest, unsigned threads) {
  constexpr std::uint64_t kLeast = 64 << 10;
  constexpr std::uint64_t kMost = 32 << 20;
  std::uint64_t all = 0;
  for (const CheckpointFile& file : manifest.files) all += file.bytes;
  const std::uint64_t goal = std::clamp(all / (std::uint64_t{8} * threads), kLeast, kMost);
  std::vector<Piece> pieces;
  for (std::size_t f = 0; f < manifest.files.size(); ++f) {
    const CheckpointFile& file = manifest.files[f];
    Piece piece{.file = f};
    std::uint64_t bytes = 0;
    for (const Slice& slice : file.slices) {
      const std::uint64_t slice_bytes = bytes_for(file.dtype, slice.elements).count();
      for (std::uint64_t block = 0; block < block_count(slice_bytes, manifest.block_bytes); ++block) {
        ++piece.end;
        bytes += bytes_of_block(slice_bytes, manifest.block_bytes, block);
        if (bytes < goal) continue;
        pieces.push_back(piece);
        piece.first = piece.end;
        bytes = 0;
      }
    }
    if (piece.first < piece.end || piece.end == 0) pieces.push_back(piece);
  }
  return pieces;
}

// Pieces are handed out one by one; the order of the flaws is that of the files.
void verify_files(const CheckpointReader& reader, unsigned threads, Verified& verified) {
  const std::vector<CheckpointFile>& files = reader.manifest().files;
  const std::vector<Piece> pieces = pieces_of(reader.manifest(), threads);
  std::vector<std::vector<Flaw>> flaws(pieces.size());
  std::atomic<std::size_t> next{0};
  const auto work = [&] {
    for (std::size_t i = next++; i < pieces.size(); i = next++) {
      const Piece& piece = pieces[i];
      const std::string path = join_path(reader.folder(), files[piece.file].name);
      const auto bad = [&](const std::string& slice, const std::string& problem) {
        flaws[i].push_back({path, slice, problem});
      };
      try {
        if (piece.first == 0) reader.verify_header(piece.file, bad);
        reader.verify_blocks(piece.file, piece.first, piece.end, bad);
      } catch (const IoError& error) {
        bad("", error.what());
      }
    }
  };
  std::vector<std::unique_ptr<Background>> others;
  for (std::size_t i = 1; i < std::min<std::size_t>(threads, pieces.size()); ++i) {
    others.push_back(std::make_unique<Background>());
    others.back()->start(work);
  }
  work();
  for (const auto& other : others) other->wait();
  for (const CheckpointFile& file : files) verified.bytes += file.bytes;
  for (const std::vector<Flaw>& some : flaws) verified.flaws.insert(verified.flaws.end(), some.begin(), some.end());
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
