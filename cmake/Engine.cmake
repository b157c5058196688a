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

# What every backend needs, the CUDA library among them: core types and the contracts of the ops.
rlhf_glob(core_sources core/*.cc ops/*.cc)
rlhf_add_objects(rlhf_core ${core_sources})

rlhf_glob(engine_sources cpu/*.cc model/*.cc rl/*.cc)
list(FILTER engine_sources EXCLUDE REGEX "_(avx2|avx512)\\.cc$")
rlhf_add_objects(rlhf_engine ${engine_sources})

# The CPU kernels, compiled once for each instruction set: RLHF_ISA names their namespace, and the dispatcher chooses
# among the sets at run time. "scalar" is what the architecture guarantees (SSE2 on x86-64, NEON on arm64).
# A source named for an instruction set, such as cpu/dot_avx512.cc, belongs to that set alone.
function(rlhf_add_kernels isa)
  rlhf_glob(sources cpu/kernels/*.cc cpu/*_${isa}.cc)
  rlhf_add_objects(rlhf_cpu_${isa} ${sources})
  if(sources)
    target_compile_definitions(rlhf_cpu_${isa} PRIVATE RLHF_ISA=${isa})
    target_compile_options(rlhf_cpu_${isa} PRIVATE ${ARGN})
  endif()
endfunction()

if(MSVC)
  rlhf_add_kernels(scalar)
else()
  # a * b + c becomes a fused multiply-add where the set has one; vectors wider than the baseline's may be passed, since
  # they never cross from one instruction set to another.
  set(kernel_options -ffp-contract=fast -Wno-psabi)
  rlhf_add_kernels(scalar ${kernel_options})
  if(RLHF_X86)
    rlhf_add_kernels(avx2 ${kernel_options} -mavx2 -mfma -mf16c -mprfchw)
    rlhf_add_kernels(avx512 ${kernel_options}
      -mavx512f -mavx512bw -mavx512vl -mavx512dq -mavx2 -mfma -mf16c -mprfchw -mprefer-vector-width=512)
  endif()
endif()

# What an addon links, in the order explained above.
set(RLHF_ENGINE_OBJECTS rlhf_core rlhf_engine rlhf_cpu_scalar)
if(RLHF_X86 AND NOT MSVC)
  list(APPEND RLHF_ENGINE_OBJECTS rlhf_cpu_avx2 rlhf_cpu_avx512)
endif()
