/**
 * Every error this package throws on purpose is an `RlhfError` with one of these codes. The text says what the code means;
 * the message of an error says what was found, what was expected and how to mend it.
 */
export const ERROR_CODES = {
  ERR_RLHF_NO_BINARY: "the native addon is missing for this platform or cannot be loaded",
  ERR_RLHF_NO_CUDA: "CUDA was asked for, and its backend is missing or does not fit this build",
  ERR_RLHF_NO_CUDA_DRIVER: "CUDA was asked for, and there is no NVIDIA driver",
  ERR_RLHF_OLD_CUDA_DRIVER: "CUDA was asked for, and the NVIDIA driver is too old for this build",
  ERR_RLHF_NO_CUDA_DEVICE: "CUDA was asked for, and there is no GPU, or none that is new enough",
  ERR_RLHF_UNSUPPORTED: "a model family, data type or feature that this build does not have",
  ERR_RLHF_ARGUMENT: "an argument has the wrong type or a value outside its range",
  ERR_RLHF_SHAPE: "an array's shape does not fit the operation",
  ERR_RLHF_UNKNOWN_NAME: "no parameter, adapter, head or module has this name",
  ERR_RLHF_TOKEN_RANGE: "a token id lies outside the model's vocabulary",
  ERR_RLHF_CONTEXT_LENGTH: "a sequence is longer than the model's context",
  ERR_RLHF_MEMORY: "the memory that a plan needs is over the budget or cannot be had",
  ERR_RLHF_PASS_LIVE:
    "more forward passes are alive than were planned for: call backward() or dispose() on one",
  ERR_RLHF_PASS_CONSUMED: "a forward pass was used after backward() had consumed it",
  ERR_RLHF_DISPOSED: "a trainer or a native handle was used after dispose()",
  ERR_RLHF_BUSY: "a trainer was asked to train while it is training",
  ERR_RLHF_NON_FINITE: "a logit, a loss, a gradient or a reward is NaN or infinite",
  ERR_RLHF_MODEL: "a model directory is incomplete, or its config.json is malformed or not supported",
  ERR_RLHF_WEIGHTS: "a weight file is malformed, or its tensors do not fit the configuration",
  ERR_RLHF_CHECKPOINT: "a training checkpoint is incomplete or belongs to another run",
  ERR_RLHF_LOCKED: "another process is writing to this output directory",
  ERR_RLHF_TOKENIZER: "tokenizer files are missing, malformed or of a kind that is not supported",
  ERR_RLHF_DATA: "a data file cannot be read, or a row does not have the form it should",
  ERR_RLHF_HUB: "something on the Hugging Face hub could not be found or downloaded",
  ERR_RLHF_CONFIG: "a configuration file or setting is wrong",
  ERR_RLHF_USAGE: "the command line was used wrongly",
  ERR_RLHF_REWARD: "a reward function or a metric failed or returned something other than a finite number",
  ERR_RLHF_IO: "a file or directory could not be read or written",
  ERR_RLHF_ABORTED: "the operation was stopped by its AbortSignal",
  ERR_RLHF_INTERNAL: "a defect in this package; please report it",
} as const;

/** One of the documented error codes. */
export type RlhfErrorCode = keyof typeof ERROR_CODES;

/** Facts about an error for programs to read: file, line, expected and actual values. */
export type ErrorDetails = Readonly<Record<string, unknown>>;

/** The one error class of this package: test `code`, read `details`, show `message`. */
export class RlhfError extends Error {
  readonly code: RlhfErrorCode;
  readonly details: ErrorDetails;

  constructor(
    code: RlhfErrorCode,
    message: string,
    details: ErrorDetails = {},
    options?: { cause?: unknown },
  ) {
    super(message, options);
    this.name = "RlhfError";
    this.code = code;
    this.details = details;
  }
}

/** True for errors of this package, also when two copies of the package are loaded. */
export function isRlhfError(error: unknown): error is RlhfError {
  return (
    error instanceof Error && "code" in error && typeof error.code === "string" && error.code in ERROR_CODES
  );
}

/** The message of anything that can be thrown. */
export function messageOf(error: unknown): string {
  return error instanceof Error ? error.message : String(error);
}

/**
 * Throws ERR_RLHF_ABORTED when the signal has been raised; `what` names the operation that stops. ERR_RLHF_ARGUMENT for what is no
 * signal, as an AbortController in its place: nothing would ever stop.
 */
export function throwIfAborted(signal: AbortSignal | undefined, what: string): void {
  if (signal && typeof signal.aborted !== "boolean")
    throw new RlhfError(
      "ERR_RLHF_ARGUMENT",
      `${what}: signal must be an AbortSignal (an AbortController has it as .signal), got ${String(signal)}`,
    );
  if (signal?.aborted)
    throw new RlhfError("ERR_RLHF_ABORTED", `${what} was aborted`, {}, { cause: signal.reason });
}
