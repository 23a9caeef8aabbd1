/** What the server says, as it says it. */

export type State = "running" | "finished" | "failed" | "killed" | "crashed" | "lost";
export type Severity = "info" | "warning" | "critical";

export interface Project {
  project: string;
  runs: number;
  running: number;
  failed: number;
  /** When its newest run began, as ISO 8601. */
  newest: string;
}

/** A table by its columns: `columns.name[3]` is of the fourth run. */
export interface RunsAnswer {
  n: number;
  columns: Record<string, unknown[]>;
  cursor: number | null;
  /** Runs that are there and were not read yet. */
  pending?: number;
}

export interface KeysAnswer {
  /** What `define_metric` puts along x of a metric. */
  along: Record<string, string>;
  metric: { key: string; runs: number }[];
  config: { key: string; runs: number }[];
}

export interface RunAnswer {
  uid: string;
  id: string;
  name: string;
  project: string;
  group: string | null;
  job_type: string | null;
  state: State;
  tags: string[];
  notes: string | null;
  created: string;
  duration_s: number;
  world_size: number;
  last_step: number | null;
  attempts: unknown[];
  config: Record<string, unknown>;
  summary: Record<string, unknown>;
  environment: Record<string, unknown>;
  /** The metrics it has. */
  keys: string[];
  /** What `define_metric` said of them. */
  definitions: Record<string, { step_metric?: string; hidden?: boolean }>;
  /** Keys of the configuration to be seen first. */
  pinned: string[];
  dropped: number;
  damages: string[];
}

export interface Finding {
  rule: string;
  severity: Severity;
  kind: string | null;
  names: string[];
  ranks: number[];
  first_step: number;
  last_step: number | null;
  value: number | null;
  why: string;
  look_at: string;
  attempt: number;
}

interface LogLine {
  time: string;
  rank: number;
  stream: string;
  line: string;
}

export interface LogsAnswer {
  n: number;
  lines: LogLine[];
  /** Where the next page begins; null after the last. */
  after: number | null;
}

export interface SeriesItem {
  run: string;
  metric: string;
  rank?: number | "mean";
}

export interface SeriesHeader {
  items: SeriesItem[];
  bucket: number;
  raw: boolean;
}

export interface HeatmapHeader {
  rows: string[];
  bucket: number;
}

export interface HistogramHeader {
  bucket: number;
}

/** A report; without its text in lists. */
export interface ReportAnswer {
  id: string;
  project: string;
  title: string;
  text: string;
  version: number;
  newest: number;
  by: string;
  at: string;
}

/** Of a run, what a panel that is pinned to it has to know. */
export type PanelRun = Pick<RunAnswer, "uid" | "name" | "project" | "state" | "last_step" | "world_size">;

export type Kind = "image" | "audio" | "video" | "html" | "table" | "figure" | "file" | "text";
export type LoggedSource = "media" | "texts";

/** Something that runs logged under one name that is no number. */
export interface LoggedName {
  name: string;
  source: LoggedSource;
  kinds: Kind[];
  rows: number;
  steps: number;
}

/** A file: its bytes are asked for by their SHA-256. */
export interface LoggedFile {
  kind: Exclude<Kind, "text">;
  rank: number;
  time: string | null;
  sha256: string;
  mime: string | null;
  size: number | null;
  caption: string | null;
}

interface LoggedText {
  kind: "text";
  rank: number;
  time: string | null;
  text: string | null;
}

export type LoggedRow = LoggedFile | LoggedText;

/** What one run had logged last under a name, at a step. */
export interface LoggedAnswer {
  run: string;
  step: number | null;
  /** How many rows there are at that step: not all of them may be here. */
  n: number;
  rows: LoggedRow[];
}

/** What was logged of all names, as the rows say it. */
export interface MediaAnswer {
  n: number;
  rows: (LoggedFile & { name: string; step: number | null })[];
  after: number | null;
}

export interface KeptFile {
  path: string;
  kind: "media" | "saved" | "left" | "journal";
  size: number;
  /** In seconds since 1970. */
  modified: number | null;
  sha256: string | null;
}

export interface KeptAnswer {
  files: KeptFile[];
  more: boolean;
}

/** A file that a script saved, and that was sent. */
export interface SavedFile {
  /** In the folder of the run. */
  path: string;
  size: number;
  sha256: string;
  /** Of the list that says in which parts it came. */
  contents: string;
  time: string;
}

/** The list of the files of an artifact: a file of the run that logged it. */
export interface Contents {
  files: Record<string, { size: number; sha256: string }>;
  references: Record<string, string>;
}

export interface Artifact {
  action: "logged" | "used" | "linked";
  /** Of the list of its files; runs of earlier versions have none. */
  contents?: string;
  name: string;
  type: string;
  digest: string;
  aliases: string[];
  files: number;
  bytes: number;
  time: string;
  rank: number;
}

export type Role = "viewer" | "editor" | "admin";
export type Scope = "read" | "write" | "admin";

export interface Me {
  id: string;
  name: string;
  kind: "owner" | "key" | "user" | "anyone";
  user: string | null;
  /** By project, `*`: all of them. */
  roles: Record<string, Role>;
}

/** How one gets in. */
export interface Way {
  issuer: string | null;
  /** Where to go to log in by the identity provider. */
  url: string | null;
  /** Whether the browser has a cookie that is good. */
  signed_in: boolean;
}

export interface Key {
  id: string;
  name: string;
  /** What it begins with. */
  start: string;
  scope: Scope;
  project: string | null;
  person: string | null;
  created: string;
  expires: string | null;
  used: string | null;
  revoked: string | null;
  /** In the answer that makes it alone. */
  key?: string;
}

export interface User {
  id: string;
  name: string;
  disabled: boolean;
  roles: Record<string, Role>;
  created: string;
}

/** What became of a message to a target. */
export interface Told {
  target: number;
  service: string;
  state: "waiting" | "sent" | "given up";
  tries: number;
}

export interface Alarm {
  source: "finding" | "alert" | "rule";
  severity: Severity;
  title: string;
  text: string;
  time: string;
  step: number | null;
  uid: string;
  run: string;
  project: string;
  /** Of a rule: since when it holds no more, and who was told. */
  over?: string | null;
  told?: Told[];
}

export type Condition = "above" | "below" | "not_finite" | "absent" | "ended" | "finding" | "matches";

/** What a rule waits for. */
export interface When {
  kind: Condition;
  metric?: string;
  value?: number;
  for_steps?: number;
  for_s?: number;
  least?: Severity;
}

export interface Rule {
  id: string;
  project: string;
  name: string;
  filter: string;
  severity: Severity;
  by: string;
  when: When;
  /** The same in words. */
  says: string;
}

export interface AlarmsAnswer {
  lines: Alarm[];
  /** What serves each target that is told what rules fire on. */
  targets: string[];
  /** How many runs were looked at, of how many. */
  runs: number;
  of: number;
}
