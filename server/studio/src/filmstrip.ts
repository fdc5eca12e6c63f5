/** Thumbnails of a video over time, made by the browser. */

const PICTURES = 32, HEIGHT = 108;

export interface Picture { seconds: number; image: ImageBitmap }

/** Yields evenly spaced thumbnails; ends early if the browser cannot show the video. */
export async function* filmstrip(address: string, seconds: number, signal: AbortSignal): AsyncGenerator<Picture> {
  const video = document.createElement("video");
  video.muted = true;
  video.src = address;
  const heard = (name: string): Promise<boolean> => new Promise((done) => {
    video.addEventListener(name, () => done(true), { once: true });
    video.addEventListener("error", () => done(false), { once: true });
  });
  if (!(await heard("loadeddata")) || !video.videoWidth) return;
  for (let i = 0; i < PICTURES && !signal.aborted; i++) {
    video.currentTime = ((i + 0.5) / PICTURES) * seconds;
    if (!(await heard("seeked"))) break;
    const image = await createImageBitmap(video, { resizeHeight: HEIGHT, resizeQuality: "medium" }).catch(() => undefined);
    if (image) yield { seconds: video.currentTime, image }; // undefined if the browser has no frame available, for example under load
  }
  video.removeAttribute("src");
  video.load();
}
