import { mkdir, readdir, readFile, realpath, stat, symlink } from "node:fs/promises";
import { homedir } from "node:os";
import { dirname, join, relative, sep } from "node:path";
import { writeFileAtomically } from "../model/files.ts";
import type { HubId } from "./id.ts";

/*
 * The cache of Python's huggingface_hub, which is shared with it:
 *   models--owner--name/refs/<revision>            the commit that a branch or tag was at
 *   models--owner--name/blobs/<etag>               contents
 *   models--owner--name/snapshots/<commit>/<path>  links to them
 */

/** Where downloads are kept: HF_HUB_CACHE, else hub/ in HF_HOME, else ~/.cache/huggingface/hub. */
export function hubCacheDirectory(environment: NodeJS.ProcessEnv = process.env): string {
  const { HF_HUB_CACHE, HF_HOME, XDG_CACHE_HOME } = environment;
  if (HF_HUB_CACHE) return HF_HUB_CACHE;
  const home = HF_HOME || join(XDG_CACHE_HOME || join(homedir(), ".cache"), "huggingface");
  return join(home, "hub");
}

/** The part of the cache that belongs to one repository. */
export class RepositoryCache {
  readonly #root: string;

  constructor(cacheDirectory: string, { kind, name }: HubId) {
    this.#root = join(cacheDirectory, [`${kind}s`, ...name.split("/")].join("--"));
  }

  blob(etag: string): string {
    return join(this.#root, "blobs", etag);
  }

  snapshot(commit: string): string {
    return join(this.#root, "snapshots", commit);
  }

  /** The commit that a revision was at when it was downloaded last, or null. */
  async commitOf(revision: string): Promise<string | null> {
    if (/^[0-9a-f]{40}$/.test(revision) && (await isThere(this.snapshot(revision)))) return revision;
    const commit = await readFile(join(this.#root, "refs", ...revision.split("/")), "utf8").catch(() => null);
    return commit && (await isThere(this.snapshot(commit.trim()))) ? commit.trim() : null;
  }

  /** Remembers the commit of a revision; done when its files are there. */
  async setCommit(revision: string, commit: string): Promise<void> {
    if (revision !== commit)
      await writeFileAtomically(join(this.#root, "refs", ...revision.split("/")), commit);
  }

  /** Paths of a snapshot's files within the repository, sorted. */
  async files(commit: string): Promise<string[]> {
    const root = this.snapshot(commit);
    const entries = await readdir(root, { withFileTypes: true, recursive: true });
    return entries
      .filter((entry) => !entry.isDirectory())
      .map((entry) => relative(root, join(entry.parentPath, entry.name)).split(sep).join("/"))
      .sort();
  }

  /** Makes a blob appear in a snapshot, under its path. */
  async link(commit: string, path: string, etag: string): Promise<void> {
    const place = join(this.snapshot(commit), ...path.split("/"));
    if (await isThere(place)) return;
    await mkdir(dirname(place), { recursive: true });
    const target = relative(await realpath(dirname(place)), await realpath(this.blob(etag)));
    await symlink(target, place).catch((error: unknown) => {
      // Another process was quicker.
      if (!(error instanceof Error && "code" in error && error.code === "EEXIST")) throw error;
    });
  }
}

/** Whether a path exists and, where it is a link, leads somewhere. */
export async function isThere(path: string): Promise<boolean> {
  return (await stat(path).catch(() => null)) !== null;
}
