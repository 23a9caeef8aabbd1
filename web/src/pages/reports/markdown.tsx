/** Markdown as elements: what a person typed is text, and never becomes markup that they or others typed. */

import { Lexer, type MarkedToken, type Token, type Tokens } from "marked";
import { type ComponentChildren, h } from "preact";
import { useMemo } from "preact/hooks";
import { inFile } from "../../embedded";

interface Props {
  text: string;
  /** What stands in place of a block of code of this language; undefined: the code. */
  block: (language: string, code: string) => ComponentChildren | undefined;
}

type Block = Props["block"];

export function Markdown({ text, block }: Props) {
  const tokens = useMemo(() => new Lexer({ gfm: true }).lex(text), [text]);
  const seen = new Map<string, number>();
  // A part that was not edited keeps its key, and with it what it has loaded.
  const key = ({ raw }: Token) => {
    seen.set(raw, (seen.get(raw) ?? 0) + 1);
    return `${seen.get(raw)} ${raw}`;
  };
  return <div class="prose">{tokens.map((token) => <Part key={key(token)} token={token} block={block} />)}</div>;
}

function Part({ token, block }: { token: Token; block: Block }) {
  return <>{drawn(token as MarkedToken, block)}</>;
}

function all(tokens: Token[] | undefined, block: Block): ComponentChildren {
  return tokens?.map((token) => drawn(token as MarkedToken, block));
}

/** The page has the only first-level heading. */
const DEEPER = 1;
const DEEPEST = 6;

function drawn(token: MarkedToken, block: Block): ComponentChildren {
  switch (token.type) {
    case "heading":
      return h(`h${Math.min(DEEPEST, token.depth + DEEPER)}`, null, all(token.tokens, block));
    case "paragraph":
      return <p>{all(token.tokens, block)}</p>;
    case "text":
      return "tokens" in token && token.tokens ? all(token.tokens, block) : plain(token.text);
    case "code":
      return block(token.lang ?? "", token.text) ?? (
        <pre tabIndex={0}>
          <code>{token.text}</code>
        </pre>
      );
    case "blockquote":
      return <blockquote>{all(token.tokens, block)}</blockquote>;
    case "list":
      return h(token.ordered ? "ol" : "ul", token.ordered && token.start !== "" ? { start: token.start } : null, token.items.map((item) => <li>{all(item.tokens, block)}</li>));
    case "checkbox":
      return token.checked ? "☑ " : "☐ ";
    case "table":
      return <Table token={token} block={block} />;
    case "hr":
      return <hr />;
    case "strong":
      return <strong>{all(token.tokens, block)}</strong>;
    case "em":
      return <em>{all(token.tokens, block)}</em>;
    case "del":
      return <del>{all(token.tokens, block)}</del>;
    case "codespan":
      return <code>{token.text}</code>;
    case "br":
      return <br />;
    case "link":
      return link(token.href, all(token.tokens, block));
    case "image":
      return image(token.href, token.text);
    case "escape":
      return token.text;
    case "html":
      return token.text;
    case "space":
    case "def":
      return null;
    default:
      return (token as Token).raw;
  }
}

function Table({ token: { header, rows }, block }: { token: Tokens.Table; block: Block }) {
  const cell = (of: "th" | "td") => ({ tokens, align }: Tokens.TableCell) => h(of, { class: align === "right" ? "num" : undefined, scope: of === "th" ? "col" : undefined }, all(tokens, block));
  return (
    <div class="scroll" tabIndex={0} role="region" aria-label="table">
      <table class="prose-table">
        <thead>
          <tr>{header.map(cell("th"))}</tr>
        </thead>
        <tbody>
          {rows.map((row) => (
            <tr>{row.map(cell("td"))}</tr>
          ))}
        </tbody>
      </table>
    </div>
  );
}

function link(address: string, children: ComponentChildren): ComponentChildren {
  if (address.startsWith("#/")) return inFile ? children : <a href={address}>{children}</a>;
  if (!leads(address)) return children;
  return (
    <a href={address} target="_blank" rel="noreferrer noopener">
      {children}
    </a>
  );
}

/** A picture that lies in the text itself. Any other is a link: to show it would tell its server who reads this. */
function image(address: string, text: string): ComponentChildren {
  if (/^data:image\/(png|jpeg|gif|webp);base64,/.test(address)) return <img src={address} alt={text} />;
  return link(address, text || address);
}

/** Whether a link may be one: to a page or to a person, with nothing in it that runs. */
export function leads(address: string): boolean {
  try {
    return ["http:", "https:", "mailto:"].includes(new URL(address).protocol);
  } catch {
    return false;
  }
}

/** Characters that were written by their names: `&amp;`. */
function plain(text: string): string {
  return text.replace(/&(#\d{1,7}|#x[\da-f]{1,6}|[a-z][\da-z]{1,31});/gi, (name) => new DOMParser().parseFromString(name, "text/html").body.textContent ?? name);
}
