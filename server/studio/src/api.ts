/** The studio's HTTP, and what it answers. */

export const FRAMES_A_SECOND = 100;

export interface About { steps: number; guidance: number; profiles: string[]; max_duration_s: number }
export interface Video { video: string; duration_s: number; sample_count: number }
export interface Recording { recording: string; envelope: number[] }
export interface Take { take: string; recipe: Record<string, unknown>; produced: number[]; seconds: Record<string, number> }
export interface Wish {
  envelope: number[]; sample_count: number; video: string; text: string; audio?: string; negative_text: string;
  seed: number; steps: number; guidance: number; profile: string; variations: number;
}
export type Line =
  | { event: "waiting"; position: number; seconds: number }
  | { event: "progress"; stage: string; done: number; total: number | null; seconds: number }
  | { event: "envelope"; envelope: number[] }
  | { event: "takes"; takes: Take[] };

/** What the server says is wrong, in its own words. */
export class Refused extends Error {
  constructor(message: string, readonly reason: string) { super(message); }
}

let token = "";
export function useToken(given: string): void { token = given; }

function headers(): HeadersInit { return token ? { Authorization: `Bearer ${token}` } : {}; }

async function ask(path: string, options: RequestInit = {}): Promise<Response> {
  let answer: Response;
  try {
    answer = await fetch(path, { ...options, headers: headers() });
  } catch (error) {
    if (options.signal?.aborted) throw error;
    throw new Refused("The server does not answer. It may have been stopped; what you drew is still here.", "OFFLINE");
  }
  if (answer.ok) return answer;
  const body = await answer.json().catch(() => ({}));
  throw new Refused(body?.error?.message ?? `The server answered ${answer.status}.`, body?.error?.reason ?? "UNKNOWN");
}

export async function about(): Promise<About> { return (await ask("/api/about")).json(); }

export async function addVideo(file: Blob): Promise<Video> {
  return (await ask("/api/videos", { method: "POST", body: file })).json();
}

export async function addRecording(file: Blob): Promise<Recording> {
  return (await ask("/api/recordings", { method: "POST", body: file })).json();
}

export async function wav(take: string): Promise<Blob> { return (await ask(`/api/takes/${take}.wav`)).blob(); }

/** A take in its video, whose own sound is replaced, mixed in, or kept beside it. */
export async function muxed(take: string, sourceAudio: string): Promise<Blob> {
  return (await ask(`/api/takes/${take}.mp4?source_audio=${sourceAudio}`)).blob();
}

export function predict(video: string, signal: AbortSignal): AsyncGenerator<Line> {
  return lines(`/api/videos/${video}/envelope`, { method: "POST", signal });
}

export function makeTakes(wish: Wish, signal: AbortSignal): AsyncGenerator<Line> {
  return lines("/api/takes", { method: "POST", body: JSON.stringify(wish), signal });
}

/** Lines of JSON as they come; an error line is thrown. Aborting stops the work on the server, too. */
async function* lines(path: string, options: RequestInit): AsyncGenerator<Line> {
  const answer = await ask(path, options);
  const reader = answer.body!.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "", ended = false;
  while (true) {
    const { value, done } = await reader.read();
    if (done) break;
    const parts = (rest + value).split("\n");
    rest = parts.pop() ?? "";
    for (const part of parts) {
      const line = JSON.parse(part);
      if (line.event === "error") throw new Refused(line.error.message, line.error.reason);
      ended ||= line.event === "envelope" || line.event === "takes";
      yield line as Line;
    }
  }
  if (!ended) throw new Refused("The connection was lost before the end. Try again; nothing that you drew is lost.", "LOST");
}
