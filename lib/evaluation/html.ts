import { type Chart, COLOURS, toSvg } from "./curves.ts";
import {
  type EvaluationReport,
  formatNumber,
  LEGEND,
  reportTables,
  type Sample,
  type Table,
} from "./report.ts";

/** Text as HTML shows it letter by letter, in content and in attributes. */
export function escapeHtml(text: string): string {
  return text
    .replaceAll("&", "&amp;")
    .replaceAll("<", "&lt;")
    .replaceAll(">", "&gt;")
    .replaceAll('"', "&quot;")
    .replaceAll("'", "&#39;");
}

const STYLE = `
body { font: 15px/1.45 system-ui, sans-serif; margin: 2rem auto; max-width: 76rem; padding: 0 1rem; color: #222; background: #fff; }
table { border-collapse: collapse; margin: .5rem 0 1.5rem; }
th, td { border: 1px solid #ccc; padding: .3rem .6rem; text-align: left; vertical-align: top; }
th { background: #f3f3f3; }
.text { white-space: pre-wrap; overflow-wrap: anywhere; }
.charts { display: flex; flex-wrap: wrap; gap: 1rem; }
figure { margin: 0; }
figcaption { font-size: 13px; }
svg text { font: 10px system-ui, sans-serif; fill: #555; }
svg .axes { stroke: #999; }
.key { display: inline-block; width: 1em; height: .7em; margin: 0 .3em 0 1em; }
`;

function tableHtml({ title, rows }: Table): string {
  const [head = [], ...body] = rows;
  const cells = (row: readonly string[], tag: "th" | "td"): string =>
    `<tr>${row.map((cell) => `<${tag}>${escapeHtml(cell)}</${tag}>`).join("")}</tr>`;
  return `<h2>${escapeHtml(title)}</h2>\n<table>${cells(head, "th")}${body.map((row) => cells(row, "td")).join("")}</table>`;
}

function sampleHtml({ prompt, category, answers }: Sample): string {
  const rows = Object.entries(answers).map(([name, { response, metrics }]) => {
    const values = Object.entries(metrics).map(
      ([metric, value]) => `${metric} ${value === null ? "–" : formatNumber(value)}`,
    );
    return `<tr><th>${escapeHtml(name)}</th><td class="text">${escapeHtml(response)}</td><td>${escapeHtml(values.join(", "))}</td></tr>`;
  });
  const label = category === null ? "" : ` <em>${escapeHtml(category)}</em>`;
  return `<p><strong class="text">${escapeHtml(prompt)}</strong>${label}</p>\n<table>${rows.join("")}</table>`;
}

function chartsHtml(charts: readonly Chart[]): string[] {
  if (charts.length === 0) return [];
  const runs = [...new Set(charts.flatMap(({ curves }) => curves.map(({ run }) => run)))];
  const colourOf = (run: string): string => COLOURS[runs.indexOf(run) % COLOURS.length] as string;
  const keys = runs.map(
    (run) => `<span class="key" style="background:${colourOf(run)}"></span>${escapeHtml(run)}`,
  );
  const figures = charts.map(
    (chart) =>
      `<figure><figcaption>${escapeHtml(chart.metric)}</figcaption>${toSvg(chart, colourOf)}</figure>`,
  );
  return [
    "<h2>Training</h2>",
    `<p>By step:${keys.join("")}</p>`,
    `<div class="charts">${figures.join("\n")}</div>`,
  ];
}

/** The report as one HTML page that needs nothing from elsewhere: tables, curves of the runs, answers side by side. */
export function toHtml(report: EvaluationReport, charts: readonly Chart[]): string {
  const settings = Object.entries(report.settings).map(([name, value]) => `${name} ${value}`);
  const lines = [
    "<!doctype html>",
    '<html lang="en">',
    '<head><meta charset="utf-8"><meta name="viewport" content="width=device-width">',
    `<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">`,
    `<title>Evaluation</title><style>${STYLE}</style></head>`,
    "<body>",
    "<h1>Evaluation</h1>",
    `<p>${escapeHtml(`${settings.join(", ")}. Compared with ${report.baseline}; KL to ${report.reference}.`)}</p>`,
    `<p>${escapeHtml(LEGEND)}</p>`,
    ...reportTables(report).map(tableHtml),
    ...chartsHtml(charts),
    ...(report.samples.length === 0 ? [] : ["<h2>Answers side by side</h2>"]),
    ...report.samples.map(sampleHtml),
    "</body>",
    "</html>",
  ];
  return `${lines.join("\n")}\n`;
}
