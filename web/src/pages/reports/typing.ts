/** Marks and panels put into a text that is being written, in a way that the browser can undo. */

export interface Mark {
  name: string;
  sign: string;
  /** With Ctrl. */
  key?: string;
  /** What stands before and after what is chosen, or before each of its lines. */
  around?: [string, string];
  before?: string;
}

export const MARKS: Mark[] = [
  { name: "bold", sign: "B", key: "b", around: ["**", "**"] },
  { name: "italic", sign: "I", key: "i", around: ["_", "_"] },
  { name: "code", sign: "‹›", around: ["`", "`"] },
  { name: "link", sign: "↗", around: ["[", "](https://)"] },
  { name: "heading", sign: "H", before: "## " },
  { name: "list", sign: "•", before: "- " },
  { name: "quote", sign: "❝", before: "> " },
];

/** Put a mark round what is chosen; once more takes it away. */
export function marked(area: HTMLTextAreaElement, { around, before }: Mark): void {
  const { selectionStart: start, selectionEnd: end, value } = area;
  if (around) {
    const [left, right] = around;
    const chosen = value.slice(start, end);
    if (value.slice(start - left.length, start) === left && value.slice(end, end + right.length) === right) {
      type(area, start - left.length, end + right.length, chosen);
      area.setSelectionRange(start - left.length, end - left.length);
      return;
    }
    type(area, start, end, left + chosen + right);
    area.setSelectionRange(start + left.length, end + left.length);
    return;
  }
  if (before === undefined) return;
  const from = value.lastIndexOf("\n", start - 1) + 1;
  const lines = value.slice(from, end).split("\n");
  const had = lines.every((line) => line.startsWith(before));
  const next = lines.map((line) => (had ? line.slice(before.length) : before + line)).join("\n");
  type(area, from, end, next);
  area.setSelectionRange(from, from + next.length);
}

/** Put a block at the end of the paragraph that one is in. */
export function insert(area: HTMLTextAreaElement, block: string): void {
  const { selectionEnd, value } = area;
  const after = value.indexOf("\n\n", selectionEnd);
  const at = after === -1 ? value.length : after;
  type(area, at, at, `${value.slice(0, at).trim() ? "\n\n" : ""}${block}${after === -1 ? "\n" : ""}`);
}

/** As if it were typed: `insertText` is what leaves the browser's own undo whole; where there is none, it is set. */
function type(area: HTMLTextAreaElement, start: number, end: number, text: string): void {
  area.focus();
  area.setSelectionRange(start, end);
  if (document.execCommand(text ? "insertText" : "delete", false, text)) return;
  area.setRangeText(text, start, end, "end");
  area.dispatchEvent(new Event("input", { bubbles: true }));
}
