# The Node addon that is shipped.

add_library(rlhf_napi INTERFACE)
target_include_directories(rlhf_napi SYSTEM INTERFACE ${CMAKE_JS_INC})
# A JavaScript function that is cut off because its thread ends throws what no code can catch: swallowing it, and not ending the
# process, is what the last definition asks for.
target_compile_definitions(rlhf_napi INTERFACE
  NAPI_VERSION=8 NODE_ADDON_API_CPP_EXCEPTIONS NODE_API_SWALLOW_UNTHROWABLE_EXCEPTIONS)
target_link_libraries(rlhf_napi INTERFACE rlhf_options)

# csrc/node: addon.cc registers the shipped module, kernels*.cc are the repository's own one, the rest serves both.
rlhf_glob(addon_sources node/addon.cc)
rlhf_glob(node_sources node/*.cc)
list(FILTER node_sources EXCLUDE REGEX "/node/(addon|kernels[^/]*)\\.cc$")
rlhf_add_objects(rlhf_node ${node_sources})
if(node_sources)
  target_link_libraries(rlhf_node PRIVATE rlhf_napi)
endif()

# A Node addon of the given sources that links the engine and the object libraries after LINK.
function(rlhf_add_addon target output_directory)
  cmake_parse_arguments(PARSE_ARGV 2 addon "" "" "SOURCES;LINK")
  add_library(${target}_objects OBJECT ${addon_SOURCES} ${CMAKE_JS_SRC})
  target_link_libraries(${target}_objects PRIVATE rlhf_napi ${addon_LINK})

  # No sources of its own: those would be linked after the SIMD objects.
  add_library(${target} SHARED)
  set_target_properties(${target} PROPERTIES
    LINKER_LANGUAGE CXX PREFIX "" SUFFIX ".node"
    LIBRARY_OUTPUT_DIRECTORY "${output_directory}" RUNTIME_OUTPUT_DIRECTORY "${output_directory}")
  target_link_libraries(${target} PRIVATE
    ${target}_objects rlhf_node ${addon_LINK} ${RLHF_ENGINE_OBJECTS} ${CMAKE_JS_LIB})
  target_link_options(${target} PRIVATE ${RLHF_LINK_OPTIONS})
  if(APPLE)
    target_link_options(${target} PRIVATE -undefined dynamic_lookup)
  endif()
endfunction()

if(addon_sources)
  rlhf_add_addon(rlhf "${RLHF_OUTPUT_DIRECTORY}" SOURCES ${addon_sources})
else()
  message(WARNING "csrc/node/addon.cc is missing: the addon is not built")
endif()
