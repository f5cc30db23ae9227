#include <chrono>
#include <exception>

#include "base/error.h"
#include "tools/python/bindings.h"

namespace shardplan::python {
namespace {

// Python's class of that name takes the message, then its fields.
template <typename... Fields>
void raise(const char* name, const std::exception& error, const Fields&... fields) {
  const nb::object type = nb::module_::import_("shardplan.errors").attr(name);
  PyErr_SetObject(type.ptr(), type(nb::str(error.what()), nb::cast(fields)...).ptr());
}

void translate(const std::exception_ptr& thrown, void* /*unused*/) {
  try {
    std::rethrow_exception(thrown);
  } catch (const ConfigError& error) {
    raise("ConfigError", error, error.source().c_str(), error.key().c_str(), error.problem().c_str());
  } catch (const OutOfMemory& error) {
    raise("OutOfMemory", error, error.tier().c_str(), error.requested().count(), error.available().count());
  } catch (const CommunicationError& error) {
    raise("CommunicationError", error, error.rank(), error.operation().c_str(),
          std::chrono::duration<double>(error.deadline()).count());
  } catch (const IoError& error) {
    raise("IoError", error, error.error_number(), error.path().c_str(), error.offset());
  } catch (const CheckpointError& error) {
    raise("CheckpointError", error, error.path().c_str());
  } catch (const ArithmeticOverflow& error) {
    raise("ArithmeticOverflow", error);
  } catch (const Error& error) {
    raise("Error", error);
  } catch (const CheckFailure& error) {
    raise("CheckFailure", error);
  }
}

}  // namespace

void bind_errors(nb::module_& /*module*/) {
  nb::register_exception_translator(translate);
}

}  // namespace shardplan::python
