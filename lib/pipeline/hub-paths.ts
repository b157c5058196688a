import { downloadDataset, downloadModel, type HubOptions } from "../hub/hub.ts";
import { isHubId } from "../hub/id.ts";
import { modelKeys, type PathSetting, pathKeys } from "./paths.ts";
import type { Stage } from "./schema.ts";

async function localPath(key: string, path: string, options: HubOptions): Promise<string[]> {
  if (!isHubId(path)) return [path];
  return modelKeys.has(key) ? [await downloadModel(path, options)] : downloadDataset(path, options);
}

async function localSetting(key: string, setting: PathSetting, options: HubOptions): Promise<PathSetting> {
  if (typeof setting !== "string" && !Array.isArray(setting)) {
    const named = Object.entries(setting).map(async ([name, path]) => [
      name,
      (await localPath(key, path, options))[0],
    ]);
    return Object.fromEntries(await Promise.all(named)) as Readonly<Record<string, string>>;
  }
  const paths = [setting].flat().map((path) => localPath(key, path as string, options));
  const local = (await Promise.all(paths)).flat();
  return typeof setting === "string" && local.length === 1 ? (local[0] as string) : local;
}

/** A stage with what it names on the hub downloaded, so that its inputs are files like any others. */
export async function withLocalPaths<Given extends Stage>(
  stage: Given,
  onDownload: (file: string) => void,
  signal: AbortSignal | undefined,
): Promise<Given> {
  const settings: Record<string, unknown> = { ...stage.settings };
  const options = { onDownload, ...(signal ? { signal } : {}) };
  for (const [key, value] of Object.entries(settings))
    if (pathKeys.has(key) && value !== undefined)
      settings[key] = await localSetting(key, value as PathSetting, options);
  return { kind: stage.kind, settings } as unknown as Given;
}
