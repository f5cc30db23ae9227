// Bytes that are not what was written, and manifests that lie.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <random>
#include <string>
#include <utility>
#include <vector>

#include "base/error.h"
#include "shard/checkpoint/checkpoint.h"
#include "shard/checkpoint/checkpoint_reader.h"
#include "shard/checkpoint/state_writer.h"
#include "tests/shard/training_run.h"
#include "tests/shard/worlds.h"
#include "tests/support/crashing_files.h"

namespace shardplan::test {
namespace {

constexpr const char* kSaved = "saved/save-000001-step-000000001";

void save_one(Files& files, std::uint64_t ranks) {
  with_world(setup_of("bf16-mixed", ranks, 1, 2), odd_catalog(), state_options(), script_of(1), [&](const Rank& rank) {
    rank.client.run_step(rank.optimizer, 0);
    save_checkpoint(rank.optimizer, rank.world, files, "saved", {.client = "place"});
  });
}

struct Problem {
  std::string path;
  std::string text;
};

std::vector<Problem> problems_of(Files& files) {
  std::vector<Problem> problems;
  try {
    const CheckpointReader reader(files, kSaved);
    for (std::size_t i = 0; i < reader.manifest().files.size(); ++i) {
      const std::string path = reader.folder() + "/" + reader.manifest().files[i].name;
      const auto bad = [&](const std::string& slice, const std::string& problem) {
        problems.push_back({path, slice + ": " + problem});
      };
      reader.verify_header(i, bad);
      reader.verify_blocks(i, 0, reader.manifest().files[i].blocks.size(), bad);
    }
  } catch (const CheckpointError& error) {
    problems.push_back({error.path(), error.what()});
  }
  return problems;
}

// What the byte is of: a slice's name, or "header".
std::string owner_of(const CheckpointReader& reader, const std::string& path, std::uint64_t byte) {
  for (const CheckpointFile& file : reader.manifest().files) {
    if (reader.folder() + "/" + file.name != path) continue;
    if (byte < file.data_begin) return "header";
    for (const Slice& slice : file.slices) {
      if (byte < slice.begin || byte >= slice.begin + bytes_for(file.dtype, slice.elements).count()) continue;
      return slice_name(slice.kind, reader.tensors()[slice.tensor].name, slice.first, slice.elements);
    }
  }
  return "";
}

TEST(Damage, EveryFlippedBitIsFoundAndNamed) {
  CrashingFiles files;
  save_one(files, 2);
  ASSERT_TRUE(problems_of(files).empty());
  const CheckpointReader reader(files, kSaved);
  std::vector<std::string> paths;
  std::vector<double> sizes;
  for (const std::string& path : files.paths()) {
    if (path.find(kSaved) == std::string::npos) continue;  // `latest` is no part of the checkpoint
    paths.push_back(path);
    sizes.push_back(static_cast<double>(files.content(path).size()));
  }
  ASSERT_EQ(paths.size(), 1 + 2 * 2U);  // fp32 and bf16 (frozen) of each rank
  std::mt19937_64 random(20);
  std::discrete_distribution<std::size_t> file_of_byte(sizes.begin(), sizes.end());
  constexpr int kFlips = 10'000;
  for (int i = 0; i < kFlips; ++i) {
    const std::string& path = paths[file_of_byte(random)];
    std::string& content = files.content(path);
    const std::uint64_t byte = random() % content.size();
    const char bit = static_cast<char>(1U << random() % 8);
    content[byte] = static_cast<char>(content[byte] ^ bit);
    const std::vector<Problem> problems = problems_of(files);
    content[byte] = static_cast<char>(content[byte] ^ bit);
    ASSERT_EQ(problems.size(), 1U) << path << " byte " << byte;
    ASSERT_EQ(problems[0].path, path) << problems[0].text;
    const std::string owner = owner_of(reader, path, byte);
    ASSERT_NE(problems[0].text.find(owner), std::string::npos) << problems[0].text << "\nlacks " << owner;
  }
}

// A manifest with one text in the place of another, and the digest that it then has.
std::string changed(const std::string& text, const std::string& from, const std::string& to) {
  const std::size_t at = text.find(from);
  EXPECT_NE(at, std::string::npos) << from;
  std::string other = text;
  other.replace(at, from.size(), to);
  const std::size_t tail = kDigestDigits + 3;
  other.resize(other.size() - tail);
  return other + hex(digest_of(std::as_bytes(std::span(other)))) + "\"}\n";
}

TEST(Damage, AManifestThatLiesIsRefused) {
  CrashingFiles files;
  save_one(files, 1);
  const std::string path = std::string(kSaved) + "/manifest.json";
  const std::string good = files.content(path);
  EXPECT_EQ(changed(good, "\"client\"", "\"client\""), good);
  const std::string first_slice = good.substr(good.find("[0, \"parameter\""), 30);
  ASSERT_EQ(first_slice.substr(0, 25), "[0, \"parameter\", 0, 444, ");
  struct Lie {
    std::string from, to, words;
  };
  const std::vector<Lie> lies{
      {"shardplan-checkpoint", "shardplan-checkpoinT", "is no manifest of a checkpoint"},
      {"\"version\": 1", "\"version\": 2", "is of version 2, from the future: expected 1"},
      {"\"version\": 1", "\"version\": x", "has a version that is no number"},
      {"\"version\": 1", "\"version\": 99999999999999999999999", "has a version that is no number"},
      {"rank-00000-fp32.safetensors", "../../../etc/x.safetensors",
       "files[0].name: expected the name of a safetensors file"},
      {"rank-00000-fp32.safetensors", "/etc/passwd", "files[0].name: expected the name"},
      {"rank-00000-fp32.safetensors", ".hidden.safetensors", "files[0].name: expected the name"},
      {"rank-00000-fp32.safetensors", "a/b.safetensors", "files[0].name: expected the name"},
      {"rank-00000-bf16.safetensors", "rank-00000-fp32.safetensors", "name: is there twice"},
      {"[0, \"parameter\", 0, 444, ", "[99, \"parameter\", 0, 444, ", "expected a tensor that owns elements"},
      {"[0, \"parameter\", 0, 444, ", "[0, \"gradient\", 0, 444, ", "expected parameter, first_moment"},
      {"[0, \"parameter\", 0, 444, ", "[0, \"parameter\", 1, 444, ", "'embed.weight' has 444 elements"},
      {"[0, \"parameter\", 0, 444, ", "[0, \"parameter\", 0, 443, ", "header and slices make"},
      {"[0, \"parameter\", 0, 444, ", "[0, \"parameter\", 18446744073709551615, 444, ",
       "'embed.weight' has 444 elements"},
      {"[0, \"parameter\", 0, 444, ", "[0, \"parameter\", 0, 0, ", "expected a positive integer"},
      {"[0, \"parameter\", 0, 444, ", "[0, \"ema\", 0, 444, ", "element 0 is there twice"},
      {"[0, \"parameter\", 0, 444, \"", "[0, \"parameter\", 0, 444, \"00", "expected 1 digests"},
      {"\"shape\": [3000, 3]", "\"shape\": [4294967296, 4294967296]", "does not fit into 64 bits"},
      {"\"shape\": [3000, 3]", "\"shape\": [2999, 3]", "'wide.weight' has 8997 elements"},
      {"\"shape\": [3000, 3]", "\"shape\": [3001, 3]", "parameter/wide.weight: element 9000 is missing"},
      {"\"shape\": [37, 12]", "\"shape\": [38, 12]", "wide.embed: is tied to 'embed.weight', which has another shape"},
      {"\"count\": 3", "\"count\": 1000000000000", "catalog.runs[2].count"},
      {"\"count\": 3", "\"count\": 1000000", "more than 1048576 tensors"},
      {"\"count\": 3", "\"count\": 4", "'layers.3.norm.bias' has 7 elements"},
      {"\"block_bytes\": 4194304", "\"block_bytes\": 0", "block_bytes"},
      {"\"block_bytes\": 4194304", "\"block_bytes\": 18446744073709551615", "block_bytes"},
      {"\"block_bytes\": 4194304", "\"block_bytes\": 12", "block_bytes: expected a multiple of 8"},
      {"\"content\": \"state\"", "\"content\": \"weights\"", "is no weight"},
      {"\"content\": \"state\"", "\"content\": \"else\"", "content: expected state or weights"},
      {"\"client\": \"", "\"client\": \"zz", "client: expected hex digits"},
      {"\"dtype\": \"fp32\", \"bytes\"", "\"dtype\": \"nf4\", \"bytes\"", "dtype: expected a dtype of whole bytes"},
      {"\"header_bytes\": ", "\"header_bytes\": 9", "files[0]"},
      {"\"tied_to\": \"embed.weight\"", "\"tied_to\": \"nobody\"", "nobody"},
      {"\"files\": [", "\"files\": [[]", "syntax error"},
  };
  for (const auto& [from, to, words] : lies) {
    files.content(path) = changed(good, from, to);
    try {
      const CheckpointReader reader(files, kSaved);
      ADD_FAILURE() << "believed " << to;
    } catch (const CheckpointError& error) {
      EXPECT_EQ(error.path(), path);
      EXPECT_NE(std::string(error.what()).find(words), std::string::npos) << error.what() << "\nlacks: " << words;
    }
  }
  for (std::size_t length = 0; length < good.size(); length += length < 100 ? 1 : 37) {
    files.content(path) = good.substr(0, length);
    EXPECT_THROW(CheckpointReader(files, kSaved), CheckpointError) << length;
  }
  files.content(path) = good;
  const CheckpointReader reader(files, kSaved);
}

TEST(Damage, FilesThatAreMissingOrOfAnotherLength) {
  CrashingFiles files;
  save_one(files, 1);
  const std::string path = std::string(kSaved) + "/rank-00000-bf16.safetensors";
  files.content(path) += 'x';
  const std::vector<Problem> longer = problems_of(files);
  ASSERT_EQ(longer.size(), 1U);
  EXPECT_EQ(longer[0].path, path);
  files.content(path).resize(10);
  EXPECT_EQ(problems_of(files).at(0).path, path);
  files.remove_file(path);
  EXPECT_THROW(CheckpointReader(files, kSaved), IoError);
}

// Blocks smaller than slices: each is found by itself.
TEST(Damage, ABlockIsNamed) {
  CrashingFiles files;
  files.make_folder("one");
  CatalogBuilder builder("one", "tensors");
  builder.begin_unit("one");
  builder.add({.name = "one.weight", .shape = {100}});
  Manifest manifest;
  manifest.catalog = builder.finish();
  manifest.block_bytes = 64;
  const std::vector<TensorEntry> table = tensor_table(manifest.catalog);
  const std::vector<AnnouncedSlice> slices{{.elements = 60}, {.first = 60, .elements = 40}};
  StateWriter writer(files, table, slices, {.folder = "one", .prefix = "all", .block_bytes = 64});
  std::vector<float> values(100);
  for (std::size_t i = 0; i < values.size(); ++i) values[i] = static_cast<float>(i);
  for (std::size_t i = 0; i < 100; i += 20) {  // across the ends of blocks
    writer.append({.name = "one.weight", .first = i}, ConstElements(std::span<const float>(values).subspan(i, 20)));
  }
  manifest.files = writer.finish();
  ASSERT_EQ(manifest.files.size(), 1U);
  EXPECT_EQ(manifest.files[0].blocks.size(), 4U + 3U);
  write_whole(files, "one/manifest.json", manifest_text(manifest));
  CheckpointReader reader(files, "one");
  std::vector<float> read(37);
  reader.read(0, StateKind::parameter, 41, Elements(std::span(read)));
  for (std::size_t i = 0; i < read.size(); ++i) EXPECT_EQ(read[i], values[41 + i]);

  const std::uint64_t begin = manifest.files[0].slices[1].begin;
  files.content("one/all-fp32.safetensors")[begin + 130] ^= 1;
  CheckpointReader again(files, "one");
  again.read(0, StateKind::parameter, 0, Elements(std::span(read)));
  try {
    again.read(0, StateKind::parameter, 63, Elements(std::span(read)));
    ADD_FAILURE() << "damage was not found";
  } catch (const CheckpointError& error) {
    EXPECT_EQ(error.path(), "one/all-fp32.safetensors");
    EXPECT_NE(std::string(error.what()).find("parameter/one.weight[60:100]: block 2 has the digest"), std::string::npos)
        << error.what();
  }
}

TEST(Damage, AManifestIsReadAsItWasWritten) {
  CrashingFiles files;
  save_one(files, 2);
  const std::string path = std::string(kSaved) + "/manifest.json";
  const std::string text = files.content(path);
  const Manifest manifest = parse_manifest(text, path);
  EXPECT_EQ(manifest.client, "place");
  EXPECT_EQ(manifest.step.steps_applied, 1U);
  EXPECT_EQ(manifest.saved_by.stage, 2);
  EXPECT_EQ(manifest.catalog, odd_catalog());
  EXPECT_EQ(manifest_text(manifest), text);
}

}  // namespace
}  // namespace shardplan::test
