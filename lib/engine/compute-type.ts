/** What matrix products of transformers can be computed in; "bfloat16x3" on the CPU alone, "float16" on "cuda" alone. */
export const COMPUTE_TYPES = ["float32", "bfloat16x3", "bfloat16", "float16"] as const;

/** What matrix products are computed in. */
export type ComputeType = (typeof COMPUTE_TYPES)[number];
