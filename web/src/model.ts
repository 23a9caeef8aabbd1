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
}

export interface KeysAnswer {
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

export interface LogLine {
  time: string;
  rank: number;
  stream: string;
  line: string;
}

export interface LogsAnswer {
  n: number;
  lines: LogLine[];
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

export interface Alarm {
  source: "finding" | "alert";
  severity: Severity;
  title: string;
  text: string;
  time: string;
  step: number | null;
  uid: string;
  run: string;
  project: string;
}

export interface AlarmsAnswer {
  lines: Alarm[];
  /** How many runs were looked at, of how many. */
  runs: number;
  of: number;
}
