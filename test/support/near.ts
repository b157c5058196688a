import assert from "node:assert/strict";

/** Within `tolerance` of what is expected. What is missing and NaN are near nothing. */
export function assertNear(
  actual: number | null | undefined,
  expected: number,
  tolerance = 1e-12,
  what = "the value",
): void {
  const near = typeof actual === "number" && Math.abs(actual - expected) <= tolerance;
  assert.ok(near, `${what} is ${actual}, expected ${expected}`);
}

/** As many elements, each near the one expected. */
export function assertAllNear(
  actual: ArrayLike<number>,
  expected: ArrayLike<number>,
  tolerance: number,
): void {
  assert.equal(actual.length, expected.length);
  for (let i = 0; i < expected.length; i++)
    assertNear(actual[i], expected[i] as number, tolerance, `element ${i}`);
}
