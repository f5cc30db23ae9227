#include <fmt/format.h>

#include <boost/json.hpp>
#include <utility>

#include "planner/formats/read_model.h"
#include "planner/formats/tensor_list.h"
#include "shard/c_api/handles.h"

namespace shardplan::c_api {
namespace {

namespace json = boost::json;

json::object entry_of(const shardplan_tensor& tensor) {
  json::object entry{{"name", &required(tensor.name, "a tensor's name")}};
  SHARDPLAN_CHECK(tensor.rank == 0 || tensor.shape != nullptr, fmt::format("the shape of {} is NULL", tensor.name));
  entry["shape"] = json::array(tensor.shape, tensor.shape + tensor.rank);
  if (tensor.dtype != SHARDPLAN_UNSPECIFIED) {
    const std::string_view dtype = name(dtype_of(tensor.dtype));
    entry["dtype"] = json::string(dtype.data(), dtype.size());
  }
  if (tensor.frozen != 0) entry["trainable"] = false;
  if (tensor.tied_to != nullptr) entry["tied_to"] = tensor.tied_to;
  if (tensor.unit != nullptr) entry["unit"] = tensor.unit;
  return entry;
}

// As a tensor list, of which there is one reader.
Catalog catalog_of(const shardplan_tensor* tensors, std::size_t count) {
  SHARDPLAN_CHECK(count == 0 || tensors != nullptr, "tensors is NULL");
  json::array entries;
  const auto* next = reinterpret_cast<const std::byte*>(tensors);
  for (std::size_t i = 0; i < count; ++i, next += tensors->struct_size) {
    const auto tensor = taken(reinterpret_cast<const shardplan_tensor*>(next), "a tensor");
    SHARDPLAN_CHECK(tensor.struct_size == tensors->struct_size, "tensors of one array differ in struct_size");
    entries.emplace_back(entry_of(tensor));
  }
  const json::object list{
      {"schema", std::string(kTensorListSchema)}, {"name", "tensors"}, {"tensors", std::move(entries)}};
  return model_from_tensor_list(json::serialize(list), "tensors").catalog;
}

void visit_tensors(const Catalog& catalog, shardplan_tensor_visitor visit, void* user) {
  std::uint64_t unit = 0;
  std::uint64_t ordinal = 0;
  for (const UnitRun& run : catalog.runs) {
    for (std::uint64_t i = 0; i < run.count; ++i, ++unit) {
      const std::string unit_text = unit_name(run, i);
      for (const Tensor& tensor : run.tensors) {
        const std::string whole_name = tensor_name(run, i, tensor);
        const shardplan_tensor facts{
            .struct_size = sizeof facts,
            .name = whole_name.c_str(),
            .shape = tensor.shape.data(),
            .rank = tensor.shape.size(),
            .dtype = tensor.dtype ? c_dtype(*tensor.dtype) : shardplan_dtype{SHARDPLAN_UNSPECIFIED},
            .frozen = tensor.trainable ? 0 : 1,
            .tied_to = tensor.tied_to.empty() ? nullptr : tensor.tied_to.c_str(),
            .unit = unit_text.c_str()};
        require_success("the tensor visitor", visit(user, unit, ordinal++, &facts));
      }
    }
  }
}

}  // namespace

DType dtype_of(shardplan_dtype dtype) {
  SHARDPLAN_CHECK(dtype >= SHARDPLAN_BOOL && dtype <= SHARDPLAN_U64, fmt::format("{} is no dtype", dtype));
  return static_cast<DType>(dtype - 1);
}

}  // namespace shardplan::c_api

extern "C" {

using namespace shardplan::c_api;  // NOLINT(google-build-using-namespace): the functions below have C's names

shardplan_status shardplan_catalog_from_tensors(const shardplan_tensor* tensors, size_t count,
                                                shardplan_catalog** catalog, shardplan_error* error) {
  return guarded(error, [&] {
    required(catalog, "catalog") = nullptr;
    *catalog = new shardplan_catalog{catalog_of(tensors, count)};
  });
}

shardplan_status shardplan_catalog_from_model(const char* preset_or_path, shardplan_catalog** catalog,
                                              shardplan_error* error) {
  return guarded(error, [&] {
    required(catalog, "catalog") = nullptr;
    *catalog = new shardplan_catalog{shardplan::find_model(&required(preset_or_path, "preset_or_path")).catalog};
  });
}

void shardplan_catalog_free(shardplan_catalog* catalog) {
  delete catalog;
}

shardplan_status shardplan_catalog_visit(const shardplan_catalog* catalog, shardplan_tensor_visitor visit, void* user,
                                         shardplan_error* error) {
  return guarded(error, [&] {
    SHARDPLAN_CHECK(visit != nullptr, "visit is NULL");
    visit_tensors(required(catalog, "catalog").catalog, visit, user);
  });
}

}  // extern "C"
