import { setImmediate } from "node:timers/promises";

/** Longest time, in milliseconds, that work on data keeps the event loop to itself. */
const SLICE = 15;

/** Lets the event loop run between slices of long work: call and await the result once per item. */
export function breather(): () => Promise<void> | undefined {
  let began = performance.now();
  return () => {
    if (performance.now() - began < SLICE) return undefined;
    return setImmediate().then(() => {
      began = performance.now();
    });
  };
}
