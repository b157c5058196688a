import { type EvaluationReport, formatNumber, LEGEND, reportTables, type Sample } from "./report.ts";

/** Text as Markdown shows it letter by letter, on one line of a table. */
export function escapeMarkdown(text: string): string {
  return text
    .replaceAll("&", "&amp;")
    .replaceAll("<", "&lt;")
    .replaceAll(">", "&gt;")
    .replace(/[\\`*_[\]|#~$!]/g, "\\$&")
    .replace(/\r\n|\r|\n/g, "<br>");
}

function table(rows: readonly (readonly string[])[]): string[] {
  const line = (cells: readonly string[]): string => `| ${cells.map(escapeMarkdown).join(" | ")} |`;
  const [head = [], ...body] = rows;
  return [line(head), `|${"---|".repeat(head.length)}`, ...body.map(line)];
}

function sampleLines(sample: Sample): string[] {
  const answers = Object.entries(sample.answers).map(([name, { response, metrics }]) => [
    name,
    response,
    Object.entries(metrics)
      .map(([metric, value]) => `${metric} ${value === null ? "–" : formatNumber(value)}`)
      .join(", "),
  ]);
  const category = sample.category === null ? "" : ` (${escapeMarkdown(sample.category)})`;
  return [
    `**${escapeMarkdown(sample.prompt)}**${category}`,
    "",
    ...table([["", "answer", ""], ...answers]),
    "",
  ];
}

/** The report as Markdown: tables, and answers side by side. */
export function toMarkdown(report: EvaluationReport): string {
  const settings = Object.entries(report.settings).map(([name, value]) => `${name} ${value}`);
  const lines = [
    "# Evaluation",
    "",
    `${escapeMarkdown(settings.join(", "))}. Compared with ${escapeMarkdown(report.baseline)}; KL to ${escapeMarkdown(report.reference)}.`,
    "",
    LEGEND,
    "",
    ...reportTables(report).flatMap(({ title, rows }) => [
      `## ${escapeMarkdown(title)}`,
      "",
      ...table(rows),
      "",
    ]),
    ...(report.samples.length === 0 ? [] : ["## Answers side by side", ""]),
    ...report.samples.flatMap(sampleLines),
  ];
  return `${lines.join("\n").trimEnd()}\n`;
}
