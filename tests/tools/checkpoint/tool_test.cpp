// What shardplan-checkpoint makes of checkpoints.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <cstring>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "base/error.h"
#include "base/half.h"
#include "planner/formats/safetensors.h"
#include "runtime/files/posix_files.h"
#include "shard/checkpoint/checkpoint.h"
#include "shard/checkpoint/folder.h"
#include "shard/checkpoint/state_writer.h"
#include "tests/shard/training_run.h"
#include "tests/shard/worlds.h"
#include "tests/support/config_error.h"
#include "tests/support/crashing_files.h"
#include "tests/support/saved_state.h"
#include "tests/support/temporary_folder.h"
#include "tools/checkpoint/commands.h"
#include "tools/checkpoint/inspect.h"

namespace shardplan::checkpoint_tool {
namespace {

using test::CrashingFiles;
using test::Rank;
using test::SavedState;
using test_support::TemporaryFolder;

void save(const Setup& setup, Files& files, const std::string& folder, SavedState* state = nullptr) {
  test::with_world(setup, test::state_catalog(), test::state_options(), test::script_of(1), [&](const Rank& rank) {
    rank.client.run_step(rank.optimizer, 0);
    if (state != nullptr) state->save(rank.optimizer);
    save_checkpoint(rank.optimizer, rank.world, files, folder, {});
  });
}

constexpr const char* kName = "save-000001-step-000000001";

// N -> M: file for file what M ranks would have written of the same state.
TEST(Reshard, WritesWhatThatManyRanksWouldHave) {
  for (const std::uint64_t from : {1U, 3U}) {
    for (const std::uint64_t to : {1U, 2U, 3U, 4U, 7U}) {
      SCOPED_TRACE(fmt::format("{} -> {}", from, to));
      CrashingFiles files;
      save(test::setup_of("bf16-mixed", from, 1, 2), files, "saved");
      EXPECT_EQ(reshard(files, checkpoint_at(files, "saved"), "again", to), kName);
      test::with_world(test::setup_of("bf16-mixed", to, 1, 1), test::state_catalog(), test::other_initial_values(), {},
                       [&](const Rank& rank) {
                         load_checkpoint(rank.optimizer, rank.world, files, "saved");
                         save_checkpoint(rank.optimizer, rank.world, files, "expected", {});
                       });
      const std::vector<FolderEntry> expected = files.list(join_path("expected", kName));
      EXPECT_EQ(files.list(join_path("again", kName)), expected);
      for (const FolderEntry& file : expected) {
        if (file.name == kManifestName) continue;
        EXPECT_EQ(files.content(fmt::format("again/{}/{}", kName, file.name)),
                  files.content(fmt::format("expected/{}/{}", kName, file.name)))
            << file.name;
      }
      EXPECT_TRUE(verify(files, "again", 2).flaws.empty());
    }
  }
}

// Every tensor in files that our reader of models takes, from either side.
std::map<std::string, std::vector<float>> floats_in(Files& files, const std::string& path) {
  std::map<std::string, std::vector<float>> values;
  for (const StoredTensorPlace& place : tensors_in_safetensors(path)) {
    std::vector<std::byte> bytes(place.tensor.end - place.tensor.begin);
    files.open(place.path)->read(place.data_begin + place.tensor.begin, bytes);
    std::vector<float>& floats = values[place.tensor.name];
    floats.resize(elements(place.tensor.shape));
    cast(Elements(std::span(floats)), ConstElements(place.tensor.dtype, bytes.data(), floats.size()));
  }
  return values;
}

TEST(Consolidate, WritesWholeTensorsAndAnIndex) {
  const TemporaryFolder folder;
  PosixFiles files;
  std::vector<std::vector<float>> parameters;
  test::with_world(test::setup_of("bf16-mixed", 3, 1, 3), test::state_catalog(), test::state_options(),
                   test::script_of(1), [&](const Rank& rank) {
                     rank.client.run_step(rank.optimizer, 0);
                     save_checkpoint(rank.optimizer, rank.world, files, folder.path("saved"), {});
                     const auto seen = test::parameters_of(rank.optimizer);
                     if (rank.rank == 0) parameters = seen;
                   });
  const std::string checkpoint = checkpoint_at(files, folder.path("saved"));
  EXPECT_EQ(consolidate(files, checkpoint, folder.path("whole"), {}), std::vector<std::string>{"model.safetensors"});
  const auto whole = floats_in(files, folder.path("whole/model.safetensors"));
  std::size_t i = 0;
  for_each_tensor(test::state_catalog(), [&](const std::string& name, const Tensor& tensor) {
    if (!tensor.tied_to.empty()) return;
    EXPECT_EQ(whole.at(name), parameters.at(i++)) << name;
  });
  EXPECT_EQ(whole.size(), i);

  const std::vector<std::string> names =
      consolidate(files, checkpoint, folder.path("half"), {.dtype = DType::bf16, .shard_bytes = 30'000});
  ASSERT_GE(names.size(), 3U);
  EXPECT_EQ(names.back(), "model.safetensors.index.json");
  EXPECT_EQ(names.front(), fmt::format("model-00001-of-{:05}.safetensors", names.size() - 1));
  const auto half = floats_in(files, folder.path("half"));
  ASSERT_EQ(half.size(), whole.size());
  for (const auto& [name, values] : whole) {
    for (std::size_t e = 0; e < values.size(); ++e) {
      ASSERT_EQ(half.at(name)[e], bf16_to_fp32(fp32_to_bf16(values[e]))) << name << " " << e;
    }
  }
  test_support::expect_config_error([&] { consolidate(files, checkpoint, folder.path("half"), {}); },
                                    folder.path("half"), "", "is there already");
  EXPECT_EQ(consolidate(files, checkpoint, folder.path("ema"), {.dtype = {}, .ema = true}).size(), 1U);
  EXPECT_NE(floats_in(files, folder.path("ema")).at("embed.weight"), whole.at("embed.weight"));
}

TEST(Import, WeightsAreInitialValuesInAnyDtype) {
  const TemporaryFolder folder;
  PosixFiles files;
  save(test::setup_of("bf16-mixed", 2, 1, 3), files, folder.path("saved"));
  const std::string checkpoint = checkpoint_at(files, folder.path("saved"));
  consolidate(files, checkpoint, folder.path("half"), {.dtype = DType::bf16, .shard_bytes = 30'000});
  EXPECT_EQ(import_weights(files, folder.path("half"), folder.path("imported")), "save-000001-step-000000000");
  EXPECT_TRUE(verify(files, folder.path("imported"), 3).flaws.empty());
  const auto half = floats_in(files, folder.path("half"));
  for (const char* precision : {"fp32", "bf16-mixed", "fp16-mixed"}) {
    test::with_world(
        test::setup_of(precision, 2, 1, 2), test::state_catalog(), test::other_initial_values(), test::script_of(1),
        [&](const Rank& rank) {
          const LoadReport report = load_checkpoint(rank.optimizer, rank.world, files, folder.path("imported"));
          EXPECT_EQ(report.client, "");
          const auto parameters = test::parameters_of(rank.optimizer);
          std::size_t i = 0;
          for_each_tensor(test::state_catalog(), [&](const std::string& name, const Tensor& tensor) {
            if (!tensor.tied_to.empty()) return;
            const std::vector<float>& mine = parameters.at(i++);
            // Masters take bf16 exactly; a tensor of its own dtype is rounded to that.
            if (!tensor.trainable || tensor.dtype) return;
            EXPECT_EQ(mine, half.at(name)) << name;
          });
          rank.optimizer.visit_state([&](const StateRange& range, const ConstElements& values) {
            if (range.kind != StateKind::first_moment && range.kind != StateKind::second_moment) return;
            const std::uint64_t bytes = bytes_for(values.dtype, values.elements).count();
            EXPECT_TRUE(std::all_of(values.data, values.data + bytes, [](std::byte b) { return b == std::byte{0}; }))
                << range.name;
          });
          rank.client.run_step(rank.optimizer, 0);
        });
  }
}

TEST(Verify, NamesEachFlaw) {
  CrashingFiles files;
  save(test::setup_of("bf16-mixed", 2, 1, 3), files, "saved");
  save(test::setup_of("bf16-mixed", 2, 1, 3), files, "saved");
  EXPECT_EQ(verify(files, "saved", 4).checkpoints, 2U);
  EXPECT_TRUE(verify(files, "saved", 4).flaws.empty());
  const std::string path = "saved/save-000001-step-000000001/rank-00001-fp32.safetensors";
  files.content(path)[20] ^= 1;
  files.content(path).back() ^= 1;
  files.remove_file("saved/save-000002-step-000000001/rank-00000-bf16.safetensors");
  const Verified verified = verify(files, "saved", 4);
  ASSERT_EQ(verified.flaws.size(), 3U);
  EXPECT_EQ(verified.flaws[0].file, "saved/save-000002-step-000000001/rank-00000-bf16.safetensors");
  EXPECT_EQ(verified.flaws[1].file, path);
  EXPECT_NE(verified.flaws[1].problem.find("its header"), std::string::npos);
  EXPECT_EQ(verified.flaws[2].file, path);
  EXPECT_NE(verified.flaws[2].slice.find("large.weight["), std::string::npos) << verified.flaws[2].slice;
  EXPECT_THROW(verify(files, "elsewhere", 1), CheckpointError);
}

// Reads of blocks return once so many of them are under way at once, or after some seconds.
class MeetingFiles final : public Files {
 public:
  static constexpr std::size_t kMeetingBlock = 64 << 10;

  MeetingFiles(Files& files, unsigned readers) : files_(files), readers_(readers) {}
  bool met() const { return met_; }

  std::unique_ptr<InputFile> open(const std::string& path) override {
    return std::make_unique<Input>(*this, files_.open(path));
  }
  bool exists(const std::string& path) override { return files_.exists(path); }
  std::vector<FolderEntry> list(const std::string& path) override { return files_.list(path); }
  std::unique_ptr<OutputFile> create(const std::string& path) override { return files_.create(path); }
  void make_folder(const std::string& path) override { files_.make_folder(path); }
  void sync_folder(const std::string& path) override { files_.sync_folder(path); }
  void rename(const std::string& from, const std::string& to) override { files_.rename(from, to); }
  void remove_file(const std::string& path) override { files_.remove_file(path); }
  void remove_folder(const std::string& path) override { files_.remove_folder(path); }

 private:
  class Input final : public InputFile {
   public:
    Input(MeetingFiles& all, std::unique_ptr<InputFile> file) : all_(all), file_(std::move(file)) {}
    std::uint64_t bytes() const override { return file_->bytes(); }
    void read(std::uint64_t offset, std::span<std::byte> to) const override {
      if (to.size() >= kMeetingBlock) all_.meet();
      file_->read(offset, to);
    }

   private:
    MeetingFiles& all_;
    std::unique_ptr<InputFile> file_;
  };

  void meet() {
    std::unique_lock lock(mutex_);
    met_ = met_ || ++reading_ == readers_;
    if (met_) changed_.notify_all();
    if (!gave_up_) gave_up_ = !changed_.wait_for(lock, std::chrono::seconds{10}, [&] { return met_; });
    --reading_;
  }

  Files& files_;
  unsigned readers_;
  std::mutex mutex_;
  std::condition_variable changed_;
  unsigned reading_ = 0;
  bool met_ = false;
  bool gave_up_ = false;
};

TEST(Verify, AllThreadsShareOneFile) {
  CrashingFiles files;
  files.make_folder("one");
  CatalogBuilder builder("one", "tensors");
  builder.begin_unit("one");
  builder.add({.name = "one.weight", .shape = {1 << 20}});
  builder.add({.name = "one.bias", .shape = {3}});
  Manifest manifest;
  manifest.content = CheckpointContent::weights;
  manifest.catalog = builder.finish();
  manifest.block_bytes = MeetingFiles::kMeetingBlock;
  const std::vector<TensorEntry> table = tensor_table(manifest.catalog);
  const std::vector<AnnouncedSlice> slices{{.elements = 1 << 20}, {.tensor = 1, .elements = 3}};
  StateWriter writer(files, table, slices, {.folder = "one", .prefix = "all", .block_bytes = manifest.block_bytes});
  std::vector<float> values(1 << 20);
  for (std::size_t i = 0; i < values.size(); ++i) values[i] = static_cast<float>(i);
  writer.append({.name = "one.weight"}, ConstElements(std::span<const float>(values)));
  writer.append({.name = "one.bias", .tensor = 1}, ConstElements(std::span<const float>(values).first(3)));
  manifest.files = writer.finish();
  ASSERT_EQ(manifest.files.size(), 1U);
  ASSERT_EQ(manifest.files[0].blocks.size(), 64U + 1U);
  write_whole(files, "one/manifest.json", manifest_text(manifest));

  MeetingFiles meeting(files, 4);
  const Verified verified = verify(meeting, "one", 4);
  EXPECT_TRUE(meeting.met()) << "4 threads have not read the file at once";
  EXPECT_TRUE(verified.flaws.empty());
  EXPECT_EQ(verified.bytes, manifest.files[0].bytes);

  // Every block is looked at, whoever's it is, and flaws come in order.
  std::string& content = files.content("one/all-fp32.safetensors");
  for (const std::size_t block : {0U, 7U, 8U, 40U, 63U}) content[manifest.files[0].data_begin + block * 65536 + 9] ^= 4;
  content.back() ^= 1;
  for (const unsigned threads : {1U, 3U, 64U}) {
    const std::vector<Flaw> flaws = verify(files, "one", threads).flaws;
    ASSERT_EQ(flaws.size(), 6U);
    EXPECT_EQ(flaws[0].slice, "parameter/one.weight[0:1048576]");
    EXPECT_TRUE(flaws[1].problem.starts_with("block 7 has the digest")) << flaws[1].problem;
    EXPECT_TRUE(flaws[4].problem.starts_with("block 63 has the digest")) << flaws[4].problem;
    EXPECT_EQ(flaws[5].slice, "parameter/one.bias[0:3]");
  }
}

TEST(Inspect, SaysWhatIsThere) {
  CrashingFiles files;
  save(test::setup_of("bf16-mixed", 2, 1, 3), files, "saved");
  const CheckpointReader reader(files, checkpoint_at(files, "saved"));
  const std::string json = inspect_json(reader);
  for (const char* part : {R"("schema": "shardplan.checkpoint/1")", R"("steps_applied": 1)", R"("world_size": 2)",
                           R"("precision": "bf16-mixed")", R"("parameter.fp32")", R"("second_moment.fp32")"}) {
    EXPECT_NE(json.find(part), std::string::npos) << json << "\nlacks " << part;
  }
  EXPECT_NE(inspect_text(reader).find("after 1 steps"), std::string::npos);
  EXPECT_THROW(checkpoint_at(files, "nowhere"), CheckpointError);
}

}  // namespace
}  // namespace shardplan::checkpoint_tool
