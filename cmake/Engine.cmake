# The engine: object libraries that every shared object links.
#
# They are objects and not archives because their order matters. The SIMD files may hold out-of-line copies of
# inline functions from the standard library, compiled for their instruction set; the linker keeps the first copy
# that it meets. So baseline objects come first, then AVX2, then AVX-512, and no machine can run into an instruction
# that it lacks outside a kernel chosen at run time. An archive's members are taken in the order of demand instead.

function(rlhf_glob out)
  list(TRANSFORM ARGN PREPEND "${CMAKE_SOURCE_DIR}/csrc/" OUTPUT_VARIABLE patterns)
  file(GLOB sources CONFIGURE_DEPENDS ${patterns})
  set(${out} ${sources} PARENT_SCOPE)
endfunction()

# An object library of the given sources, or an empty interface where there are none.
function(rlhf_add_objects target)
  if(ARGN)
    add_library(${target} OBJECT ${ARGN})
    target_link_libraries(${target} PUBLIC rlhf_options)
  else()
    add_library(${target} INTERFACE)
    target_link_libraries(${target} INTERFACE rlhf_options)
  endif()
endfunction()

rlhf_glob(core_sources core/*.cc)
rlhf_glob(engine_sources ops/*.cc cpu/*.cc model/*.cc rl/*.cc)
set(avx2_sources ${engine_sources})
list(FILTER avx2_sources INCLUDE REGEX "/cpu/[^/]*_avx2\\.cc$")
set(avx512_sources ${engine_sources})
list(FILTER avx512_sources INCLUDE REGEX "/cpu/[^/]*_avx512\\.cc$")
list(FILTER engine_sources EXCLUDE REGEX "_(avx2|avx512)\\.cc$")

if(RLHF_X86)
  list(APPEND engine_sources ${avx2_sources} ${avx512_sources})
  if(MSVC)
    set(avx2_options /arch:AVX2)
    set(avx512_options /arch:AVX512)
  else()
    set(avx2_options -mavx2 -mfma -mf16c)
    set(avx512_options -mavx512f -mavx512bw -mavx512vl -mavx512dq -mavx2 -mfma -mf16c)
  endif()
  set_source_files_properties(${avx2_sources} PROPERTIES COMPILE_OPTIONS "${avx2_options}")
  set_source_files_properties(${avx512_sources} PROPERTIES COMPILE_OPTIONS "${avx512_options}")
endif()

rlhf_add_objects(rlhf_core ${core_sources})
rlhf_add_objects(rlhf_engine ${engine_sources})
