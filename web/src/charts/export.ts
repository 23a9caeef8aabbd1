/** A panel as a file: the picture that is seen, the same as vectors, its values, and the lines of Python that read them. */

import type uPlot from "uplot";
import { token } from "./colours";
import type { Line } from "./line";

/** What the picture of a panel says beside the curves. */
export interface Legend {
  title: string;
  lines: readonly Pick<Line, "label" | "colour">[];
}

const HEAD = 26;
const FOOT = 18;
const FONT = 'Inter, system-ui, "DejaVu Sans", sans-serif';

/** The chart as it is on the screen, with its title and what each colour is. */
export async function png(plot: uPlot, legend: Legend): Promise<Blob> {
  const chart = plot.ctx.canvas;
  const ratio = devicePixelRatio;
  const canvas = document.createElement("canvas");
  canvas.width = chart.width;
  canvas.height = chart.height + (HEAD + FOOT) * ratio;
  const context = canvas.getContext("2d");
  if (!context) throw new Error("this browser paints no picture");
  context.fillStyle = token("surface");
  context.fillRect(0, 0, canvas.width, canvas.height);
  context.drawImage(chart, 0, HEAD * ratio);
  context.scale(ratio, ratio);
  context.fillStyle = token("ink");
  context.font = `600 13px ${FONT}`;
  context.fillText(legend.title, 12, 18);
  context.font = `11px ${FONT}`;
  let x = 12;
  const y = canvas.height / ratio - 6;
  for (const { label, colour } of shown(legend)) {
    context.fillStyle = colour;
    context.fillRect(x, y - 8, 9, 9);
    context.fillStyle = token("ink2");
    context.fillText(label, x + 13, y);
    x += 13 + context.measureText(label).width + 14;
  }
  return new Promise((resolve, reject) => {
    canvas.toBlob((blob) => (blob ? resolve(blob) : reject(new Error("this browser makes no PNG"))), "image/png");
  });
}

function shown({ lines }: Legend) {
  return lines.slice(0, 12);
}

/** The curves as paths, clipped to the axes, which are drawn anew. */
export function svg(plot: uPlot, legend: Legend): string {
  const ratio = devicePixelRatio;
  const [width, height] = [plot.width, plot.height + HEAD + FOOT];
  const box = { x: plot.bbox.left / ratio, y: plot.bbox.top / ratio + HEAD, w: plot.bbox.width / ratio, h: plot.bbox.height / ratio };
  const at = (i: number, value: number) => `${round(box.x + plot.valToPos(plot.data[0][i] ?? 0, "x"))},${round(box.y + plot.valToPos(value, "y"))}`;
  const paths = plot.series.slice(1).flatMap((series, s) => {
    const drawn = path(plot.data[s + 1] ?? [], at);
    const stroke = typeof series.stroke === "function" ? series.stroke(plot, s + 1) : series.stroke;
    if (!drawn || series.show === false || stroke === "transparent") return [];
    return [`<path d="${drawn}" stroke="${escaped(String(stroke))}" stroke-width="${series.width}" stroke-opacity="${series.alpha ?? 1}"/>`];
  });
  const entries = shown(legend).map(({ label, colour }, i) => {
    const x = 12 + i * Math.min(160, (width - 24) / shown(legend).length);
    return `<rect x="${x}" y="${height - 14}" width="9" height="9" fill="${escaped(colour)}"/><text x="${x + 13}" y="${height - 6}" fill="${token("ink2")}">${escaped(label)}</text>`;
  });
  return [
    `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 ${width} ${height}" width="${width}" height="${height}" font-family='${FONT}' font-size="11">`,
    `<rect width="${width}" height="${height}" fill="${token("surface")}"/>`,
    `<text x="12" y="18" font-size="13" font-weight="600" fill="${token("ink")}">${escaped(legend.title)}</text>`,
    `<clipPath id="box"><rect x="${box.x}" y="${box.y}" width="${box.w}" height="${box.h}"/></clipPath>`,
    ...ticks(plot, box),
    `<g clip-path="url(#box)" fill="none" stroke-linejoin="round">${paths.join("")}</g>`,
    ...entries,
    "</svg>",
  ].join("\n");
}

interface Box {
  x: number;
  y: number;
  w: number;
  h: number;
}

/** uPlot keeps the ticks it has drawn, and the words at them, in fields it does not declare. */
interface Drawn {
  _splits?: (number | null)[];
  _values?: (string | null)[];
}

function ticks(plot: uPlot, box: Box): string[] {
  const [ink, grid] = [token("ink3"), token("grid")];
  return plot.axes.flatMap((axis, which) => {
    const { _splits = [], _values = [] } = axis as Drawn;
    return _splits.flatMap((split, i) => {
      const text = _values[i];
      if (split === null || text === null || text === undefined || text === "") return [];
      const words = text.split("\n");
      if (which === 0) {
        const x = round(box.x + plot.valToPos(split, "x"));
        const lines = words.map((word, n) => `<text x="${x}" y="${box.y + box.h + 15 + 12 * n}" text-anchor="middle" fill="${ink}">${escaped(word)}</text>`);
        return [`<path d="M${x},${box.y}v${box.h}" stroke="${grid}"/>`, ...lines];
      }
      const y = round(box.y + plot.valToPos(split, "y"));
      return [`<path d="M${box.x},${y}h${box.w}" stroke="${grid}"/><text x="${box.x - 6}" y="${y + 4}" text-anchor="end" fill="${ink}">${escaped(text)}</text>`];
    });
  });
}

function path(values: ArrayLike<number | null | undefined>, at: (i: number, value: number) => string): string {
  const pieces: string[] = [];
  let pen = "M";
  for (let i = 0; i < values.length; i++) {
    const value = values[i];
    if (value === null) pen = "M";
    if (value === null || value === undefined) continue;
    pieces.push(pen + at(i, value));
    pen = "L";
  }
  return pieces.join("");
}

function round(value: number): number {
  return Math.round(value * 10) / 10;
}

function escaped(text: string): string {
  return text.replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll(">", "&gt;").replaceAll('"', "&quot;");
}

/** What a script needs to have the values of a panel, at full resolution. */
export function python(server: string, runs: readonly string[], metric: string, x: { from: number | null; to: number | null }): string {
  const span = [x.from === null ? "" : `, start=${x.from}`, x.to === null ? "" : `, stop=${x.to}`].join("");
  return [
    "import torchtrack",
    "",
    `api = torchtrack.Api(${literal(server)})  # the key of the server is in TORCHTRACK_API_KEY`,
    "tables = {}",
    `for uid in [${[...new Set(runs)].map(literal).join(", ")}]:`,
    `    tables[uid] = api.run(uid).history([${literal(metric)}]${span})  # an Arrow table, a row a step`,
    "",
  ].join("\n");
}

/** A text as Python reads it: JSON's escapes are Python's too, but for characters that JSON writes as two. */
function literal(text: string): string {
  const plain = (c: string) => (c.codePointAt(0) ?? 0) < 127;
  const code = (c: string) => `\\U${(c.codePointAt(0) ?? 0).toString(16).padStart(8, "0")}`;
  return [...JSON.stringify(text)].map((c) => (plain(c) ? c : code(c))).join("");
}

/** A name for a file, without what file systems and shells stumble over. */
export function fileName(title: string, ending: string): string {
  return `${title.replace(/[^\w.-]+/g, "-").replace(/^[-.]+|-+$/g, "").slice(0, 80) || "panel"}.${ending}`;
}

export function download(blob: Blob, name: string): void {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(blob);
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}
