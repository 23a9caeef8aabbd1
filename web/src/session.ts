/** Who is let in: found out when the page opens, and again when the server has asked for a key. */

import { signal } from "@preact/signals";
import { change, get, shut } from "./api";
import type { Me, Way } from "./model";
import { href, parse, place } from "./router";

export const me = signal<Me | null>(null);
/** How one gets in, beside by a key. */
export const way = signal<Way | null>(null);

/** Where somebody was who has gone to the identity provider: the way back knows the server's address alone. */
const WAS_AT = "was-at";

/** Find out who this is; nobody is asked for a key whose cookie is good. */
export async function enter(): Promise<void> {
  way.value = await get<Way>("login");
  if (way.value.signed_in) await welcome();
  else shut.value = true;
}

/** Trade a key for a cookie. */
export async function signIn(key: string): Promise<void> {
  await change("POST", "session", undefined, { authorization: `Bearer ${key}` });
  await welcome();
}

export async function signOut(): Promise<void> {
  await change("DELETE", "session");
  me.value = null;
  shut.value = true;
}

/** Before the identity provider's page is opened. */
export function leave(): void {
  sessionStorage.setItem(WAS_AT, location.hash);
}

async function welcome(): Promise<void> {
  me.value = await get<Me>("me");
  shut.value = false;
  const was = sessionStorage.getItem(WAS_AT);
  sessionStorage.removeItem(WAS_AT);
  if (was !== null && place.value.path.length === 0) {
    history.replaceState(null, "", was || href([]));
    place.value = parse(was);
  }
}

/** Whether one may do this in a project: a viewer sees, an editor changes. */
export function mayEdit(project: string): boolean {
  const roles = me.value?.roles ?? {};
  return [roles[project], roles["*"]].some((role) => role === "editor" || role === "admin");
}
