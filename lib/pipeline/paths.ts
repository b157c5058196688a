/** A path, a list of paths, or paths by name. */
export type PathSetting = string | readonly string[] | Readonly<Record<string, string>>;

/** Keys whose values are paths; relative ones are meant from the directory of the file they stand in. */
export const pathKeys: ReadonlySet<string> = new Set([
  "model_path",
  "adapter_path",
  "data_path",
  "eval_data_path",
  "prompts_path",
  "eval_prompts_path",
  "reward_model_path",
  "reward_module",
  "environment_module",
  "ref_model_path",
  "output_dir",
  "models",
  "held_out_reward_model_path",
  "pairs_path",
  "references_path",
  "metrics_module",
  "runs",
]);

/** Those that name models; the others name data, modules and directories. */
export const modelKeys: ReadonlySet<string> = new Set([
  "model_path",
  "adapter_path",
  "reward_model_path",
  "ref_model_path",
  "models",
  "held_out_reward_model_path",
]);

/** Every path of a setting. */
export function pathsOf(setting: PathSetting): string[] {
  return typeof setting === "string" ? [setting] : Object.values(setting);
}
