# Finds liburing (2.2 or newer) where SHARDPLAN_IO_URING asks for it, and sets SHARDPLAN_WITH_IO_URING; target shardplan_uring.
# A wheel brings no library, so there the static one is linked in.
set(SHARDPLAN_WITH_IO_URING OFF)
if(SHARDPLAN_IO_URING STREQUAL "AUTO" OR SHARDPLAN_IO_URING)
  set(name uring)
  if(SHARDPLAN_BUILD_PYTHON)
    set(name liburing.a)
  endif()
  find_path(SHARDPLAN_URING_HEADERS liburing.h)
  find_library(SHARDPLAN_URING_LIBRARY ${name})
  mark_as_advanced(SHARDPLAN_URING_HEADERS SHARDPLAN_URING_LIBRARY)
  if(SHARDPLAN_URING_HEADERS AND SHARDPLAN_URING_LIBRARY)
    include(CheckCXXSourceCompiles)
    set(CMAKE_REQUIRED_INCLUDES ${SHARDPLAN_URING_HEADERS})
    set(CMAKE_REQUIRED_LIBRARIES ${SHARDPLAN_URING_LIBRARY})
    check_cxx_source_compiles("#include <liburing.h>
      #ifndef LIBURING_HAVE_DATA64
      #error
      #endif
      int main() { io_uring ring{}; return io_uring_queue_init(1, &ring, 0); }" SHARDPLAN_URING_WORKS)
    unset(CMAKE_REQUIRED_INCLUDES)
    unset(CMAKE_REQUIRED_LIBRARIES)
  endif()
  if(SHARDPLAN_URING_WORKS)
    set(SHARDPLAN_WITH_IO_URING ON)
    add_library(shardplan_uring UNKNOWN IMPORTED GLOBAL)
    set_target_properties(shardplan_uring PROPERTIES IMPORTED_LOCATION ${SHARDPLAN_URING_LIBRARY}
                                                     INTERFACE_INCLUDE_DIRECTORIES ${SHARDPLAN_URING_HEADERS})
  elseif(NOT SHARDPLAN_IO_URING STREQUAL "AUTO")
    message(FATAL_ERROR "SHARDPLAN_IO_URING=${SHARDPLAN_IO_URING}: no liburing 2.2 or newer is found. Install liburing-dev")
  endif()
endif()
