import assert from "node:assert/strict";
import { cudaBackend, kernels } from "../support/kernels.ts";

/*
 * Models queue copies of arrays that they give back, or fill anew, as soon as the call has returned. CUDA's own text leaves open whether
 * memory that is not pinned is read by then ("might be synchronous"), above all where a GPU reads the host's pages itself.
 */
describe(`copies from the host to ${cudaBackend}`, () => {
  for (const bytes of [4, 1 << 10, 1 << 16, 1 << 20, 1 << 26])
    it(`of ${bytes} bytes bring what memory held when they were queued`, () => {
      const options = cudaBackend === "cuda" ? {} : { leadBytes: 1 << 12 };
      assert.ok(kernels.keepsOverwrittenSource(cudaBackend, bytes, options));
    });
});
