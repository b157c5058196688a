#include "simt/fiber.h"

#include <sys/mman.h>

#include <cstdint>
#include <new>

#if !defined(__x86_64__)
#include <ucontext.h>
#endif
#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

namespace rlhf::simt {
namespace {

#if defined(__SANITIZE_ADDRESS__)
constexpr size_t kStackBytes = 512 << 10;  // its red zones make frames several times larger
#else
constexpr size_t kStackBytes = 64 << 10;
#endif

thread_local Fiber* starting = nullptr;  // handed to begin(), which takes no argument

constexpr size_t kGuardBytes = 64 << 10;  // whole pages, and more than one: a large frame could step over it

}  // namespace

#if defined(__x86_64__)

// Saves the registers that a call must preserve (System V ABI) on the stack left behind, and loads those of the other.
// swapcontext would also save the signal mask, by a system call for every switch.
extern "C" void rlhfSimtSwitch(void** save, void* load);
asm(R"(
  .text
  .globl rlhfSimtSwitch
  .hidden rlhfSimtSwitch
  .type rlhfSimtSwitch, @function
rlhfSimtSwitch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
  .size rlhfSimtSwitch, .-rlhfSimtSwitch
)");

namespace {

constexpr int kSavedRegisters = 6;

void* initialContext(char* stack, void (*begin)()) {
  // A function expects its stack pointer 8 bytes below a multiple of 16: as if a call had pushed a return address.
  auto* top = reinterpret_cast<void**>(stack + kStackBytes) - 2;
  top[0] = reinterpret_cast<void*>(begin);
  top[1] = nullptr;
  for (int i = 1; i <= kSavedRegisters; ++i) top[-i] = nullptr;
  return top - kSavedRegisters;
}

void switchContext(void** save, void** load) { rlhfSimtSwitch(save, *load); }
void destroyContext(void*) {}

}  // namespace

#else

namespace {

void* initialContext(char* stack, void (*begin)()) {
  auto* context = new ucontext_t;
  getcontext(context);
  context->uc_stack.ss_sp = stack;
  context->uc_stack.ss_size = kStackBytes;
  context->uc_link = nullptr;
  makecontext(context, begin, 0);
  return context;
}

void switchContext(void** save, void** load) {
  if (!*save) *save = new ucontext_t;
  swapcontext(static_cast<ucontext_t*>(*save), static_cast<ucontext_t*>(*load));
}

void destroyContext(void* context) { delete static_cast<ucontext_t*>(context); }

}  // namespace

#endif

Fiber::~Fiber() {
  destroyContext(fiberContext_);
  destroyContext(schedulerContext_);
  if (mapping_) munmap(mapping_, kGuardBytes + kStackBytes);
}

void Fiber::allocateStack() {
  void* memory = mmap(nullptr, kGuardBytes + kStackBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED) throw std::bad_alloc();
  mapping_ = static_cast<char*>(memory);
  mprotect(mapping_, kGuardBytes, PROT_NONE);  // stacks grow down, into these pages when they overflow
}

void* Fiber::top() const { return mapping_ + kGuardBytes + kStackBytes; }

bool Fiber::isBehindStack(const void* address) const {
  const auto* byte = static_cast<const char*>(address);
  return byte >= mapping_ && byte < mapping_ + kGuardBytes;
}

void Fiber::start(void (*entry)(void*), void* argument) {
  if (!mapping_) allocateStack();
#if defined(__SANITIZE_ADDRESS__)
  __asan_unpoison_memory_region(mapping_ + kGuardBytes, kStackBytes);  // a call that was dropped left its red zones
#endif
  destroyContext(fiberContext_);
  fiberContext_ = initialContext(mapping_ + kGuardBytes, &Fiber::begin);
  entry_ = entry;
  argument_ = argument;
  fiberFakeStack_ = nullptr;
}

void Fiber::resume() {
  starting = this;
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_start_switch_fiber(&schedulerFakeStack_, mapping_ + kGuardBytes, kStackBytes);
#endif
  switchContext(&schedulerContext_, &fiberContext_);
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(schedulerFakeStack_, nullptr, nullptr);
#endif
}

void Fiber::suspend() {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_start_switch_fiber(&fiberFakeStack_, schedulerStack_, schedulerStackBytes_);
#endif
  switchContext(&fiberContext_, &schedulerContext_);
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(fiberFakeStack_, &schedulerStack_, &schedulerStackBytes_);
#endif
}

void Fiber::begin() {
  Fiber* self = starting;
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(nullptr, &self->schedulerStack_, &self->schedulerStackBytes_);
#endif
  self->entry_(self->argument_);
}

}  // namespace rlhf::simt
