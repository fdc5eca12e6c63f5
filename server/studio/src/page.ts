/** Access to the page's elements, and messages to the user. */

export const element = <T extends HTMLElement>(id: string): T => document.getElementById(id) as T;
export const field = (id: string): HTMLInputElement => element<HTMLInputElement>(id);

/** Shows a status message, which screen readers announce. */
export function say(text: string): void { element("status").textContent = text; }

/** Shows an error until it is dismissed or new work starts. */
export function problem(error: unknown): void {
  if ((error as Error)?.name === "AbortError") return say("Stopped.");
  element("problem").hidden = false;
  const message = (error as Error)?.message ?? String(error);
  element("problem").querySelector("p")!.textContent = message.charAt(0).toUpperCase() + message.slice(1);
  say("");
}

export function noProblem(): void { element("problem").hidden = true; }

export function button(text: string, action: () => void, label = text): HTMLButtonElement {
  const made = document.createElement("button");
  made.type = "button";
  made.textContent = text;
  if (label !== text) made.setAttribute("aria-label", label);
  made.onclick = action;
  return made;
}

export function download(content: Blob, name: string): void {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(content);
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
}

export const json = (value: unknown): Blob => new Blob([JSON.stringify(value, null, 1)], { type: "application/json" });
