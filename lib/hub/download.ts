import { createHash, type Hash } from "node:crypto";
import { createReadStream } from "node:fs";
import { mkdir, open, rename, rm, stat } from "node:fs/promises";
import { dirname } from "node:path";
import { RlhfError } from "../errors.ts";
import { syncDirectory } from "../model/files.ts";

/** What the hub says of a file. */
export interface RemoteFile {
  readonly path: string;
  readonly size: number;
  /** Git's SHA-1 of the blob. */
  readonly oid?: string;
  /** Of a large file: SHA-256 of its contents. */
  readonly lfs?: { readonly oid: string; readonly size: number };
}

/** The name of a file's contents in the cache. */
export function etagOf(file: RemoteFile): string {
  const etag = file.lfs?.oid ?? file.oid;
  if (etag === undefined || !/^[0-9a-f]{40,64}$/.test(etag))
    throw new RlhfError("ERR_RLHF_HUB", `${file.path}: the hub's listing gives no hash for it`, {
      path: file.path,
    });
  return etag;
}

/** Bytes of a file's contents. */
export function sizeOf(file: RemoteFile): number {
  return file.lfs?.size ?? file.size;
}

/** The hash that the listing promises: SHA-256 of large files, Git's SHA-1 of a blob for the others. */
function hashFor(file: RemoteFile): Hash {
  return file.lfs ? createHash("sha256") : createHash("sha1").update(`blob ${file.size}\0`);
}

async function hashOf(path: string, file: RemoteFile): Promise<string> {
  const hash = hashFor(file);
  for await (const chunk of createReadStream(path)) hash.update(chunk as Buffer);
  return hash.digest("hex");
}

/**
 * Downloads a file's contents to `target`. What an earlier, cut-off download left in `target.incomplete` is gone on from. The file
 * takes its name when it is whole and its hash is the one that the hub's listing gives, so a reader never sees a part.
 * Throws ERR_RLHF_HUB for contents that are not those of the listing.
 *
 * @param body the contents from a byte on
 */
export async function downloadTo(
  target: string,
  file: RemoteFile,
  body: (start: number) => Promise<AsyncIterable<Uint8Array>>,
): Promise<void> {
  const incomplete = `${target}.incomplete`;
  const size = sizeOf(file);
  await mkdir(dirname(target), { recursive: true });
  const had = (await stat(incomplete).catch(() => null))?.size ?? 0;
  const start = had <= size ? had : 0;
  const handle = await open(incomplete, start > 0 ? "a" : "w");
  try {
    if (start < size) for await (const chunk of await body(start)) await handle.writeFile(chunk);
    await handle.sync();
  } finally {
    await handle.close();
  }
  const received = (await stat(incomplete)).size;
  if (received < size)
    throw new RlhfError(
      "ERR_RLHF_HUB",
      `${file.path}: the download ended after ${received} of ${size} bytes; run again to go on from there`,
      { path: file.path, received, size },
    );
  if (received > size || (await hashOf(incomplete, file)) !== etagOf(file)) {
    // It cannot be gone on from.
    await rm(incomplete, { force: true });
    throw new RlhfError(
      "ERR_RLHF_HUB",
      `${file.path}: what was downloaded is not what the hub lists (${received} bytes, another hash); run again to fetch it anew`,
      { path: file.path, received, size },
    );
  }
  await rename(incomplete, target);
  await syncDirectory(dirname(target));
}
