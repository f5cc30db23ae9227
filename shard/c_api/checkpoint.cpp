#include "shard/checkpoint/checkpoint.h"

#include <string>
#include <utility>

#include "shard/c_api/handles.h"
#include "shard/checkpoint/together.h"

namespace shardplan::c_api {
namespace {

SaveOptions options_of(const shardplan_save_options* given) {
  if (given == nullptr) return {};
  const shardplan_save_options known = taken(given, "options");
  SaveOptions options{.client = {}, .keep = known.keep};
  if (known.client_bytes > 0) {
    options.client.assign(&required(static_cast<const char*>(known.client), "client"), known.client_bytes);
  }
  if (known.memory_bytes > 0) options.memory = Bytes{known.memory_bytes};
  return options;
}

// The handle keeps what the report points at.
shardplan_load_report keep(shardplan_optimizer& handle, LoadReport report) {
  handle.loaded = std::move(report);
  handle.notes.clear();
  for (const std::string& note : handle.loaded.notes) handle.notes.push_back(note.c_str());
  return {.struct_size = sizeof(shardplan_load_report),
          .name = handle.loaded.name.c_str(),
          .client = handle.loaded.client.data(),
          .client_bytes = handle.loaded.client.size(),
          .notes = handle.notes.data(),
          .note_count = handle.notes.size()};
}

}  // namespace
}  // namespace shardplan::c_api

extern "C" {

using namespace shardplan::c_api;  // NOLINT(google-build-using-namespace): the functions below have C's names

shardplan_status shardplan_optimizer_save(shardplan_optimizer* optimizer, const char* folder,
                                          const shardplan_save_options* options, const char** name,
                                          shardplan_error* error) {
  return guarded(error, [&] {
    shardplan_optimizer& handle = required(optimizer, "optimizer");
    handle.saved = shardplan::save_checkpoint(*handle.optimizer, *handle.world->communicator, handle.files,
                                              &required(folder, "folder"), options_of(options));
    if (name != nullptr) *name = handle.saved.c_str();
  });
}

shardplan_status shardplan_optimizer_save_in_background(shardplan_optimizer* optimizer, const char* folder,
                                                        const shardplan_save_options* options, shardplan_error* error) {
  return guarded(error, [&] {
    shardplan_optimizer& handle = required(optimizer, "optimizer");
    const std::string where = &required(folder, "folder");
    const shardplan::SaveOptions how = options_of(options);
    shardplan::Communicator& world = *handle.world->communicator;
    if (!handle.background) {
      shardplan::succeed_together(world, where, [&] {
        handle.background =
            std::make_unique<shardplan::BackgroundSave>(*handle.optimizer, world, handle.files, *handle.world->device);
      });
    }
    handle.background->start(where, how);
  });
}

shardplan_status shardplan_optimizer_finish_save(shardplan_optimizer* optimizer, int wait, const char** name,
                                                 shardplan_error* error) {
  return guarded(error, [&] {
    shardplan_optimizer& handle = required(optimizer, "optimizer");
    bool done = true;
    if (handle.background) {
      if (wait != 0) handle.background->finish();
      done = handle.background->poll();
      if (done) handle.saved = handle.background->published();
    }
    if (name != nullptr) *name = done ? handle.saved.c_str() : nullptr;
  });
}

shardplan_status shardplan_optimizer_load(shardplan_optimizer* optimizer, const char* folder,
                                          shardplan_load_report* report, shardplan_error* error) {
  return guarded(error, [&] {
    shardplan_optimizer& handle = required(optimizer, "optimizer");
    const shardplan_load_report loaded =
        keep(handle, shardplan::load_checkpoint(*handle.optimizer, *handle.world->communicator, handle.files,
                                                &required(folder, "folder")));
    if (report != nullptr) give(report, loaded, "report");
  });
}

}  // extern "C"
