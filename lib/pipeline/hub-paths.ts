import { downloadDataset, downloadModel, type HubOptions } from "../hub/hub.ts";
import { isHubId } from "../hub/id.ts";
import { pathKeys, type Stage } from "./schema.ts";

/** Keys that name models; the other paths of a stage name data. */
const MODEL_KEYS: ReadonlySet<string> = new Set([
  "model_path",
  "adapter_path",
  "reward_model_path",
  "ref_model_path",
]);

async function localPath(key: string, path: string, options: HubOptions): Promise<string[]> {
  if (!isHubId(path)) return [path];
  return MODEL_KEYS.has(key) ? [await downloadModel(path, options)] : downloadDataset(path, options);
}

/** A stage with what it names on the hub downloaded, so that its inputs are files like any others. */
export async function withLocalPaths(
  stage: Stage,
  onDownload: (file: string) => void,
  signal: AbortSignal | undefined,
): Promise<Stage> {
  const settings: Record<string, unknown> = { ...stage.settings };
  const options = { onDownload, ...(signal ? { signal } : {}) };
  for (const [key, value] of Object.entries(settings)) {
    if (!pathKeys.has(key)) continue;
    if (typeof value === "string") {
      const paths = await localPath(key, value, options);
      settings[key] = paths.length === 1 ? paths[0] : paths;
    } else if (Array.isArray(value)) {
      settings[key] = (
        await Promise.all((value as string[]).map((path) => localPath(key, path, options)))
      ).flat();
    }
  }
  return { kind: stage.kind, settings } as unknown as Stage;
}
